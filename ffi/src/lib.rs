//! The C ABI of an open node: the same node as the agent's, in the process of a host that is written in another language.
//!
//! A host opens a node by its folder and gets a handle. Handles are numbers that are never used again, so a closed one is an error and
//! not undefined behaviour. Handles of one folder share one open node; the last one to be closed closes it. While it is open it is served
//! on its two sockets as under an agent, so that `basalt status` and every other command work the same.
//!
//! Every entry point catches panics and answers with a [`Outcome`]: a kind, and a message made for a person. [`abi`] has the entry
//! points; `include/basalt.h` is generated from it (`tools/header`), and its beginning says what the host must keep to.

pub mod abi;
mod flat;
mod hosted;
mod memory;
mod outcome;
mod registry;

pub use outcome::{Kind, Outcome};
