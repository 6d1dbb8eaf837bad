//! What tests of several topics share.

#![allow(dead_code, reason = "not every topic uses every helper")]

pub mod app;
pub mod cases;
pub mod collector;
pub mod commands;
pub mod consumer;
pub mod database;
pub mod events;
pub mod gate;
pub mod goldens;
pub mod kafka;
pub mod laws;
pub mod ledger;
pub mod life;
pub mod logs;
pub mod memory;
pub mod proxy;
pub mod redis;
pub mod sale;
pub mod second_model;
pub mod services;
pub mod site;
pub mod wait;
pub mod watching;
