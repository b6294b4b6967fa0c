//! `basalt status`: what a node holds, how it is, and what needs doing, on a page or as JSON.

use std::{fmt::Write, path::Path};

use basalt_proto::v1::{StatusResponse, status_response::Client};
use serde_json::{Value, json};

use crate::{
    access::Access,
    cli::Status,
    dataset,
    exit::Outcome,
    progress::{bytes, duration},
    say::{self, say},
};

/// Prints the status of a node.
pub async fn status(node: &Path, options: &Status) -> Outcome {
    let mut access = match options.served {
        true => Access::served(node).await?,
        false => Access::glance(node).await?,
    };
    let served = access.is_served();
    let outcome = access.status().await;
    access.close().await?;
    let status = outcome?;
    let folder = node.to_path_buf();
    // It runs commands, which may have to wait for a disk.
    let datasets = tokio::task::spawn_blocking(move || dataset::glance(&folder)).await.ok().flatten();
    let folder = node.to_path_buf();
    let snapshots = tokio::task::spawn_blocking(move || crate::snapshot::glance(&folder)).await.ok().flatten();
    let plane = crate::ledger::glance(node).await;
    if options.json {
        let mut object = object(&status, served);
        if let Some((_, snapshots)) = &snapshots {
            object["snapshots"] = snapshots.clone();
        }
        if let Some((_, datasets)) = datasets {
            object["zfs"] = datasets;
        }
        if let Some((_, plane)) = plane {
            object["plane"] = plane;
        }
        say!("{object}");
    } else {
        say::out(format_args!("{}", page(&status, served)));
        if let Some((table, _)) = datasets {
            say!("\nDATASETS\n{table}");
        }
        if let Some((lines, _)) = snapshots {
            say!("\nSNAPSHOTS\n{lines}");
        }
        if let Some((line, _)) = plane {
            say!("\nPLANE\n{line}");
        }
    }
    Ok(())
}

/// What a durability class promises, in a line.
pub fn promise(durability: &str) -> &'static str {
    match durability {
        "strict" => "what was acknowledged survives a power cut",
        "ordered" => {
            "pins and names survive a power cut, with every block they need; the blocks of the last second may not"
        }
        "relaxed" => {
            "what was written before the last Sync survives a power cut; pins may then lack blocks of the last second"
        }
        _ => "unknown to this version",
    }
}

/// Quarantined keys that the page names.
const QUARANTINED_LINES: usize = 5;

fn page(status: &StatusResponse, served: bool) -> String {
    let mut page = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(page, "{name:<12} {value}");
    };
    row("node", format!("{} in {}", status.node_id, status.path));
    match served {
        true => row(
            "served by",
            format!("{} {}, pid {}, up {}", status.host, status.version, status.pid, duration(status.uptime_ms)),
        ),
        false => row("served by", "nobody; read from its folder just now".into()),
    }
    row("state", status.state.clone());
    row("durability", format!("{}: {}", status.durability, promise(&status.durability)));
    row("blocks", format!("{}, {}", status.blocks, bytes(status.block_bytes)));
    if let Some(keyspace) = &status.keyspace {
        row("other keys", format!("{}, {}", keyspace.keys, bytes(keyspace.bytes)));
    }
    row("disk usage", format!("{} live, {} allocated", bytes(status.disk_usage_bytes), bytes(status.allocated_bytes)));
    if let Some(scrub) = &status.scrub {
        row("scrub", crate::scrub::line(scrub));
    }
    if served {
        row("sockets", format!("{} (data), {} (admin)", status.data_socket, status.admin_socket));
    }

    let _ = writeln!(
        page,
        "\nSHARD  BLOCKS        BYTES       ALLOCATED   DEAD        UNFLUSHED   FREE        SEGMENTS  STATE"
    );
    for shard in &status.shards {
        let _ = writeln!(
            page,
            "{:<5}  {:<12}  {:<10}  {:<10}  {:<10}  {:<10}  {:<10}  {:<8}  {}",
            shard.id,
            shard.blocks,
            bytes(shard.bytes),
            bytes(shard.allocated_bytes),
            bytes(shard.dead_bytes),
            bytes(shard.unflushed_bytes),
            bytes(shard.available_bytes),
            shard.segments,
            shard.state
        );
    }
    if served {
        let _ = writeln!(page, "\nCLIENTS");
        // The one that asks is always there, and says nothing.
        for client in status.clients.iter().filter(|client| !is_this_process(client)) {
            let _ = writeln!(
                page,
                "{} as {}, pid {}, uid {}, for {}",
                if client.name.is_empty() { "unknown" } else { &client.name },
                if client.role.is_empty() { "?" } else { &client.role },
                client.pid,
                client.uid,
                duration(client.connected_ms)
            );
        }
        if status.clients.iter().all(is_this_process) {
            let _ = writeln!(page, "none");
        }
    }
    if !status.quarantined.is_empty() {
        let _ = writeln!(page, "\nQUARANTINED");
        for one in status.quarantined.iter().take(QUARANTINED_LINES) {
            let _ = writeln!(page, "{}", crate::scrub::quarantined_line(one));
        }
        let all: u64 = status.shards.iter().map(|shard| shard.quarantined).sum::<u64>()
            + status.keyspace.as_ref().map_or(0, |keyspace| keyspace.quarantined);
        if all > QUARANTINED_LINES as u64 {
            let _ = writeln!(page, "and {} more: basalt verify --quarantined", all - QUARANTINED_LINES as u64);
        }
    }
    if !status.conditions.is_empty() {
        let _ = writeln!(page, "\nCONDITIONS");
        for condition in &status.conditions {
            let _ = writeln!(page, "{}: {}: {}", condition.severity, condition.name, condition.message);
            if !condition.remedy.is_empty() {
                let _ = writeln!(page, "  {}", condition.remedy);
            }
        }
    }
    page
}

