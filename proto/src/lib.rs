//! The wire contract `basalt.v1`: messages, clients and servers, generated from `proto/basalt/v1/*.proto` by `tools/proto`.
//!
//! The generated code is committed, so that a build needs no protobuf compiler; `tools/proto --check` says whether it is current. Byte
//! fields are [`bytes::Bytes`]: a value that arrives is a slice of the buffer that it was received in, not a copy.

/// Package `basalt.v1`; the shapes are documented in the `.proto` files.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    include!("generated/basalt.v1.rs");
}
