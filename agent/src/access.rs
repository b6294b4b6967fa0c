//! Reaching a node: through the admin socket of whoever serves it, else by opening it here for the length of one command.
//!
//! A command does not care which: where nobody serves, the node is opened in this process and served on sockets in a private folder, so
//! there is one way of asking and one set of answers. What changes the node, and what reads it for long, holds its lock meanwhile.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use basalt_blockstore::ErrorKind;
use basalt_node::{Config, Host, Node, NodeFile, Server, client, lock::OwnerLock};
use basalt_proto::v1::{StatusRequest, StatusResponse};

use crate::{
    exit::{Exit, Failure, Outcome},
    say::tell,
};

/// A client of the admin socket.
pub type Admin = client::Admin;

/// How long a node that is locked may take to answer: its owner may be opening or closing it.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is asked.
const ANSWER_POLL: Duration = Duration::from_millis(50);

/// A node that can be asked.
#[derive(Debug)]
pub struct Access {
    admin: Admin,
    here: Option<Here>,
}

/// A node that this process has opened for one command.
#[derive(Debug)]
struct Here {
    node: Arc<Node>,
    server: Server,
    lock: Option<OwnerLock>,
    _sockets: tempfile::TempDir,
}

/// How a node is opened where nobody serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    /// For a moment, without its lock.
    Glance,
    /// For reading by a command of that name, with the node's lock where it can be had (not on a read-only mount).
    Read(&'static str),
    /// For writing by a command of that name.
    Write(&'static str),
}

impl Access {
    /// For a look: an owner that starts meanwhile is not in the way.
    pub async fn glance(node: &Path) -> Outcome<Access> {
        Access::reach(node, Opening::Glance).await
    }

    /// For reading much: no owner can start meanwhile. One that tries is told the command's name ("basalt export").
    pub async fn open_for_reading(node: &Path, command: &'static str) -> Outcome<Access> {
        Access::reach(node, Opening::Read(command)).await
    }

    /// For changing the node; as [`Access::open_for_reading`].
    pub async fn open_for_writing(node: &Path, command: &'static str) -> Outcome<Access> {
        Access::reach(node, Opening::Write(command)).await
    }

    /// Only if somebody serves the node.
    pub async fn served(node: &Path) -> Outcome<Access> {
        require_node(node)?;
        let admin = client::admin(node, &config(node).sockets).await.map_err(|err| {
            let failure = Failure::from(err);
            if OwnerLock::owner(node).is_some() { failure } else { Failure { exit: Exit::Absent, ..failure } }
        })?;
        Ok(Access { admin, here: None })
    }

    async fn reach(node: &Path, opening: Opening) -> Outcome<Access> {
        require_node(node)?;
        let config = config(node);
        let begin = Instant::now();
        loop {
            let refused = match client::admin(node, &config.sockets).await {
                Ok(admin) => return Ok(Access { admin, here: None }),
                Err(err) => err,
            };
            if OwnerLock::owner(node).is_none() {
                match Access::open_here(node, config.clone(), opening).await {
                    // Somebody was faster: ask them.
                    Err((_, ErrorKind::Locked)) if begin.elapsed() < ANSWER_DEADLINE => {}
                    other => return other.map_err(|(failure, _)| failure),
                }
            }
            if begin.elapsed() >= ANSWER_DEADLINE {
                return Err(refused.into());
            }
            tokio::time::sleep(ANSWER_POLL).await;
        }
    }

    async fn open_here(node: &Path, mut config: Config, opening: Opening) -> Result<Access, (Failure, ErrorKind)> {
        let failed = |err: basalt_blockstore::Error| {
            let kind = err.kind();
            (Failure::from(err), kind)
        };
        // Private: nobody else shall find, and get used to, a node that is gone when this command ends.
        let sockets =
            tempfile::tempdir().map_err(|err| (Failure::io("make a folder for the sockets", err), ErrorKind::Io))?;
        config.sockets.data_path = Some(sockets.path().join("data.sock"));
        config.sockets.admin_path = Some(sockets.path().join("admin.sock"));
        let lock = match opening {
            Opening::Read(command) => match OwnerLock::take(node, Host::Command(command)) {
                Ok(lock) => Some(lock),
                Err(err) if err.kind() == ErrorKind::Locked => return Err(failed(err)),
                // A read-only mount takes no lock file, and has no other owner.
                Err(_) => None,
            },
            Opening::Glance | Opening::Write(_) => None,
        };
        let path = node.to_path_buf();
        let private = config.sockets.clone();
        let opened = tokio::task::spawn_blocking(move || match opening {
            Opening::Write(command) => Node::open(&path, config, Host::Command(command)),
            Opening::Read(command) => Node::open_read_only(&path, config, Host::Command(command)),
            Opening::Glance => Node::open_read_only(&path, config, Host::Command("basalt status")),
        });
        let opened = opened
            .await
            .map_err(|err| (Failure::new(format!("open node {}: {err}", node.display())), ErrorKind::Io))?;
        let opened = opened.map_err(failed)?;
        let server = Server::start(&opened).map_err(failed)?;
        let admin = client::admin(node, &private).await.map_err(failed)?;
        Ok(Access { admin, here: Some(Here { node: opened, server, lock, _sockets: sockets }) })
    }

    /// The client.
    pub fn admin(&mut self) -> &mut Admin {
        &mut self.admin
    }

    /// Whether another process serves the node.
    pub fn is_served(&self) -> bool {
        self.here.is_none()
    }

    /// What the node says of itself.
    pub async fn status(&mut self) -> Outcome<StatusResponse> {
        Ok(self.admin.status(StatusRequest {}).await?.into_inner())
    }

    /// The node's name.
    pub async fn node_id(&mut self) -> Outcome<String> {
        Ok(self.status().await?.node_id)
    }

    /// Lets go of the node; what was written is durable then.
    pub async fn close(self) -> Outcome {
        let Access { admin, here } = self;
        drop(admin);
        let Some(here) = here else { return Ok(()) };
        here.server.stop().await?;
        let node = here.node;
        let closed = tokio::task::spawn_blocking(move || node.close()).await;
        if let Some(lock) = here.lock {
            lock.release();
        }
        closed.map_err(|err| Failure::new(format!("close the node: {err}")))?.map_err(Failure::from)
    }
}

/// What makes the folder a node; a folder that is none is [`Exit::Absent`].
pub fn require_node(node: &Path) -> Outcome<NodeFile> {
    NodeFile::read(node).map_err(|err| {
        let failure = Failure::from(err);
        match node.join(basalt_node::layout::NODE_FILE).exists() {
            true => failure,
            false => Failure { exit: Exit::Absent, ..failure },
        }
    })
}

/// The config of a node. One that is wrong must not keep anybody from asking how the node is: then the defaults find its sockets.
fn config(node: &Path) -> Config {
    let source = crate::cli::ConfigSource {
        config: std::env::var_os("BASALT_CONFIG").map(Into::into),
        set: Vec::new(),
        log_level: None,
        http_listen: None,
    };
    match crate::config::Loaded::load(node, &source) {
        Ok(loaded) => loaded.node,
        Err(failure) => {
            tell!("basalt: going on with defaults, because {}", failure.message);
            Config::default()
        }
    }
}

/// Whether an admin socket answers.
pub async fn answers(node: &Path, config: Option<&Config>) -> Result<StatusResponse, String> {
    let sockets = config.map(|config| config.sockets.clone()).unwrap_or_default();
    let mut admin = client::admin(node, &sockets).await.map_err(|err| err.to_string())?;
    let answer = admin.status(StatusRequest {}).await.map_err(|status| client::error(&status).to_string())?;
    Ok(answer.into_inner())
}