fn is_this_process(client: &Client) -> bool {
    client.pid == u64::from(std::process::id())
}

fn object(status: &StatusResponse, served: bool) -> Value {
    json!({
        "node_id": status.node_id,
        "path": status.path,
        "served": served,
        "version": status.version,
        "host": status.host,
        "pid": status.pid,
        "uptime_ms": status.uptime_ms,
        "state": status.state,
        "durability": status.durability,
        "incarnation": data_encoding::HEXLOWER.encode(&status.incarnation),
        "blocks": status.blocks,
        "block_bytes": status.block_bytes,
        "disk_usage_bytes": status.disk_usage_bytes,
        "allocated_bytes": status.allocated_bytes,
        "data_socket": status.data_socket,
        "admin_socket": status.admin_socket,
        "shards": status.shards.iter().map(|shard| json!({
            "id": shard.id,
            "path": shard.path,
            "blocks": shard.blocks,
            "bytes": shard.bytes,
            "allocated_bytes": shard.allocated_bytes,
            "segments": shard.segments,
            "dead_bytes": shard.dead_bytes,
            "unflushed_bytes": shard.unflushed_bytes,
            "quarantined": shard.quarantined,
            "available_bytes": shard.available_bytes,
            "state": shard.state,
        })).collect::<Vec<_>>(),
        "keyspace": status.keyspace.as_ref().map(|keyspace| json!({
            "keys": keyspace.keys,
            "bytes": keyspace.bytes,
            "allocated_bytes": keyspace.allocated_bytes,
            "segments": keyspace.segments,
            "dead_bytes": keyspace.dead_bytes,
            "quarantined": keyspace.quarantined,
        })),
        "scrub": status.scrub.as_ref().map(crate::scrub::object),
        "quarantined": status.quarantined.iter().map(crate::scrub::quarantined_object).collect::<Vec<_>>(),
        "clients": status.clients.iter().filter(|client| !is_this_process(client)).map(|client| json!({
            "name": client.name,
            "role": client.role,
            "connected_ms": client.connected_ms,
            "pid": client.pid,
            "uid": client.uid,
        })).collect::<Vec<_>>(),
        "conditions": status.conditions.iter().map(|condition| json!({
            "name": condition.name,
            "severity": condition.severity,
            "message": condition.message,
            "remedy": condition.remedy,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use basalt_proto::v1::status_response::{Condition, Keyspace, Shard};

    use super::*;

    fn status() -> StatusResponse {
        StatusResponse {
            node_id: "00ff".into(),
            path: "/n".into(),
            durability: "ordered".into(),
            blocks: 12,
            block_bytes: 3 << 20,
            shards: vec![Shard { id: 0, state: "fenced: disk full".into(), ..Shard::default() }],
            keyspace: Some(Keyspace { keys: 5, ..Keyspace::default() }),
            clients: vec![Client {
                name: "kubo-plugin 0.1.0".into(),
                role: "root".into(),
                pid: 1,
                ..Client::default()
            }],
            conditions: vec![Condition {
                name: "NoSpace".into(),
                severity: "error".into(),
                message: "shard 0 is full".into(),
                remedy: "free some".into(),
            }],
            ..StatusResponse::default()
        }
    }

    #[test]
    fn the_page_says_what_needs_doing() {
        let page = page(&status(), true);
        for part in [
            "node         00ff in /n",
            "ordered: pins and names survive a power cut",
            "12, 3.0 MiB",
            "fenced: disk full",
            "kubo-plugin 0.1.0 as root, pid 1",
            "error: NoSpace: shard 0 is full\n  free some",
        ] {
            assert!(page.contains(part), "{part} is not in:\n{page}");
        }
    }

    #[test]
    fn a_node_that_nobody_serves_says_so() {
        let page = page(&status(), false);
        assert!(page.contains("nobody") && !page.contains("CLIENTS"), "{page}");
    }

    #[test]
    fn json_has_numbers_as_numbers() {
        let object = object(&status(), true);
        assert_eq!(object["blocks"], 12);
        assert_eq!(object["shards"][0]["state"], "fenced: disk full");
        assert_eq!(object["conditions"][0]["remedy"], "free some");
    }
}
