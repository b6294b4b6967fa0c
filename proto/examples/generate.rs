//! Writes the Rust code of `basalt.v1` to a folder; run by `tools/proto`, which knows where it belongs.
//!
//! An example and not a build script, so that neither protoc nor the code generator is needed to build Basalt.

use std::{env, io, path::Path};

fn main() -> io::Result<()> {
    let out = env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: generate FOLDER"))?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: Vec<_> = ["admin", "datastore"].map(|name| root.join(format!("basalt/v1/{name}.proto"))).to_vec();
    tonic_prost_build::configure()
        // Values go through without a copy.
        .bytes(".")
        .use_arc_self(true)
        // `connect` by URL is of no use on a Unix socket.
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .out_dir(Path::new(&out))
        .compile_protos(&files, &[root.to_path_buf()])
}
