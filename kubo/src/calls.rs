//! The calls, typed. All but pin/update may be made again when their outcome is unknown: Kubo's pins are a set.

use std::time::{Duration, Instant};

use serde::{Deserialize, de::DeserializeOwned};

use crate::{Cid, Class, Client, End, Error, Lines, Result, Step};

/// Longest name of a pin that Kubo takes.
pub const PIN_NAME_BYTES_MAX: usize = 255;

/// How to pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinOptions {
    /// The whole DAG, or the one block.
    pub recursive: bool,
    /// The pin's name; pinning again renames. At most [`PIN_NAME_BYTES_MAX`].
    pub name: Option<String>,
    /// Gives up when no further block came for so long. Kubo itself looks for a block for ever, and ticks all the while; `offline=true` is no
    /// way out, since Kubo 0.43 heeds it for the root only.
    pub progress_stall: Option<Duration>,
}

impl Default for PinOptions {
    fn default() -> PinOptions {
        PinOptions { recursive: true, name: None, progress_stall: None }
    }
}

/// Which pins to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinKind {
    /// Pins of whole DAGs.
    Recursive,
    /// Pins of one block.
    Direct,
    /// Both of these, and every block below a recursive pin: on a large node this walks all DAGs.
    All,
}

impl PinKind {
    fn name(self) -> &'static str {
        match self {
            PinKind::Recursive => "recursive",
            PinKind::Direct => "direct",
            PinKind::All => "all",
        }
    }
}

/// A pin that Kubo holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinEntry {
    /// What is pinned, with the codec by which it was pinned.
    pub cid: Cid,
    /// `recursive`, `direct`, or `indirect` (`indirect through …` where one CID was asked).
    pub kind: String,
    /// Its name, where names were asked.
    pub name: Option<String>,
}

/// What pin/rm found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpinned {
    /// It was pinned and is no more.
    Removed,
    /// It was not pinned, so all is as it was asked to be.
    WasNot,
}

/// Kubo's identity.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Identity {
    /// Peer id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Addresses it can be dialled at, each with `/p2p/…`; none while it is offline.
    #[serde(rename = "Addresses", default, deserialize_with = "null_is_empty")]
    pub addresses: Vec<String>,
    /// Such as `kubo/0.43.0/`.
    #[serde(rename = "AgentVersion", default)]
    pub agent_version: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(list: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(list)?.unwrap_or_default())
}

/// Kubo's version.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Version {
    /// Such as `0.43.0`.
    #[serde(rename = "Version")]
    pub version: String,
    /// Commit it was built from; often empty.
    #[serde(rename = "Commit", default)]
    pub commit: String,
    /// Version of its repo.
    #[serde(rename = "Repo", default)]
    pub repo: String,
}

/// One block; never the size of a DAG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockStat {
    /// As Kubo names it.
    pub cid: Cid,
    /// Bytes of the block.
    pub size: u64,
}

/// Sizes of the repo. Objects are never asked for: Kubo counts them one by one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RepoStat {
    /// Bytes that the repo takes, as its datastores tell.
    #[serde(rename = "RepoSize")]
    pub repo_bytes: u64,
    /// `Datastore.StorageMax`, in bytes; `u64::MAX` where it has none.
    #[serde(rename = "StorageMax")]
    pub storage_bytes_max: u64,
}

/// pin/add under way.
#[derive(Debug)]
pub struct PinAdd {
    lines: Lines<PinAddLine>,
    named: bool,
    stall: Option<Duration>,
    furthest: (u64, u64),
    moved: Instant,
    /// The error of an answer that ends well without having named the pin.
    unnamed: Error,
}

/// What pin/add brings next.
#[must_use = "only the end tells whether it is pinned"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinStep {
    /// It goes on.
    Progress {
        /// Blocks that are there by now.
        blocks: u64,
        /// Their bytes, where Kubo tells (0.36 and later).
        bytes: u64,
    },
    /// How it ended. [`End::Complete`] is a pin that Kubo named and that holds.
    End(End),
}

#[derive(Debug, Deserialize)]
struct PinAddLine {
    #[serde(rename = "Pins")]
    pins: Option<Vec<String>>,
    #[serde(rename = "Progress", default)]
    progress: Option<u64>,
    #[serde(rename = "Bytes", default)]
    bytes: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct PinLsLine {
    #[serde(rename = "Cid")]
    cid: String,
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "Name", default)]
    name: Option<String>,
}

