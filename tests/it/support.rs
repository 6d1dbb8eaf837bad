//! What tests of several topics share.

#![allow(dead_code, reason = "not every topic uses every helper")]

pub mod kafka;
pub mod memory;
pub mod oracle;
pub mod wait;
