//! Who wants what. **PURE**: request `number` of a run is always the same, whoever sends it, and no user and no key comes twice.

use std::time::Duration;

/// What the crowd wants.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The SKUs, from the one that is wanted most.
    skus: Vec<String>,
    /// Of each SKU, the share of the crowd that wants it or one before it.
    up_to: Vec<f64>,
    /// Makes users and keys of this run unlike those of any other.
    run: String,
    is_keyed: bool,
}

impl Demand {
    /// A crowd that wants `skus`: the n-th is wanted 1/n^`exponent` times as much as the first (Zipf's law; 0 = all alike).
    ///
    /// # Panics
    /// Without a SKU.
    pub fn new(skus: Vec<String>, exponent: f64, run: String, is_keyed: bool) -> Self {
        assert!(!skus.is_empty(), "a crowd wants something");
        let weights: Vec<f64> = (1..=skus.len()).map(|rank| (rank as f64).powf(-exponent)).collect();
        let all: f64 = weights.iter().sum();
        let up_to = weights.iter().scan(0.0, |sum, weight| {
            *sum += weight / all;
            Some(*sum)
        });
        Self { up_to: up_to.collect(), skus, run, is_keyed }
    }

    /// All that it may want.
    pub fn skus(&self) -> &[String] {
        &self.skus
    }

    /// Which of [`Demand::skus`] request `number` wants.
    pub fn wanted(&self, number: u64) -> usize {
        let random = (mix(number) >> 11) as f64 / (1_u64 << 53) as f64;
        self.up_to.partition_point(|up_to| *up_to <= random).min(self.skus.len() - 1)
    }

    /// Writes many requests as one call, over what `into` held.
    pub fn write_many(
        &self,
        numbers: impl Iterator<Item = u64>,
        target: &str,
        wait: Option<Duration>,
        into: &mut Vec<u8>,
    ) {
        use std::io::Write;
        // Leading zeros are legal; the digits are filled in below.
        const LENGTH: &str = "0000000000";
        into.clear();
        let put = |into: &mut Vec<u8>, text: std::fmt::Arguments<'_>| into.write_fmt(text).expect("memory takes it");
        put(into, format_args!("POST /v1/reservations/batch HTTP/1.1\r\nhost: {target}\r\n"));
        if let Some(wait) = wait {
            put(into, format_args!("prefer: wait={}\r\n", wait.as_secs()));
        }
        put(into, format_args!("content-type: application/json\r\ncontent-length: {LENGTH}\r\n\r\n"));
        let body_at = into.len();
        let mut before = "{\"items\":[";
        for number in numbers {
            let (run, sku) = (&self.run, &self.skus[self.wanted(number)]);
            put(into, format_args!("{before}{{\"user_id\":\"{run}-{number}\",\"sku_id\":\"{sku}\",\"quantity\":1"));
            if self.is_keyed {
                put(into, format_args!(",\"idempotency_key\":\"{run}-{number}\""));
            }
            into.push(b'}');
            before = ",";
        }
        into.extend_from_slice(b"]}");
        let length = format!("{:0width$}", into.len() - body_at, width = LENGTH.len());
        let ends_at = body_at - "\r\n\r\n".len();
        into[ends_at - LENGTH.len()..ends_at].copy_from_slice(length.as_bytes());
    }

    /// Writes request `number` as HTTP/1.1, over what `into` held.
    pub fn write(&self, number: u64, target: &str, wait: Option<Duration>, into: &mut Vec<u8>) {
        use std::io::Write;
        let (run, sku) = (&self.run, &self.skus[self.wanted(number)]);
        into.clear();
        let mut head = |text: std::fmt::Arguments<'_>| into.write_fmt(text).expect("memory takes it");
        head(format_args!("POST /v1/reservations HTTP/1.1\r\nhost: {target}\r\ncontent-type: application/json\r\n"));
        if self.is_keyed {
            head(format_args!("idempotency-key: {run}-{number}\r\n"));
        }
        if let Some(wait) = wait {
            head(format_args!("prefer: wait={}\r\n", wait.as_secs()));
        }
        // The body is as long as its texts and what stands around them.
        let length = run.len() + 1 + digits(number) + sku.len() + r#"{"user_id":"","sku_id":"","quantity":1}"#.len();
        head(format_args!(
            "content-length: {length}\r\n\r\n{{\"user_id\":\"{run}-{number}\",\"sku_id\":\"{sku}\",\"quantity\":1}}"
        ));
    }
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Spreads numbers over all others (splitmix64, Steele and others, 2014).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(skus: usize, exponent: f64) -> Demand {
        let skus = (0..skus).map(|n| format!("s{n}")).collect();
        Demand::new(skus, exponent, "run".into(), true)
    }

    #[test]
    fn the_first_is_wanted_most() {
        let demand = demand(10, 1.0);
        let mut wanted = [0_u32; 10];
        (0..100_000).for_each(|number| wanted[demand.wanted(number)] += 1);
        // 1 + 1/2 + ... + 1/10 = 2.929: a third want the first, a thirtieth the last.
        assert!((33_500..34_800).contains(&wanted[0]) && (3_200..3_700).contains(&wanted[9]), "{wanted:?}");
        let alike = super::tests::demand(4, 0.0);
        let first = (0..100_000).filter(|number| alike.wanted(*number) == 0).count();
        assert!((24_300..25_700).contains(&first), "{first}");
    }

    #[test]
    fn a_request_says_how_long_it_is() {
        for number in [0, 9, 10, 123_456] {
            let mut bytes = b"old".to_vec();
            demand(1, 1.0).write(number, "h:1", Some(Duration::from_secs(5)), &mut bytes);
            let text = String::from_utf8(bytes).expect("text");
            let (head, body) = text.split_once("\r\n\r\n").expect("two parts");
            assert!(
                head.contains(&format!("content-length: {}\r\n", body.len()))
                    || head.ends_with(&body.len().to_string())
            );
            assert!(
                head.starts_with("POST /v1/reservations HTTP/1.1\r\nhost: h:1\r\n") && head.contains("prefer: wait=5")
            );
            let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
            assert_eq!(body["user_id"], format!("run-{number}"));
            assert!(head.contains(&format!("idempotency-key: run-{number}\r\n")));
        }
    }

    #[test]
    fn many_requests_are_one_call_that_says_how_long_it_is() {
        for is_keyed in [true, false] {
            let demand = Demand::new(vec!["s0".into()], 1.0, "run".into(), is_keyed);
            let mut bytes = b"old".to_vec();
            demand.write_many([9, 10].into_iter(), "h:1", Some(Duration::from_secs(5)), &mut bytes);
            let text = String::from_utf8(bytes).expect("text");
            let (head, body) = text.split_once("\r\n\r\n").expect("two parts");
            assert!(head.starts_with("POST /v1/reservations/batch HTTP/1.1\r\nhost: h:1\r\n"), "{head}");
            assert!(head.contains("prefer: wait=5\r\n"), "{head}");
            assert!(head.ends_with(&format!("content-length: {:010}", body.len())), "{head}");
            let item = |number: u64| {
                let mut item = serde_json::json!({"user_id": format!("run-{number}"), "sku_id": "s0", "quantity": 1});
                if is_keyed {
                    item["idempotency_key"] = format!("run-{number}").into();
                }
                item
            };
            let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
            assert_eq!(body, serde_json::json!({"items": [item(9), item(10)]}));
        }
    }
}