/// A stream of pins.
#[derive(Debug)]
pub struct PinLs {
    lines: Lines<PinLsLine>,
}

impl PinLs {
    /// The next pin, or how the stream ended.
    pub async fn next(&mut self) -> Step<PinEntry> {
        match self.lines.next().await {
            Step::Item(line) => match line.cid.parse() {
                Ok(cid) => {
                    Step::Item(PinEntry { cid, kind: line.kind, name: line.name.filter(|name| !name.is_empty()) })
                }
                Err(err) => {
                    let why = format!("it lists '{}', which is no CID ({err})", line.cid);
                    Step::End(self.lines.give_up(Class::Protocol, why))
                }
            },
            Step::End(end) => Step::End(end),
        }
    }
}

impl PinAdd {
    /// The next step. Dropped before the end, it closes the connection and Kubo gives the pin up.
    pub async fn next(&mut self) -> PinStep {
        loop {
            let line = match self.lines.next().await {
                Step::Item(line) => line,
                // Clean as it may be, an answer that never named the pin is not an answer.
                Step::End(End::Complete) if !self.named => {
                    return PinStep::End(End::Truncated(self.unnamed.clone()));
                }
                Step::End(end) => return PinStep::End(end),
            };
            if line.pins.is_some_and(|pins| !pins.is_empty()) {
                self.named = true;
                continue;
            }
            let reached = (line.progress.unwrap_or(0), line.bytes.unwrap_or(0));
            if reached != self.furthest {
                self.furthest = reached;
                self.moved = Instant::now();
            } else if let Some(stall) = self.stall.filter(|stall| self.moved.elapsed() > *stall) {
                let why = format!("has got no further block for {stall:?}; it has {} blocks", reached.0);
                return PinStep::End(self.lines.give_up(Class::Stalled, why));
            }
            return PinStep::Progress { blocks: reached.0, bytes: reached.1 };
        }
    }

    /// Waits for the end.
    pub async fn finish(mut self) -> Result<()> {
        loop {
            if let PinStep::End(end) = self.next().await {
                return end.complete();
            }
        }
    }
}

impl Client {
    /// Who the Kubo is.
    pub async fn id(&self) -> Result<Identity> {
        self.once("id", "", &[]).await
    }

    /// Which version it is.
    pub async fn version(&self) -> Result<Version> {
        self.once("version", "", &[]).await
    }

    /// The size of the repo, from the datastore's own account.
    pub async fn repo_stat(&self) -> Result<RepoStat> {
        self.once("repo/stat", "", &[("size-only", "true")]).await
    }

    /// The size of one block. With `offline` only if it is there; else Kubo looks for it on the network, and this may end as stalled.
    pub async fn block_stat(&self, cid: &Cid, offline: bool) -> Result<BlockStat> {
        #[derive(Deserialize)]
        struct Said {
            #[serde(rename = "Key")]
            key: String,
            #[serde(rename = "Size")]
            size: u64,
        }
        let text = cid.to_string();
        let said: Said = self.once("block/stat", &text, &[("arg", &text), ("offline", flag(offline))]).await?;
        let cid = said.key.parse().map_err(|err| {
            self.error(&format!("block/stat {text}"), Class::Protocol, format!("'{}' is no CID ({err})", said.key))
        })?;
        Ok(BlockStat { cid, size: said.size })
    }

    /// Pins. Ends as complete when the pin holds.
    pub async fn pin_add(&self, cid: &Cid, options: &PinOptions) -> Result<PinAdd> {
        let text = cid.to_string();
        let call = format!("pin/add {text}");
        let recursive = flag(options.recursive);
        // Without ticks a pin that works and one that hangs sound alike.
        let mut query = vec![("arg", text.as_str()), ("recursive", recursive), ("progress", "true")];
        if let Some(name) = &options.name {
            if name.len() > PIN_NAME_BYTES_MAX {
                let why = format!("its name has {} bytes, and Kubo takes {PIN_NAME_BYTES_MAX}", name.len());
                return Err(self.error(&call, Class::Argument, why));
            }
            query.push(("name", name));
        }
        let body = self.call("pin/add", &text, &query, self.options().stall).await?;
        Ok(PinAdd {
            lines: Lines::new(body),
            named: false,
            stall: options.progress_stall,
            furthest: (0, 0),
            moved: Instant::now(),
            unnamed: self.error(&call, Class::Truncated, "it ended without naming the pin"),
        })
    }

