//! What a client and the node tell each other first, the same on every way in.

use std::sync::Arc;

use basalt_blockstore::{Error, ErrorKind, Result};
use basalt_proto::v1;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::{
    clients::{Introduction, Peer, Presence, Socket},
    grpc::{PROTOCOL_MAX, PROTOCOL_MIN},
    lane,
    layout::State,
    node::Node,
};

/// The role of a client that fills a node which is marked as migrating.
const ROLE_MIGRATE: &str = "migrate";

impl Node {
    /// The answer to a client's handshake; an error where they can't work together: no common protocol, another node than the client
    /// expects ([`ErrorKind::Format`]), a migration that has not completed ([`ErrorKind::Locked`]).
    pub fn shake_hands(&self, said: &v1::HandshakeRequest) -> Result<v1::HandshakeResponse> {
        let protocol = negotiate(said)?;
        let id = self.id().as_str();
        if !said.expect_node_id.is_empty() && said.expect_node_id != id {
            let message = format!(
                "this is node {id} at {}, and {} expects node {}: mount the node that this repo was made with, or give the repo its own",
                self.path().display(),
                or(&said.client, "the client"),
                said.expect_node_id,
            );
            return Err(Error::new(ErrorKind::Format, message));
        }
        if self.state() == State::Migrating && said.role != ROLE_MIGRATE {
            let message = format!(
                "node {id} at {} is being filled by a migration that has not completed: run basalt-migrate again to complete it, or with \
                 --rollback to go back",
                self.path().display(),
            );
            return Err(Error::new(ErrorKind::Locked, message));
        }
        Ok(v1::HandshakeResponse {
            protocol,
            server: format!("basalt {}", env!("CARGO_PKG_VERSION")),
            node_id: id.to_owned(),
            incarnation: Bytes::copy_from_slice(self.incarnation()),
            features: self.features(),
            durability: self.config().datastore.durability.name().to_owned(),
            value_bytes_max: self.config().datastore.store.value_bytes_max as u64,
            read_only: self.is_read_only(),
        })
    }

    /// What this node has beyond protocol 1.
    fn features(&self) -> Vec<String> {
        let lanes = (self.config().sockets.lanes_max > 0).then(|| lane::FEATURE.to_owned());
        lanes.into_iter().collect()
    }

    /// Shakes hands with a client in this process, which `status` shows, and `import` respects, until the presence is dropped.
    pub fn admit(self: &Arc<Node>, said: v1::HandshakeRequest) -> Result<(Presence, v1::HandshakeResponse)> {
        let answer = self.shake_hands(&said)?;
        let peer = Peer {
            pid: std::process::id(),
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
        };
        // The limit is for strangers.
        let Some(presence) = self.clients().enter(Socket::Data, peer, usize::MAX, CancellationToken::new()) else {
            return Err(Error::new(ErrorKind::Unavailable, "the node takes no more clients"));
        };
        presence.connection().introduce(Introduction::of(said));
        Ok((presence, answer))
    }
}

impl Introduction {
    /// What a client says of itself is kept as long as it is connected, so not more of it than anybody needs. It is shown on terminals, where
    /// control characters would command.
    pub(crate) fn of(said: v1::HandshakeRequest) -> Introduction {
        let shown = |char: char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char };
        let short = |text: String| text.chars().take(128).map(shown).collect();
        Introduction { name: short(said.client), role: short(said.role) }
    }
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// The highest protocol that both speak. A client that names none speaks the first.
fn negotiate(said: &v1::HandshakeRequest) -> Result<u32> {
    let (min, max) = (said.protocol_min.max(1), said.protocol_max.max(1));
    let common = max.min(PROTOCOL_MAX);
    if common >= min.max(PROTOCOL_MIN) {
        return Ok(common);
    }
    let older = if max < PROTOCOL_MIN { or(&said.client, "the client") } else { "basalt on the node" };
    let message = format!(
        "{} speaks protocols {min} to {max}, this node (basalt {}) speaks {PROTOCOL_MIN} to {PROTOCOL_MAX}: upgrade {older}",
        or(&said.client, "the client"),
        env!("CARGO_PKG_VERSION"),
    );
    Err(Error::new(ErrorKind::Format, message))
}
