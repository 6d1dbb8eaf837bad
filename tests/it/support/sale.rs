//! A sale over HTTP, with real servers: what a shop and its operators ask, made short.

use serde_json::{Value, json};

use super::app::{Answer, Http, request};
use super::consumer::World;

/// Waits for the decision of a reserve.
pub const WAIT: (&str, &str) = ("prefer", "wait=20");

/// A sale with its interface.
pub struct Sale {
    pub world: World,
    pub http: Http,
}

impl Sale {
    pub async fn fresh() -> Self {
        let world = World::fresh(2).await;
        let http = Http::over_world(&world);
        Self { world, http }
    }

    pub async fn admin(&self, line: &str, body: Value) -> Answer {
        self.http.ask_admin(request(line, &[], Some(&body.to_string()))).await
    }

    /// To the admin listener, with a key.
    pub async fn admin_keyed(&self, line: &str, key: &str, body: Value) -> Answer {
        self.http.ask_admin(request(line, &[("idempotency-key", key)], Some(&body.to_string()))).await
    }

    pub async fn put(&self, sku: &str, body: Value) -> Answer {
        self.admin(&format!("PUT /v1/admin/skus/{sku}"), body).await
    }

    /// A decided reservation's id.
    pub async fn reserve(&self, user: &str, sku: &str) -> String {
        let answer = self.ask_for(user, sku, &[WAIT]).await;
        assert_eq!((answer.status, &answer.body["status"]), (200, &json!("RESERVED")), "{answer:?}");
        answer.body["id"].as_str().expect("an id").to_owned()
    }

    pub async fn ask_for(&self, user: &str, sku: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask_for_units(user, sku, 1, headers).await
    }

    pub async fn ask_for_units(&self, user: &str, sku: &str, quantity: u32, headers: &[(&str, &str)]) -> Answer {
        let body = json!({"user_id": user, "sku_id": sku, "quantity": quantity}).to_string();
        self.http.ask(request("POST /v1/reservations", headers, Some(&body))).await
    }

    /// Many in one call.
    pub async fn ask_for_many(&self, items: &[Value], headers: &[(&str, &str)]) -> Answer {
        let body = json!({ "items": items }).to_string();
        self.http.ask(request("POST /v1/reservations/batch", headers, Some(&body))).await
    }

    pub async fn change(&self, id: &str, verb: &str, body: Value) -> Answer {
        self.change_keyed(id, verb, body, &[]).await
    }

    pub async fn change_keyed(&self, id: &str, verb: &str, body: Value, headers: &[(&str, &str)]) -> Answer {
        let body = body.to_string();
        self.http.ask(request(&format!("POST /v1/reservations/{id}/{verb}"), headers, Some(&body))).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.http.ask(request(&format!("GET {path}"), headers, None)).await
    }

    pub async fn get_admin(&self, path: &str) -> Answer {
        self.http.ask_admin(request(&format!("GET {path}"), &[], None)).await
    }
}
