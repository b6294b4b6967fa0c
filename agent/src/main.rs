//! The daemon and command line `basalt`.

fn main() {}
