//! The engine that runs `zfs` and `zpool`.
//!
//! Their arguments and words are the one interface of OpenZFS that stays: the same from 2.1 to 2.4, with JSON from 2.3 on for what lists. The
//! releases that the parsers and the classes of errors were tried on are those in `tests/golden`.

mod parse;
mod process;
mod refusal;

use std::{
    io::{Read, Write},
    ops::ControlFlow,
    path::PathBuf,
    time::Duration,
};

use parse::{Parsed, Rows};
use process::{Answer, Call, Fences, Following};

use crate::{
    Base, Bookmark, BookmarkEntry, Class, DamagedFile, Dataset, DatasetEntry, Delegation, Entity, Error, Event, Hold,
    HoldTag, Holder, Listed, Operation, Pool, PoolEntry, PoolStatus, Property, PropertyName, Reach, Result,
    ResumeToken, RowsOf, Snapshot, SnapshotEntry, SnapshotUse, Stream, Version, When, Zfs, delegation,
    engine::{check_bookmark, check_destroy, check_listing, check_properties, check_rename_snapshot, check_snapshot},
    events::EventReader,
};

/// How the commands are found and how long they may take.
#[derive(Clone, Debug)]
pub struct CliOptions {
    /// The `zfs` command. Default: the first of the usual places that has one.
    pub zfs: PathBuf,
    /// The `zpool` command.
    pub zpool: PathBuf,
    /// How long a command may take before it counts as stuck, and how long a stream may give or take nothing. Default: 2 min; taking many
    /// snapshots on a busy pool of disks takes seconds.
    pub deadline: Duration,
    /// Never asks for JSON, as with releases before 2.3.
    pub text_only: bool,
    /// Whose permissions a remedy speaks of. Default: `$USER`.
    pub user: Option<String>,
}

impl Default for CliOptions {
    fn default() -> CliOptions {
        let find = |name: &str| {
            let places = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/run/current-system/sw/bin"];
            let mut paths = places.iter().map(|place| PathBuf::from(place).join(name));
            paths.find(|path| path.exists()).unwrap_or_else(|| PathBuf::from("/usr/sbin").join(name))
        };
        CliOptions {
            zfs: find("zfs"),
            zpool: find("zpool"),
            deadline: Duration::from_secs(120),
            text_only: false,
            user: std::env::var("USER").ok(),
        }
    }
}

/// ZFS through its commands.
pub struct Cli {
    options: CliOptions,
    version: Version,
    json: bool,
    /// Whether `zfs clone` can leave its clone unmounted.
    clone_unmounted: bool,
    fences: Fences,
    following: Following,
}

impl Cli {
    /// Asks `zfs` for its version, which decides how it is spoken to. Errors: [`Class::NotInstalled`], and [`Class::Unsupported`] before 2.1.
    pub fn new(options: CliOptions) -> Result<Cli> {
        let unknown = Version { tools: (0, 0, 0), module: None };
        let mut cli = Cli {
            options,
            version: unknown,
            json: false,
            clone_unmounted: false,
            fences: Fences::default(),
            following: Following::default(),
        };
        let version = cli.version()?;
        let (major, minor, patch) = version.tools;
        if (major, minor) < (2, 1) {
            let said = format!("OpenZFS {major}.{minor}.{patch} is older than 2.1");
            return Err(Error::new(Operation::Version, "zfs", Class::Unsupported, said));
        }
        cli.json = !cli.options.text_only && (major, minor) >= (2, 3);
        cli.clone_unmounted = (major, minor) >= (2, 4);
        cli.version = version;
        Ok(cli)
    }

