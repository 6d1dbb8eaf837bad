//! Commands and records, made short.

use flashsale::ids::{self, Place, Quantity, SkuId, UserId};
use flashsale::inventory::{Command, Configure, Logged, Reserve, Settings};
use flashsale::wire;
use uuid::Uuid;

pub fn sku(name: &str) -> SkuId {
    SkuId::parse(name).expect("a legal SKU")
}

pub fn user(name: &str) -> UserId {
    UserId::parse(name).expect("a legal user")
}

/// A reserve command with a fresh id.
pub fn reserve(sku_name: &str, user_name: &str, quantity: u32) -> Command {
    reserve_as(ids::fresh_id(), sku_name, user_name, quantity)
}

/// A reserve command with a given id.
pub fn reserve_as(id: Uuid, sku_name: &str, user_name: &str, quantity: u32) -> Command {
    let quantity = Quantity::new(quantity).expect("a legal quantity");
    Command::Reserve(Reserve { id, user: user(user_name), sku: sku(sku_name), quantity, metadata: None })
}

/// Creates a SKU pinned to `pin`.
pub fn create(sku_name: &str, pin: i32, on_hand: i64, user_limit: u32) -> Command {
    Command::Configure(Configure {
        id: ids::fresh_id(),
        sku: sku(sku_name),
        pin,
        seen_version: 0,
        on_hand: Some(on_hand),
        settings: Settings { user_limit, ..Settings::default() },
        patch_hash: None,
    })
}

/// One record of commands of one SKU.
pub fn record(commands: &[Command]) -> Vec<u8> {
    let sent: Vec<wire::Sent> = commands
        .iter()
        .map(|command| wire::Sent { received_at_us: 0, request_id: "test".to_owned(), command: command.clone() })
        .collect();
    wire::encode(commands[0].sku(), sent.iter()).expect("a legal record")
}

/// Commands as if they came from the log, one per record, from `first_offset` on.
pub fn logged(first_offset: i64, commands: &[Command]) -> Vec<Logged> {
    let place = |n: usize| Place { offset: first_offset + n as i64, index: 0 };
    commands.iter().enumerate().map(|(n, c)| Logged { place: place(n), at: 1_000, command: Ok(c.clone()) }).collect()
}
