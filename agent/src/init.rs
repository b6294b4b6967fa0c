//! `basalt init`: makes a node.

use std::path::Path;

use basalt_blockstore::Durability as Class;
use basalt_node::{
    Config, Host, Node, State,
    layout::{self, InitOptions},
};
use serde_json::json;

use crate::{
    cli::{Durability, Init},
    config, dataset,
    exit::{Failure, Outcome},
    say::say,
    status::promise,
};

/// Makes a node in an empty or missing folder, and says what it promises.
pub fn init(node: &Path, options: &Init) -> Outcome {
    if !options.paths.is_empty() && options.shards.is_some_and(|shards| shards as usize != options.paths.len()) {
        return Err(Failure::usage(format!(
            "--shards {} and {} times --path contradict each other: every --path is one shard, so leave --shards out",
            options.shards.unwrap_or_default(),
            options.paths.len()
        )));
    }
    let durability = match options.durability {
        Durability::Strict => Class::Strict,
        Durability::Ordered => Class::Ordered,
        Durability::Relaxed => Class::Relaxed,
    };
    let node_id = match &options.zfs {
        Some(dataset) => match dataset::init(node, dataset, options)? {
            Some(id) => Some(id),
            // Only the plan was wanted.
            None => return Ok(()),
        },
        None => options.node_id.as_deref().map(str::parse).transpose()?,
    };
    let file = layout::init(
        node,
        &InitOptions {
            node_id,
            shard_paths: options.paths.clone(),
            shards: options.shards.unwrap_or(1) as usize,
            durability,
            state: if options.migrating { State::Migrating } else { State::Ready },
            own_mounts: options.zfs.is_some(),
        },
    )?;
    // Opened once: what makes the stores happens here, where somebody reads the error, and a node can be looked at before it was served.
    Node::open(node, Config::load(node, &[config::SETTINGS])?, Host::Command("basalt init"))
        .and_then(|node| node.close())?;
    let shown = std::path::absolute(node).unwrap_or_else(|_| node.to_path_buf());
    if options.json {
        say!(
            "{}",
            json!({ "node_id": file.node_id.as_str(), "path": shown, "shards": file.shards.len(), "durability": durability.name() })
        );
        return Ok(());
    }
    say!("made node {} in {}", file.node_id, shown.display());
    let plural = if file.shards.len() == 1 { "" } else { "s" };
    say!("{} shard{plural}, durability {durability}: {}", file.shards.len(), promise(durability.name()));
    Ok(())
}