    fn call<'a>(
        &'a self,
        operation: Operation,
        subject: &'a str,
        pool: Option<&'a Pool>,
        arguments: Vec<String>,
    ) -> Call<'a> {
        Call { operation, subject, pool, program: &self.options.zfs, arguments, deadline: self.options.deadline }
    }

    /// Turns a command's refusal into an error.
    fn judge(&self, call: &Call<'_>, answer: Answer) -> Result<Vec<u8>> {
        if answer.status.success() {
            return Ok(answer.stdout);
        }
        // After what is wrong, some refusals explain the command from the beginning.
        let said = answer.stderr.split("\nusage:").next().unwrap_or_default();
        let class = refusal::classify(call.operation, said);
        let said = if said.trim().is_empty() {
            format!("it said nothing and ended with {}", answer.status)
        } else {
            said.to_owned()
        };
        let error = Error::new(call.operation, call.subject, class, said);
        Err(match &self.options.user {
            Some(user) => error.with_user(user),
            None => error,
        })
    }

    fn zfs(&self, operation: Operation, subject: &str, pool: &Pool, arguments: Vec<String>) -> Result<Vec<u8>> {
        let call = self.call(operation, subject, Some(pool), arguments);
        let answer = call.run(&self.fences, None)?;
        self.judge(&call, answer)
    }

    fn rows<T>(
        &self,
        pool: &Pool,
        subject: &str,
        arguments: &[&str],
        columns: &'static [&'static str],
        read: impl Fn(Rows) -> Parsed<T>,
    ) -> Result<T> {
        let mut all = vec!["list".to_owned()];
        all.extend(if self.json { ["-j", "-p"] } else { ["-H", "-p"] }.map(str::to_owned));
        all.extend(arguments.iter().map(ToString::to_string));
        all.extend(["-o".to_owned(), columns.join(","), subject.to_owned()]);
        let bytes = self.zfs(Operation::List, subject, pool, all)?;
        let rows =
            if self.json { Rows::from_json(&bytes, "datasets", columns) } else { Rows::from_text(&bytes, columns) };
        rows.and_then(read).map_err(|why| Error::new(Operation::List, subject, Class::Parse, why))
    }

    fn status(&self, pool: &Pool, files: bool) -> Result<Vec<u8>> {
        let mut arguments = words(["status", "-p", "-P"]);
        // JSON counts slow answers without being asked.
        arguments.push(if self.json { "-j" } else { "-s" }.to_owned());
        arguments.extend(files.then(|| "-v".to_owned()));
        arguments.push(pool.to_string());
        let call = Call {
            program: &self.options.zpool,
            ..self.call(Operation::PoolStatus, pool.as_str(), Some(pool), arguments)
        };
        call.run(&self.fences, None).and_then(|answer| self.judge(&call, answer))
    }

    /// What keeps a snapshot or dataset that is busy; nothing where it can't be found out.
    fn with_holders(&self, error: Error, find: impl Fn() -> Result<Vec<Holder>>) -> Error {
        if error.class() != Class::Busy {
            return error;
        }
        match find() {
            Ok(holders) => error.with_holders(holders),
            Err(e) => {
                tracing::debug!(subject = error.subject(), "what keeps it can't be found out: {e}");
                error
            }
        }
    }

    fn holders_of_snapshots(&self, dataset: &Dataset, snapshots: &[Snapshot]) -> Result<Vec<Holder>> {
        let mut holders = Vec::new();
        for kept in self.snapshot_uses(dataset)?.into_iter().filter(|s| snapshots.contains(&s.entry.name)) {
            holders.extend(kept.clones.into_iter().map(Holder::Clone));
            if kept.holds > 0 {
                holders.extend(self.holds(&kept.entry.name)?.into_iter().map(|h| Holder::Hold(h.tag)));
            }
        }
        Ok(holders)
    }

    fn stream_arguments(stream: &Stream) -> (String, Pool, Vec<String>) {
        match stream {
            Stream::Snapshot { snapshot, base, raw } => {
                let mut arguments: Vec<String> = ["-L", "-c"].map(str::to_owned).to_vec();
                if *raw {
                    arguments.push("-w".into());
                }
                if let Some(base) = base {
                    arguments.push("-i".into());
                    arguments.push(match base {
                        Base::Snapshot(s) => s.to_string(),
                        Base::Bookmark(b) => b.to_string(),
                    });
                }
                arguments.push(snapshot.to_string());
                (snapshot.to_string(), snapshot.dataset().pool(), arguments)
            }
            // Only ZFS can read which snapshot the token is of, so no pool of it is fenced but one that no pool can be named.
            Stream::Resume(token) => {
                ("a resume token".into(), Pool::unknown(), vec!["-t".into(), token.as_str().into()])
            }
        }
    }
}

