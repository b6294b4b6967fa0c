//! The binary `basalt` from outside, as an operator and as Kubo's plugin meet it. Each test has a folder of its own in memory and loopback
//! only; nothing sleeps to wait.

#![allow(clippy::unwrap_used, missing_docs)]

mod agents;
mod alone;
mod bad_input;
mod flatfs_and_car;
mod pages;
mod plane;
mod sandbox;
mod scrub;
