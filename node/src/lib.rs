//! One open node.