/// `-o name=value` for each.
fn options(properties: &[(PropertyName, String)]) -> impl Iterator<Item = String> {
    properties.iter().flat_map(|(name, value)| ["-o".to_owned(), format!("{name}={value}")])
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

impl Zfs for Cli {
    fn engine(&self) -> &'static str {
        "cli"
    }

    fn version(&self) -> Result<Version> {
        if self.version.tools != (0, 0, 0) {
            return Ok(self.version.clone());
        }
        let call = self.call(Operation::Version, "zfs", None, words(["version"]));
        let answer = call.run(&self.fences, None)?;
        // Without the module it tells its own version and fails.
        parse::version(&answer.stdout).or_else(|why| {
            self.judge(&call, answer)?;
            Err(Error::new(Operation::Version, "zfs", Class::Parse, why))
        })
    }

    fn pools(&self) -> Result<Vec<PoolEntry>> {
        let columns = parse::POOL_COLUMNS;
        let mut arguments = words(["list"]);
        arguments.extend(if self.json { ["-j", "-p"] } else { ["-H", "-p"] }.map(str::to_owned));
        arguments.extend(["-o".to_owned(), columns.join(",")]);
        let call = Call { program: &self.options.zpool, ..self.call(Operation::Pools, "pools", None, arguments) };
        let bytes = match call.run(&self.fences, None).and_then(|answer| self.judge(&call, answer)) {
            Err(e) if e.class() == Class::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let rows = if self.json { Rows::from_json(&bytes, "pools", columns) } else { Rows::from_text(&bytes, columns) };
        rows.and_then(parse::pools).map_err(|why| Error::new(Operation::Pools, "pools", Class::Parse, why))
    }

    fn pool_status(&self, pool: &Pool) -> Result<PoolStatus> {
        let bytes = self.status(pool, false)?;
        let status =
            if self.json { parse::status_from_json(&bytes, pool) } else { parse::status_from_text(&bytes, pool) };
        status.map_err(|why| Error::new(Operation::PoolStatus, pool, Class::Parse, why))
    }

    fn datasets(&self, root: &Dataset, reach: Reach) -> Result<Vec<DatasetEntry>> {
        let arguments: &[&str] = match reach {
            Reach::Itself => &["-t", "filesystem,volume"],
            Reach::Children => &["-t", "filesystem,volume", "-d", "1"],
            Reach::Descendants => &["-t", "filesystem,volume", "-r"],
        };
        self.rows(&root.pool(), root.as_str(), arguments, parse::DATASET_COLUMNS, parse::datasets)
    }

    fn snapshots(&self, dataset: &Dataset) -> Result<Vec<SnapshotEntry>> {
        self.rows(
            &dataset.pool(),
            dataset.as_str(),
            &["-t", "snapshot", "-d", "1"],
            parse::SNAPSHOT_COLUMNS,
            parse::snapshots,
        )
    }

    fn snapshot_uses(&self, dataset: &Dataset) -> Result<Vec<SnapshotUse>> {
        self.rows(
            &dataset.pool(),
            dataset.as_str(),
            &["-t", "snapshot", "-d", "1"],
            parse::SNAPSHOT_USE_COLUMNS,
            parse::snapshot_uses,
        )
    }

    fn listing(&self, datasets: &[Dataset], rows: RowsOf, names: &[PropertyName]) -> Result<Vec<Listed>> {
        let Some(pool) = check_listing(datasets)? else { return Ok(Vec::new()) };
        let known = |name: &&PropertyName| name.as_str() != "snapshots_changed" || self.version.tools >= (2, 2, 0);
        let asked: Vec<&str> = names.iter().filter(known).map(PropertyName::as_str).collect();
        let mut arguments = words(["list", "-H", "-p", "-t"]);
        arguments.extend(match rows {
            RowsOf::Datasets => words(["filesystem,volume", "-o"]),
            RowsOf::Snapshots => words(["snapshot", "-d", "1", "-o"]),
        });
        arguments.push(["name"].into_iter().chain(asked.iter().copied()).collect::<Vec<_>>().join(","));
        arguments.extend(datasets.iter().map(Dataset::to_string));
        let subject = datasets.iter().map(Dataset::as_str).collect::<Vec<_>>().join(" ");
        let call = self.call(Operation::List, &subject, Some(&pool), arguments);
        let answer = call.run(&self.fences, None)?;
        // It lists those that are there, complains of each that isn't, and fails.
        let mut complaints = answer.stderr.lines().filter(|line| !line.trim().is_empty()).peekable();
        let bytes = match complaints.peek().is_some()
            && complaints.all(|line| refusal::classify(Operation::List, line) == Class::NotFound)
        {
            true => answer.stdout,
            false => self.judge(&call, answer)?,
        };
        let listed = parse::listing(&bytes, rows, names, &asked);
        listed.map_err(|why| Error::new(Operation::List, subject, Class::Parse, why))
    }

    fn damaged_files(&self, pool: &Pool) -> Result<Vec<DamagedFile>> {
        let bytes = self.status(pool, true)?;
        let files = if self.json { parse::errors_from_json(&bytes, pool) } else { parse::errors_from_text(&bytes) };
        files.map_err(|why| Error::new(Operation::PoolStatus, pool, Class::Parse, why))
    }

    fn events(&self, to: &mut dyn FnMut(Option<Event>) -> ControlFlow<()>) -> Result<()> {
        let arguments = words(["events", "-H", "-v", "-f"]);
        let call = Call { program: &self.options.zpool, ..self.call(Operation::Events, "all pools", None, arguments) };
        let mut reader = EventReader::default();
        let answer = call.follow(&self.following, &mut |line| match line {
            None => to(None),
            Some(line) => reader.line(line).map_or(ControlFlow::Continue(()), |event| to(Some(event))),
        })?;
        match answer {
            None => Ok(()),
            Some(answer) => {
                self.judge(&call, answer)?;
                Err(Error::new(Operation::Events, "all pools", Class::Io, "the command ended by itself"))
            }
        }
    }

    fn snapshots_changed_unix_s(&self, dataset: &Dataset) -> Result<Option<u64>> {
        if self.version.tools < (2, 2, 0) {
            return Ok(None);
        }
        let arguments = words(["get", "-H", "-p", "-o", "value", "snapshots_changed", dataset.as_str()]);
        let bytes = self.zfs(Operation::Get, dataset.as_str(), &dataset.pool(), arguments)?;
        let text = String::from_utf8_lossy(&bytes);
        match text.trim() {
            "-" | "" => Ok(None),
            time => time
                .parse()
                .map(Some)
                .map_err(|_| Error::new(Operation::Get, dataset, Class::Parse, format!("{time:?} is no time"))),
        }
    }

    fn bookmarks(&self, dataset: &Dataset) -> Result<Vec<BookmarkEntry>> {
        self.rows(
            &dataset.pool(),
            dataset.as_str(),
            &["-t", "bookmark", "-d", "1"],
            parse::SNAPSHOT_COLUMNS,
            parse::bookmarks,
        )
    }

    fn holds(&self, snapshot: &Snapshot) -> Result<Vec<Hold>> {
        let bytes = self.zfs(
            Operation::Holds,
            snapshot.as_str(),
            &snapshot.dataset().pool(),
            words(["holds", "-H", snapshot.as_str()]),
        )?;
        parse::holds(&bytes).map_err(|why| Error::new(Operation::Holds, snapshot, Class::Parse, why))
    }

    fn properties(&self, entity: &Entity, names: &[PropertyName]) -> Result<Vec<Property>> {
        let names = if names.is_empty() {
            "all".to_owned()
        } else {
            names.iter().map(PropertyName::as_str).collect::<Vec<_>>().join(",")
        };
        let mut arguments = if self.json {
            words(["get", "-j", "-p"])
        } else {
            words(["get", "-H", "-p", "-o", "property,value,source"])
        };
        arguments.extend([names, entity.to_string()]);
        let bytes = self.zfs(Operation::Get, entity.as_str(), &entity.pool(), arguments)?;
        let read = if self.json { parse::properties_from_json(&bytes) } else { parse::properties_from_text(&bytes) };
        let mut read = read.map_err(|why| Error::new(Operation::Get, entity, Class::Parse, why))?;
        // As text they come in the order of the question, as JSON by name.
        read.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(read)
    }

    fn delegation(&self, dataset: &Dataset) -> Result<Delegation> {
        let bytes =
            self.zfs(Operation::Allow, dataset.as_str(), &dataset.pool(), words(["allow", dataset.as_str()]))?;
        delegation::parse(&bytes).map_err(|why| Error::new(Operation::Allow, dataset, Class::Parse, why))
    }

    fn create(&self, dataset: &Dataset, properties: &[(PropertyName, String)]) -> Result<()> {
        check_properties(Operation::Create, dataset, properties)?;
        let mut arguments = words(["create", "-u"]);
        arguments.extend(options(properties));
        arguments.push(dataset.to_string());
        self.zfs(Operation::Create, dataset.as_str(), &dataset.pool(), arguments).map(drop)
    }

    fn destroy(&self, dataset: &Dataset) -> Result<()> {
        self.zfs(Operation::Destroy, dataset.as_str(), &dataset.pool(), words(["destroy", dataset.as_str()]))
            .map(drop)
            .map_err(|e| {
                self.with_holders(e, || {
                    let inner = self
                        .datasets(dataset, Reach::Children)?
                        .into_iter()
                        .filter(|d| d.name != *dataset)
                        .map(|d| d.name.to_string());
                    let snapshots = self.snapshots(dataset)?.into_iter().map(|s| s.name.to_string());
                    Ok(inner.chain(snapshots).map(Holder::Child).collect())
                })
            })
    }

    fn rename(&self, dataset: &Dataset, to: &Dataset) -> Result<()> {
        self.zfs(Operation::Rename, dataset.as_str(), &dataset.pool(), words(["rename", dataset.as_str(), to.as_str()]))
            .map(drop)
    }

    fn set(&self, dataset: &Dataset, properties: &[(PropertyName, String)]) -> Result<()> {
        check_properties(Operation::Set, dataset, properties)?;
        if properties.is_empty() {
            return Ok(());
        }
        let mut arguments = words(["set"]);
        arguments.extend(properties.iter().map(|(name, value)| format!("{name}={value}")));
        arguments.push(dataset.to_string());
        self.zfs(Operation::Set, dataset.as_str(), &dataset.pool(), arguments).map(drop)
    }

    fn inherit(&self, dataset: &Dataset, name: &PropertyName) -> Result<()> {
        self.zfs(
            Operation::Inherit,
            dataset.as_str(),
            &dataset.pool(),
            words(["inherit", name.as_str(), dataset.as_str()]),
        )
        .map(drop)
    }

    fn snapshot(&self, snapshots: &[Snapshot], properties: &[(PropertyName, String)]) -> Result<()> {
        let pool = check_snapshot(snapshots, properties)?;
        let mut arguments = words(["snapshot"]);
        arguments.extend(options(properties));
        arguments.extend(snapshots.iter().map(Snapshot::to_string));
        let subject = snapshots.iter().map(Snapshot::as_str).collect::<Vec<_>>().join(" ");
        self.zfs(Operation::Snapshot, &subject, &pool, arguments).map(drop)
    }

    fn rename_snapshot(&self, snapshot: &Snapshot, to: &Snapshot) -> Result<()> {
        check_rename_snapshot(snapshot, to)?;
        let arguments = words(["rename", snapshot.as_str(), to.as_str()]);
        self.zfs(Operation::RenameSnapshot, snapshot.as_str(), &snapshot.dataset().pool(), arguments).map(drop)
    }

    fn destroy_snapshots(&self, dataset: &Dataset, snapshots: &[Snapshot], when: When) -> Result<()> {
        check_destroy(dataset, snapshots)?;
        let mut arguments = words(["destroy"]);
        if when == When::Free {
            arguments.push("-d".into());
        }
        let names = snapshots.iter().map(Snapshot::name).collect::<Vec<_>>().join(",");
        let subject = format!("{dataset}@{names}");
        arguments.push(subject.clone());
        self.zfs(Operation::DestroySnapshots, &subject, &dataset.pool(), arguments)
            .map(drop)
            .map_err(|e| self.with_holders(e, || self.holders_of_snapshots(dataset, snapshots)))
    }

    fn bookmark(&self, snapshot: &Snapshot, bookmark: &Bookmark) -> Result<()> {
        check_bookmark(snapshot, bookmark)?;
        let arguments = words(["bookmark", snapshot.as_str(), bookmark.as_str()]);
        self.zfs(Operation::Bookmark, snapshot.as_str(), &snapshot.dataset().pool(), arguments).map(drop)
    }

    fn destroy_bookmark(&self, bookmark: &Bookmark) -> Result<()> {
        let pool = bookmark.dataset().pool();
        self.zfs(Operation::DestroyBookmark, bookmark.as_str(), &pool, words(["destroy", bookmark.as_str()])).map(drop)
    }

    fn hold(&self, snapshot: &Snapshot, tag: &HoldTag) -> Result<()> {
        let pool = snapshot.dataset().pool();
        self.zfs(Operation::Hold, snapshot.as_str(), &pool, words(["hold", tag.as_str(), snapshot.as_str()])).map(drop)
    }

    fn release(&self, snapshot: &Snapshot, tag: &HoldTag) -> Result<()> {
        let pool = snapshot.dataset().pool();
        self.zfs(Operation::Release, snapshot.as_str(), &pool, words(["release", tag.as_str(), snapshot.as_str()]))
            .map(drop)
    }

    fn rollback(&self, snapshot: &Snapshot) -> Result<()> {
        let dataset = snapshot.dataset();
        self.zfs(Operation::Rollback, snapshot.as_str(), &dataset.pool(), words(["rollback", snapshot.as_str()]))
            .map(drop)
            .map_err(|e| {
                self.with_holders(e, || {
                    let all = self.snapshots(&dataset)?;
                    let Some(at) = all.iter().find(|s| s.name == *snapshot).map(|s| s.createtxg) else {
                        return Ok(Vec::new());
                    };
                    let younger = all.iter().filter(|s| s.createtxg > at).map(|s| s.name.to_string());
                    let marks =
                        self.bookmarks(&dataset)?.into_iter().filter(|b| b.createtxg > at).map(|b| b.name.to_string());
                    Ok(younger.chain(marks).map(Holder::Younger).collect())
                })
            })
    }

    fn clone_snapshot(
        &self,
        snapshot: &Snapshot,
        dataset: &Dataset,
        properties: &[(PropertyName, String)],
    ) -> Result<()> {
        check_properties(Operation::Clone, dataset, properties)?;
        let mut arguments = words(["clone"]);
        if self.clone_unmounted {
            arguments.push("-u".into());
        }
        arguments.extend(options(properties));
        arguments.extend([snapshot.to_string(), dataset.to_string()]);
        let pool = dataset.pool();
        match self.zfs(Operation::Clone, snapshot.as_str(), &pool, arguments) {
            // Before `-u`: it is made, and what then fails is to mount it.
            Err(e) if !self.clone_unmounted && e.detail().contains("filesystem successfully created") => Ok(()),
            Err(e) => Err(e),
            Ok(_) if !self.clone_unmounted => match self.unmount(dataset) {
                Err(e) if e.class() != Class::Already => Err(e),
                _ => Ok(()),
            },
            Ok(_) => Ok(()),
        }
    }

    fn promote(&self, dataset: &Dataset) -> Result<()> {
        self.zfs(Operation::Promote, dataset.as_str(), &dataset.pool(), words(["promote", dataset.as_str()])).map(drop)
    }

    fn mount(&self, dataset: &Dataset) -> Result<()> {
        self.zfs(Operation::Mount, dataset.as_str(), &dataset.pool(), words(["mount", dataset.as_str()])).map(drop)
    }

    fn unmount(&self, dataset: &Dataset) -> Result<()> {
        self.zfs(Operation::Unmount, dataset.as_str(), &dataset.pool(), words(["unmount", dataset.as_str()])).map(drop)
    }

    fn load_key(&self, dataset: &Dataset, key: Option<&[u8]>) -> Result<()> {
        let mut arguments = words(["load-key"]);
        if key.is_some() {
            arguments.extend(words(["-L", "prompt"]));
        }
        arguments.push(dataset.to_string());
        let pool = dataset.pool();
        let call = self.call(Operation::LoadKey, dataset.as_str(), Some(&pool), arguments);
        let answer = call.run(&self.fences, key.map(<[u8]>::to_vec))?;
        self.judge(&call, answer).map(drop)
    }

    fn unload_key(&self, dataset: &Dataset) -> Result<()> {
        self.zfs(Operation::UnloadKey, dataset.as_str(), &dataset.pool(), words(["unload-key", dataset.as_str()]))
            .map(drop)
    }

    fn send_size_bytes(&self, stream: &Stream) -> Result<u64> {
        let (subject, pool, rest) = Cli::stream_arguments(stream);
        let mut arguments = words(["send", "-n", "-v", "-P"]);
        arguments.extend(rest);
        let bytes = self.zfs(Operation::Send, &subject, &pool, arguments)?;
        parse::send_size(&String::from_utf8_lossy(&bytes))
            .map_err(|why| Error::new(Operation::Send, &subject, Class::Parse, why))
    }

    fn send(&self, stream: &Stream, to: &mut dyn Write) -> Result<()> {
        let (subject, pool, rest) = Cli::stream_arguments(stream);
        let mut arguments = words(["send"]);
        arguments.extend(rest);
        let call = self.call(Operation::Send, &subject, Some(&pool), arguments);
        let answer = call.run_to(&self.fences, to)?;
        self.judge(&call, answer).map(drop)
    }

    fn receive(&self, dataset: &Dataset, properties: &[(PropertyName, String)], from: &mut dyn Read) -> Result<()> {
        check_properties(Operation::Receive, dataset, properties)?;
        let mut arguments = words(["receive", "-s", "-u"]);
        arguments.extend(options(properties));
        arguments.push(dataset.to_string());
        let pool = dataset.pool();
        let call = self.call(Operation::Receive, dataset.as_str(), Some(&pool), arguments);
        let answer = call.run_from(&self.fences, from)?;
        self.judge(&call, answer).map(drop)
    }

    fn resume_token(&self, dataset: &Dataset) -> Result<Option<ResumeToken>> {
        let arguments = words(["get", "-H", "-p", "-o", "value", "receive_resume_token", dataset.as_str()]);
        let bytes = self.zfs(Operation::Get, dataset.as_str(), &dataset.pool(), arguments)?;
        let text = String::from_utf8_lossy(&bytes);
        match text.trim() {
            "-" | "" => Ok(None),
            token => match ResumeToken::parse(token) {
                Some(token) => Ok(Some(token)),
                None => Err(Error::new(Operation::Get, dataset, Class::Parse, "its receive_resume_token is no token")),
            },
        }
    }

    fn abort_receive(&self, dataset: &Dataset) -> Result<()> {
        self.zfs(Operation::AbortReceive, dataset.as_str(), &dataset.pool(), words(["receive", "-A", dataset.as_str()]))
            .map(drop)
    }
}
