//! Writes the C header to a file; run by `tools/header`, which knows where it belongs.
//!
//! An example and not a build script, so that no generator is needed to build Basalt.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    let out = env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: header FILE"))?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).map_err(io::Error::other)?;
    let source = |name: &str| root.join("src").join(name);
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(source("outcome.rs"))
        .with_src(source("abi.rs"))
        .generate()
        .map_err(io::Error::other)?;
    let mut header = Vec::new();
    bindings.write(&mut header);
    fs::write(out, without_safety(&String::from_utf8_lossy(&header)))
}

/// What makes a call sound is said once, at the top of the header, in words for C.
fn without_safety(header: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    let mut in_safety = false;
    for line in header.lines() {
        let line = line.trim_end();
        if line == "// # Safety" {
            in_safety = true;
            lines.pop_if(|last| *last == "//");
        }
        in_safety &= line.starts_with("//");
        if !in_safety {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}
