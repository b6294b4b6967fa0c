//! `basalt scrub` and `basalt verify --quarantined`: the scrub in the background as an operator sees and steers it, and what is damaged.

use std::collections::HashSet;
use std::path::Path;

use basalt_proto::v1::{
    ControlScrubRequest, ListQuarantinedRequest, Quarantined, ScrubStatus, control_scrub_request::Action,
};
use basalt_stateplane::Multihash;
use serde_json::{Value, json};

use crate::{
    access::Access,
    cli::{Scrub, ScrubAction},
    exit::{Failure, Outcome},
    progress::{bytes, duration},
    say::{self, say},
};

/// Asks, or tells, the scrub of a node.
pub async fn scrub(node: &Path, options: &Scrub) -> Outcome {
    let action = match options.action {
        None => Action::Unspecified,
        Some(ScrubAction::Start) => Action::Start,
        Some(ScrubAction::Stop) => Action::Stop,
        Some(ScrubAction::Pause) => Action::Pause,
        Some(ScrubAction::Resume) => Action::Resume,
    };
    if action != Action::Start && (options.rate.is_some() || options.hash) {
        return Err(Failure::usage("--rate and --hash go with start: basalt scrub start --rate 256MiB"));
    }
    let request =
        ControlScrubRequest { action: action.into(), rate_bytes: options.rate.unwrap_or(0), hash: options.hash };
    // In the background of whoever serves the node; without one there is none.
    let mut access = Access::served(node).await?;
    let status = access.admin().control_scrub(request).await;
    access.close().await?;
    let status = status?.into_inner();
    match options.json {
        true => say!("{}", object(&status)),
        false => say::out(format_args!("{}", page(&status))),
    }
    Ok(())
}

/// Lists what is quarantined.
pub async fn quarantined(node: &Path, as_json: bool) -> Outcome {
    let mut access = Access::open_for_reading(node, "basalt verify").await?;
    let all = list(&mut access).await;
    access.close().await?;
    let all = all?;
    match as_json {
        true => say!("{}", json!({ "quarantined": all.iter().map(quarantined_object).collect::<Vec<_>>() })),
        false => {
            all.iter().for_each(|one| say!("{}", quarantined_line(one)));
            say!("{} quarantined", all.len());
        }
    }
    match all.len() {
        0 => Ok(()),
        n => Err(Failure::new(format!(
            "{n} damaged: let Kubo fetch them again (`ipfs block get CID`), or put them from a replica or backup (`ipfs block put`)"
        ))),
    }
}

/// The damaged blocks of a node.
pub async fn quarantined_blocks(node: &Path) -> Outcome<HashSet<Multihash>> {
    let mut access = Access::glance(node).await?;
    let all = list(&mut access).await;
    access.close().await?;
    let multihash = |one: &Quarantined| {
        let cid: basalt_kubo::Cid = one.cid.parse().ok()?;
        Multihash::from_bytes(&cid.hash().to_bytes()).ok()
    };
    Ok(all?.iter().filter_map(multihash).collect())
}

async fn list(access: &mut Access) -> Outcome<Vec<Quarantined>> {
    let mut stream = access.admin().list_quarantined(ListQuarantinedRequest {}).await?.into_inner();
    let mut all = Vec::new();
    while let Some(page) = stream.message().await? {
        all.extend(page.quarantined);
        if page.complete {
            return Ok(all);
        }
    }
    Err(Failure::new(format!("the node stopped after {} quarantined keys: look at its log", all.len())))
}

/// A quarantined key in a line.
pub fn quarantined_line(one: &Quarantined) -> String {
    let name = if one.cid.is_empty() { &one.key } else { &one.cid };
    format!(
        "{name} ({}, {}): {}, found {} ago",
        one.store,
        bytes(one.size),
        one.reason,
        duration(since(one.found_unix_ms))
    )
}

/// A quarantined key as JSON.
pub fn quarantined_object(one: &Quarantined) -> Value {
    json!({
        "store": one.store,
        "key": one.key,
        "cid": one.cid,
        "reason": one.reason,
        "size": one.size,
        "found_unix_ms": one.found_unix_ms,
    })
}

