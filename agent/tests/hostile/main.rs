//! The sockets of a real agent under clients that do what no client should. In each test an honest client works all the time and must be served;
//! what the agent takes of memory and open files has a bound that the test states.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../cli/sandbox.rs"]
#[allow(dead_code, reason = "the other tests use the rest")]
mod sandbox;

mod honest;
mod http;
mod memory;
mod places;
mod protocol;
mod wire;