    /// Unpins. What was not pinned is as asked.
    pub async fn pin_rm(&self, cid: &Cid, recursive: bool) -> Result<Unpinned> {
        let text = cid.to_string();
        let query = [("arg", text.as_str()), ("recursive", flag(recursive))];
        let removed = async {
            let body = self.call("pin/rm", &text, &query, self.options().quiet).await?;
            let call = body.call.clone();
            let whole = body.whole().await?;
            let said: PinAddLine = serde_json::from_slice(&whole)
                .map_err(|err| self.error(&call, Class::Protocol, format!("its answer can't be read: {err}")))?;
            if said.pins.is_none_or(|pins| pins.is_empty()) {
                return Err(self.error(&call, Class::Truncated, "it ended without naming the pin"));
            }
            Ok(Unpinned::Removed)
        };
        match removed.await {
            // boxo's ErrNotPinned. A pin of the other kind has another message and stays an error.
            Err(err) if err.class() == Class::Failed && err.message() == "not pinned or pinned indirectly" => {
                Ok(Unpinned::WasNot)
            }
            other => other,
        }
    }

    /// Moves a recursive pin from one DAG to another, taking over what they share. `unpin` drops the old one, and then
    /// the call can't be made twice: after an outcome unknown, ask [`Client::pin_of`].
    pub async fn pin_update(&self, from: &Cid, to: &Cid, unpin: bool) -> Result<()> {
        let (from, to) = (from.to_string(), to.to_string());
        let query = [("arg", from.as_str()), ("arg", to.as_str()), ("unpin", flag(unpin))];
        let body = self.call("pin/update", &format!("{from} {to}"), &query, self.options().quiet).await?;
        let call = body.call.clone();
        let whole = body.whole().await?;
        let said: PinAddLine = serde_json::from_slice(&whole)
            .map_err(|err| self.error(&call, Class::Protocol, format!("its answer can't be read: {err}")))?;
        if said.pins.is_none_or(|pins| pins.is_empty()) {
            return Err(self.error(&call, Class::Truncated, "it ended without naming the pins"));
        }
        Ok(())
    }

    /// All pins of a kind, as a stream. `names` costs Kubo another look-up for each.
    pub async fn pin_ls(&self, kind: PinKind, names: bool) -> Result<PinLs> {
        let query = [("stream", "true"), ("type", kind.name()), ("names", flag(names))];
        let body = self.call("pin/ls", kind.name(), &query, self.options().stall).await?;
        Ok(PinLs { lines: Lines::new(body) })
    }

    /// How one CID is pinned; `None`: it isn't.
    pub async fn pin_of(&self, cid: &Cid, kind: PinKind) -> Result<Option<PinEntry>> {
        let text = cid.to_string();
        let query = [("stream", "true"), ("type", kind.name()), ("names", "true"), ("arg", &text)];
        let found = async {
            let body = self.call("pin/ls", &text, &query, self.options().stall).await?;
            let call = body.call.clone();
            let mut pins = PinLs { lines: Lines::new(body) };
            let mut found = None;
            loop {
                match pins.next().await {
                    Step::Item(entry) => found = Some(entry),
                    Step::End(end) => {
                        end.complete()?;
                        return found.ok_or_else(|| {
                            self.error(&call, Class::Protocol, "it lists nothing and reports no error")
                        });
                    }
                }
            }
        };
        match found.await {
            Ok(entry) => Ok(Some(entry)),
            Err(err) if err.class() == Class::Failed && err.message().ends_with("is not pinned") => Ok(None),
            Err(err) => Err(err),
        }
    }

    async fn once<T: DeserializeOwned>(&self, path: &str, subject: &str, query: &[(&str, &str)]) -> Result<T> {
        let body = self.call(path, subject, query, self.options().stall).await?;
        let call = body.call.clone();
        let whole = body.whole().await?;
        serde_json::from_slice(&whole)
            .map_err(|err| self.error(&call, Class::Protocol, format!("its answer can't be read: {err}")))
    }
}

fn flag(on: bool) -> &'static str {
    if on { "true" } else { "false" }
}
