//! Generated protobuf code of `basalt.v1`.
