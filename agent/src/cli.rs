//! The command line: what can be said, not what it does.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::exit::{Failure, Outcome};

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, or a check found a problem; 2 wrong command line or config; 3 no such node or file, or nobody serves it.";

/// Basalt: a datastore for IPFS nodes.
#[derive(Debug, Parser)]
#[command(name = "basalt", version, about, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    /// The node's folder [default: $IPFS_PATH/basalt, else ~/.ipfs/basalt].
    #[arg(long, global = true, env = "BASALT_NODE", value_name = "FOLDER")]
    pub node: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The node's folder.
    pub fn node(&self) -> Outcome<PathBuf> {
        if let Some(node) = &self.node {
            return Ok(node.clone());
        }
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        set("IPFS_PATH")
            .or_else(|| set("HOME").map(|home| home.join(".ipfs")))
            .map(|repo| repo.join("basalt"))
            .ok_or_else(|| Failure::usage("which node? Say --node FOLDER, or set BASALT_NODE, IPFS_PATH or HOME"))
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new node in an empty or missing folder.
    Init(Init),
    /// Serve a node in the foreground until SIGTERM or SIGINT.
    Agent(Agent),
    /// What the node holds, how it is, and what needs doing.
    Status(Status),
    /// Check this machine, the node's folder and its config.
    Doctor(Doctor),
    /// Read everything back against its checksums.
    Verify(Verify),
    /// The scrub in the background: how far it is, and what it shall do.
    Scrub(Scrub),
    /// Add the blocks of a CAR file or a flatfs folder.
    #[command(subcommand)]
    Import(Import),
    /// Write the blocks into a CAR file or a flatfs folder.
    #[command(subcommand)]
    Export(Export),
    /// The ZFS datasets of a node: what is declared, what is there, what differs.
    #[command(subcommand)]
    Dataset(DatasetCommand),
    /// Check, show or document the config.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make all that was acknowledged durable now.
    Flush {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Give back the space of deleted blocks now, not when it pays.
    Reclaim {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Snapshots of the node on ZFS: blocks, index and pins of one instant.
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// The ledger of pins that a fleet shares: its schema.
    #[command(subcommand)]
    Plane(Plane),
    /// Pins of the fleet: what shall be held by how many nodes, and what is.
    #[command(subcommand)]
    Pin(PinCommand),
    /// Say that a migration fills the node, or that it is whole. For basalt-migrate.
    #[command(hide = true)]
    Mark {
        /// What it is from now on.
        #[arg(value_enum)]
        mark: Mark,
    },
}

/// `basalt init`.
#[derive(Debug, Args)]
pub struct Init {
    /// The new node's folder [default: the one of --node].
    #[arg(value_name = "NODE")]
    pub folder: Option<PathBuf>,
    /// How many shards; each is a log of its own, and costs its own flush: one per device is right [default: 1, or one per --path].
    #[arg(long)]
    pub shards: Option<u32>,
    /// What an acknowledged write promises.
    #[arg(long, value_enum, default_value_t = Durability::Strict)]
    pub durability: Durability,
    /// The new node's id, 32 hex digits, where something else names it already [default: a random one].
    #[arg(long, value_name = "ID")]
    pub node_id: Option<String>,
    /// A folder on another device for the shards; each is one shard [default: in the node's folder].
    #[arg(long = "path", value_name = "FOLDER")]
    pub paths: Vec<PathBuf>,
    /// Make datasets for the node below this one, which is made too and mounted at the node's folder: tank/basalt.
    #[arg(long, value_name = "DATASET", env = "BASALT_INIT_ZFS", conflicts_with = "paths")]
    pub zfs: Option<String>,
    #[command(flatten)]
    pub datasets: DatasetOptions,
    /// The node is about to be filled by basalt-migrate: until that has completed nobody else is served.
    #[arg(long, hide = true)]
    pub migrating: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What `basalt init --zfs` makes its datasets like.
#[derive(Debug, Args)]
pub struct DatasetOptions {
    /// Make a dataset for Kubo's repo folder too, mounted at this new or empty folder: snapshots then have its config and keys.
    #[arg(long, value_name = "FOLDER", requires = "zfs")]
    pub repo: Option<PathBuf>,
    /// A property over the defaults, by the part of the node that it is for (node, shards, keyspace, repo); may be given several times.
    #[arg(long = "property", value_name = "PART.NAME=VALUE", requires = "zfs")]
    pub properties: Vec<String>,
    /// Encrypt the datasets by the raw key (32 bytes) in this file, which has to stay there.
    #[arg(long, value_name = "FILE", requires = "zfs")]
    pub encryption_key: Option<PathBuf>,
    /// Only show what would be done.
    #[arg(long, requires = "zfs")]
    pub dry_run: bool,
    /// Also do what takes a dataset that is there already.
    #[arg(long, requires = "zfs")]
    pub yes: bool,
}

/// `basalt dataset`.
#[derive(Debug, Subcommand)]
pub enum DatasetCommand {
    /// Show the steps that make what is there what is declared; changes nothing.
    Plan(DatasetSource),
    /// Show those steps, then do them. Nothing is destroyed; what interrupts or takes something over wants --yes.
    Apply {
        #[command(flatten)]
        source: DatasetSource,
        /// Also do the steps that have a risk.
        #[arg(long)]
        yes: bool,
    },
    /// List the node's datasets with what they use.
    List(DatasetSource),
    /// Say how what is there differs from what is declared, and why that matters; exit code 1 where it does.
    Drift(DatasetSource),
}

/// Which datasets are meant.
#[derive(Debug, Args)]
pub struct DatasetSource {
    /// The node's dataset, where it isn't mounted and so the node's folder is empty.
    #[arg(long, value_name = "DATASET")]
    pub zfs: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `basalt mark`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mark {
    /// It is whole, and takes clients.
    Ready,
    /// Only a migration is served.
    Migrating,
}

/// The durability classes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Durability {
    /// It is on stable storage when it returns.
    Strict,
    /// Blocks within a second, and always before any pin or name that came after them.
    Ordered,
    /// Within a second, and at Sync.
    Relaxed,
}

/// `basalt agent`.
#[derive(Debug, Args)]
pub struct Agent {
    /// Close the node and end some seconds after the last connection; opens no TCP port, hands over when asked. For Kubo's plugin.
    #[arg(long)]
    pub exit_when_idle: bool,
    #[command(flatten)]
    pub config: ConfigSource,
}

/// Where the config comes from.
#[derive(Debug, Default, Args)]
pub struct ConfigSource {
    /// The config file [default: basalt.toml in the node's folder, if there is one].
    #[arg(long, env = "BASALT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one setting over file and environment, like log.level=debug; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Short for --set log.level=LEVEL.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Short for --set http.listen=ADDRESS.
    #[arg(long, value_name = "ADDRESS")]
    pub http_listen: Option<String>,
}

/// `basalt status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Fail (exit code 3) where nobody serves the node, instead of looking into its folder.
    #[arg(long)]
    pub served: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `basalt doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// The config file to check [default: basalt.toml in the node's folder, if there is one].
    #[arg(long, env = "BASALT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `basalt verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Hash every block against its multihash too.
    #[arg(long)]
    pub hash: bool,
    /// Only list what is quarantined already; reads nothing back.
    #[arg(long, conflicts_with = "hash")]
    pub quarantined: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `basalt scrub`.
#[derive(Debug, Args)]
pub struct Scrub {
    /// What it shall do [default: nothing else than before].
    #[arg(value_enum)]
    pub action: Option<ScrubAction>,
    /// With start: bytes a second until the pass ends, as in 256MiB, instead of [scrub] rate_bytes.
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    pub rate: Option<u64>,
    /// With start: hash blocks against their multihashes too.
    #[arg(long)]
    pub hash: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What `basalt scrub` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScrubAction {
    /// Begin a pass over everything now.
    Start,
    /// End the pass where it is; the next one begins at the beginning.
    Stop,
    /// Hold, over restarts too.
    Pause,
    /// Go on.
    Resume,
}

pub(crate) fn rate(text: &str) -> Result<u64, String> {
    basalt_node::config::bytes(text)
        .filter(|rate| *rate > 0)
        .ok_or_else(|| "write a number of bytes a second, or one with a unit such as 64MiB".to_owned())
}

/// What every snapshot command takes.
#[derive(Clone, Debug, Args)]
pub struct SnapshotOptions {
    /// A dataset of the node, metadata first, where they can't be found by its folder; may be given several times [default: the node's datasets].
    #[arg(long = "dataset", value_name = "DATASET")]
    pub datasets: Vec<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `basalt snapshot`. SET is a name, a part of one that is its own alone (its time, its last 8 digits), or `latest`.
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Take a set: a snapshot of each of the node's datasets, while everything goes on.
    Take {
        #[command(flatten)]
        options: SnapshotOptions,
    },
    /// All sets, the youngest last, and restores that wait to be confirmed. Settles what was left half done.
    List {
        /// Also what each set holds that nothing else does. Reads every snapshot.
        #[arg(long)]
        space: bool,
        #[command(flatten)]
        options: SnapshotOptions,
    },
    /// Which blocks and pins differ from one set to another, or to the node as it is now (while nobody serves it).
    Diff {
        /// The older one.
        #[arg(value_name = "SET")]
        from: String,
        /// The younger one [default: the node as it is].
        #[arg(value_name = "SET")]
        to: Option<String>,
        /// Only count the blocks.
        #[arg(long)]
        summary: bool,
        #[command(flatten)]
        options: SnapshotOptions,
    },
    /// Serve a set as a node of its own, for reading only, with a repo for `ipfs cat`, until SIGTERM or SIGINT.
    Mount {
        /// The set.
        set: String,
        /// A new or empty folder for it.
        #[arg(value_name = "FOLDER")]
        at: PathBuf,
        #[command(flatten)]
        options: SnapshotOptions,
    },
    /// Put a set in the place of the node; what it replaces stands aside until it is confirmed or undone. Without --yes it only says what would be.
    Restore {
        /// The set.
        #[arg(required_unless_present_any = ["confirm", "undo"])]
        set: Option<String>,
        /// Destroy what the restore of this id (or the `latest`) has replaced.
        #[arg(long, value_name = "ID", conflicts_with_all = ["set", "undo"])]
        confirm: Option<String>,
        /// Put back what the restore of this id (or the `latest`) has replaced.
        #[arg(long, value_name = "ID", conflicts_with = "set")]
        undo: Option<String>,
        /// Do it.
        #[arg(long)]
        yes: bool,
        /// Don't compare the set with the node as it is, which reads both indexes.
        #[arg(long)]
        no_diff: bool,
        #[command(flatten)]
        options: SnapshotOptions,
    },
    /// Destroy what the policy doesn't keep. Without --yes it only says what would be.
    Prune {
        /// Give the reasons for every set, also for those that are kept.
        #[arg(long)]
        explain: bool,
        /// Do it.
        #[arg(long)]
        yes: bool,
        /// Sets that are not whole go too.
        #[arg(long)]
        incomplete: bool,
        /// Believe the times of all sets, though they contradict the order in which they were taken.
        #[arg(long)]
        trust_times: bool,
        #[command(flatten)]
        options: SnapshotOptions,
    },
    /// Hold a set, so that nothing destroys it until it is released.
    Hold {
        /// The set.
        set: String,
        /// The hold's name.
        #[arg(long, default_value = "keep")]
        tag: String,
        /// Release it instead.
        #[arg(long)]
        release: bool,
        #[command(flatten)]
        options: SnapshotOptions,
    },
    /// The policy and the schedule, as they are set in [snapshots], and what they mean now.
    Policy {
        #[command(flatten)]
        options: SnapshotOptions,
    },
}

/// `basalt plane`.
#[derive(Debug, Subcommand)]
pub enum Plane {
    /// Make what the schema lacks. Any number of nodes may do it at the same time.
    Migrate {
        #[command(flatten)]
        source: ConfigSource,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Which migrations were made, and which are pending.
    Status {
        #[command(flatten)]
        source: ConfigSource,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// The nodes that are registered: peer id, space, shards, versions, when they last told of themselves.
    Nodes {
        #[command(flatten)]
        source: ConfigSource,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Look for drift at this node: what is wanted and not held, held and not wanted, held and damaged. Each is a line. Exit code 1 if any is left.
    Drift {
        /// Pin and unpin at Kubo, so that what is held is what is wanted. What nobody decided about is not touched.
        #[arg(long)]
        repair: bool,
        /// With --repair: only say what would be done.
        #[arg(long, requires = "repair")]
        dry_run: bool,
        /// With --repair: at most so many a second; 0: as fast as it goes.
        #[arg(long, default_value_t = 5.0, value_name = "RATE")]
        rate: f64,
        /// Look at what this peer should hold, instead of this node's Kubo. Then nothing is repaired.
        #[arg(long, value_name = "ID", conflicts_with = "repair")]
        peer: Option<String>,
        /// What was decided is no drift for so many seconds [default: as [plane] drift_grace_s].
        #[arg(long, value_name = "SECONDS")]
        grace: Option<u64>,
        #[command(flatten)]
        source: ConfigSource,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Write all of the ledger to a file. Interrupted, it goes on where it was when it is run again.
    Export {
        /// The file; it is made, or gone on with.
        file: PathBuf,
        #[command(flatten)]
        source: ConfigSource,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Take over a file that `export` wrote, of whichever engine. What is newer in the ledger stays. Interrupted, it goes on where it was when it is run again.
    Import {
        /// The file.
        file: PathBuf,
        /// Check all of it, and count what the ledger does not have yet. Nothing is changed.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        source: ConfigSource,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Whether this agent can reach the ledger and work on it; exit code 1 if not, 2 if the config or the credentials are wrong.
    Check {
        #[command(flatten)]
        source: ConfigSource,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// `basalt pin`. The node's agent must run where its ledger is embedded.
#[derive(Debug, Subcommand)]
pub enum PinCommand {
    /// Have some nodes hold the DAG of a CID.
    Add(PinAdd),
    /// Have it held no more, unless another owner wants it.
    Rm(PinRemove),
    /// List pins.
    Ls {
        /// Only those of this owner.
        #[arg(long)]
        owner: Option<String>,
        /// Only those with this tag.
        #[arg(long, requires = "owner")]
        tag: Option<String>,
        #[command(flatten)]
        source: ConfigSource,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Which nodes shall hold a CID, which do, and why others don't.
    Status {
        /// The CID.
        cid: String,
        #[command(flatten)]
        source: ConfigSource,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// `basalt pin add`.
#[derive(Debug, Args)]
pub struct PinAdd {
    /// CIDs; `-`: those in the lines of the standard input.
    #[arg(required = true, value_name = "CID")]
    pub cids: Vec<String>,
    /// Whose pins these are.
    #[arg(long, default_value = "local")]
    pub owner: String,
    /// What the owner calls them.
    #[arg(long)]
    pub name: Option<String>,
    /// A word to find them by; may be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Nodes that shall hold each; they are chosen of those that are registered.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub replicas: u16,
    /// A node that shall hold them, by the peer id of its Kubo, instead of chosen ones; may be given several times.
    #[arg(long = "peer", value_name = "PEER", conflicts_with = "replicas")]
    pub peers: Vec<String>,
    /// Seconds after which they are wanted no more.
    #[arg(long, value_name = "SECONDS")]
    pub expires_in_s: Option<u64>,
    /// How much it hurries.
    #[arg(long, value_enum, default_value = "normal")]
    pub priority: PinPriority,
    #[command(flatten)]
    pub wait: PinWait,
    #[command(flatten)]
    pub source: ConfigSource,
}

/// `basalt pin rm`.
#[derive(Debug, Args)]
pub struct PinRemove {
    /// CIDs; `-`: those in the lines of the standard input.
    #[arg(required = true, value_name = "CID")]
    pub cids: Vec<String>,
    /// Whose pins these are.
    #[arg(long, default_value = "local")]
    pub owner: String,
    #[command(flatten)]
    pub wait: PinWait,
    #[command(flatten)]
    pub source: ConfigSource,
}

/// How `basalt pin` waits.
#[derive(Debug, Args)]
pub struct PinWait {
    /// Wait until every node has done it, and show how far they are; exit code 1 where one gives up.
    #[arg(long)]
    pub wait: bool,
    /// With --wait: give up waiting after so long. The work goes on.
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    pub timeout_s: u64,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `--priority`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PinPriority {
    /// When there is time.
    Low,
    /// In turn.
    Normal,
    /// Before the others.
    High,
}

/// What every import takes.
#[derive(Debug, Args)]
pub struct ImportOptions {
    /// Import though a Kubo is connected. It must be restarted afterwards: it remembers which blocks are absent.
    #[arg(long)]
    pub allow_connected: bool,
    /// Begin at the beginning, even if an earlier import of the same source did not end.
    #[arg(long)]
    pub restart: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `basalt import`.
#[derive(Debug, Subcommand)]
pub enum Import {
    /// A CAR file, version 1 or 2; each block is verified. Run it again to resume.
    Car {
        /// The file; `-` is the standard input.
        file: PathBuf,
        #[command(flatten)]
        options: ImportOptions,
    },
    /// The `blocks` folder of a Kubo repo that keeps them in flatfs; each block is verified. Stop that Kubo first.
    Flatfs {
        /// The folder that holds a SHARDING file, or the repo.
        folder: PathBuf,
        #[command(flatten)]
        options: ImportOptions,
    },
}

/// `basalt export`.
#[derive(Debug, Subcommand)]
pub enum Export {
    /// Blocks as a CARv1: all of them, or the DAGs below some roots.
    ///
    /// Without --root: all blocks in the order of their multihashes, all named as CIDv1 raw, because a node knows no codecs; run it again to
    /// resume. With --root: the blocks that can be reached from there, each under its own CID, parents first, as `ipfs dag export` writes them.
    Car {
        /// The new file; `-` is the standard output.
        file: PathBuf,
        /// Only what can be reached from this root (dag-pb, dag-cbor, raw); may be given several times.
        #[arg(long = "root", value_name = "CID")]
        roots: Vec<String>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// All blocks as a flatfs folder that Kubo can use. Run it again to resume.
    Flatfs {
        /// The folder: new, empty, or a flatfs already.
        folder: PathBuf,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// `basalt config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say what is wrong in a config file: line, and what to write instead.
    Check {
        /// The file [default: basalt.toml in the node's folder].
        file: Option<PathBuf>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Every setting as it would be used now, and who set it.
    Show {
        #[command(flatten)]
        source: ConfigSource,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// The reference page in Markdown: docs/config.md.
    Reference,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }
}