/// The scrub in a line of `basalt status`.
pub fn line(status: &ScrubStatus) -> String {
    let (done, left) = sums(status);
    match status.state.as_str() {
        "running" | "paused" => {
            let mut line = format!("{} at {} of about {}", status.state, bytes(done), bytes(done.saturating_add(left)));
            if status.state == "running" && status.rate_bytes < 1 << 40 {
                let ms = (u128::from(left) * 1000 / u128::from(status.rate_bytes.max(1))).min(u128::from(u64::MAX));
                line += &format!(", at most {}/s: {} to go", bytes(status.rate_bytes), duration(ms as u64));
            }
            line
        }
        "idle" => match status.stores.iter().map(|store| store.finished_unix_ms).min() {
            Some(finished) if finished > 0 => format!("idle, last through {} ago", duration(since(finished))),
            _ => "idle, never through yet".to_owned(),
        },
        "off" => "off ([scrub] rate_bytes = 0)".to_owned(),
        other => other.to_owned(),
    }
}

/// Bytes that the passes under way have read, and have left.
fn sums(status: &ScrubStatus) -> (u64, u64) {
    let active = status.stores.iter().filter(|store| store.active);
    active.fold((0, 0), |(done, left), store| (done + store.bytes_done, left + store.bytes_left))
}

fn page(status: &ScrubStatus) -> String {
    let mut page = format!(
        "scrub      {}\nrate       {}/s\nevery      {}\nhashes     {}\n\n",
        line(status),
        bytes(status.rate_bytes),
        if status.interval_ms == 0 { "only when asked".to_owned() } else { duration(status.interval_ms) },
        if status.hash { "yes" } else { "no" },
    );
    page += "STORE      PASS        READ        LEFT        RECORDS     DAMAGED   RESCUED   UNREADABLE  DEAD RANGES  NEXT\n";
    for store in &status.stores {
        let pass = match (store.active, store.finished_unix_ms) {
            (true, _) => "under way".to_owned(),
            (false, 0) => "never".to_owned(),
            (false, finished) => format!("{} ago", duration(since(finished))),
        };
        let next = match store.due_unix_ms {
            0 => "-".to_owned(),
            due if due <= now_ms() => "now".to_owned(),
            due => format!("in {}", duration(due - now_ms())),
        };
        page += &format!(
            "{:<10} {:<11} {:<11} {:<11} {:<11} {:<9} {:<9} {:<11} {:<12} {}\n",
            store.name,
            pass,
            bytes(store.bytes_done),
            bytes(store.bytes_left),
            store.records,
            store.damaged,
            store.rescued,
            store.unreadable,
            store.dead_ranges,
            next
        );
    }
    page
}

/// The scrub as JSON.
pub fn object(status: &ScrubStatus) -> Value {
    json!({
        "state": status.state,
        "rate_bytes": status.rate_bytes,
        "interval_ms": status.interval_ms,
        "hash": status.hash,
        "stores": status.stores.iter().map(|store| json!({
            "name": store.name,
            "active": store.active,
            "started_unix_ms": store.started_unix_ms,
            "finished_unix_ms": store.finished_unix_ms,
            "due_unix_ms": store.due_unix_ms,
            "bytes_done": store.bytes_done,
            "bytes_left": store.bytes_left,
            "records": store.records,
            "damaged": store.damaged,
            "rescued": store.rescued,
            "unreadable": store.unreadable,
            "dead_ranges": store.dead_ranges,
        })).collect::<Vec<_>>(),
    })
}

fn since(unix_ms: u64) -> u64 {
    now_ms().saturating_sub(unix_ms)
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use basalt_proto::v1::scrub_status::Store;

    use super::*;

    #[test]
    fn the_line_says_how_far_and_how_long() {
        let store = Store { active: true, bytes_done: 1 << 30, bytes_left: 3 << 30, ..Store::default() };
        let mut status = ScrubStatus {
            state: "running".into(),
            rate_bytes: 16 << 20,
            stores: vec![store, Store { finished_unix_ms: 1, bytes_done: 7, ..Store::default() }],
            ..ScrubStatus::default()
        };
        assert_eq!(
            line(&status),
            format!("running at 1.0 GiB of about 4.0 GiB, at most 16.0 MiB/s: {} to go", duration(192_000))
        );
        status.state = "idle".into();
        status.stores.truncate(1);
        assert_eq!(line(&status), "idle, never through yet");
    }
}
