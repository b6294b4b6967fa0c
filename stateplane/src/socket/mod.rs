//! A ledger through a Unix socket: the agent has it open (the embedded one can be open once), and other processes of its host, such as the command line,
//! use it as if it were theirs.
//!
//! A frame is its length (4 bytes, big-endian) and CBOR. A connection asks one thing at a time. Who may connect is decided by the file's mode and folder,
//! and by the peer's user: root, and who the agent runs as.

mod client;
mod server;
mod wire;

pub use client::{Remote, Told};
pub use server::{Host, serve};

/// Name of the socket's file in a node's folder of sockets.
pub const FILE_NAME: &str = "plane.sock";
/// Longest frame, in bytes: a page of the longest records.
const FRAME_BYTES_MAX: u32 = 64 << 20;
