//! `basalt mark`: says of a node that a migration fills it, or that it is whole. For basalt-migrate.
//!
//! The mark is read when a node is opened, so whoever has the node open must let go first: an agent that was started on demand is asked to.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use basalt_blockstore::ErrorKind;
use basalt_node::{Config, Host, State, client, set_state};
use basalt_proto::v1::{HandOverRequest, StatusRequest};

use crate::{
    access::require_node,
    cli::{ConfigSource, Mark},
    config::Loaded,
    exit::{Failure, Outcome},
};

/// How often the lock is tried again.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Marks a node; one that is marked so already stays as it is.
pub async fn mark(node: &Path, mark: Mark) -> Outcome {
    let state = match mark {
        Mark::Ready => State::Ready,
        Mark::Migrating => State::Migrating,
    };
    if require_node(node)?.state == state {
        return Ok(());
    }
    let source = ConfigSource { config: None, set: Vec::new(), log_level: None, http_listen: None };
    let loaded = Loaded::load(node, &source)?;
    let begin = Instant::now();
    let mut asked = false;
    loop {
        let locked = match set_state(node, state) {
            Ok(_) => return Ok(()),
            Err(err) if err.kind() == ErrorKind::Locked => err,
            Err(err) => return Err(err.into()),
        };
        if !asked {
            asked = ask_to_hand_over(node, &loaded.node).await?;
        }
        if begin.elapsed() >= loaded.agent.handover {
            return Err(Failure::from(locked));
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

/// Whether the owner answered and was asked. One that nobody may send away is an error that says what to do.
async fn ask_to_hand_over(node: &Path, config: &Config) -> Outcome<bool> {
    // It may be opening or closing: then it is looked at again.
    let Ok(mut admin) = client::admin(node, &config.sockets).await else { return Ok(false) };
    let Ok(status) = admin.status(StatusRequest {}).await else { return Ok(false) };
    let status = status.into_inner();
    if status.host != Host::AgentAutostarted.name() {
        return Err(Failure::new(format!(
            "node {} is served by {}, pid {}: stop it, for the node's mark can only be changed while nobody has it open",
            node.display(),
            status.host,
            status.pid
        )));
    }
    let by = format!("basalt mark, pid {}", std::process::id());
    // An error means that it went while it was asked, which is what was wanted; else the lock will tell.
    Ok(admin.hand_over(HandOverRequest { force: false, by }).await.is_ok())
}
