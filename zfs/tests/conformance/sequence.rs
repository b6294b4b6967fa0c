//! Random operations from a seed, on a small set of names so that they meet: on the model alone, for what must always hold, and on the model and
//! a real ZFS side by side, for the same results, the same classes of errors and the same state after each.

use std::collections::BTreeMap;

use basalt_zfs::{Base, Class, Dataset, Entity, HoldTag, PropertyName, Reach, Snapshot, Stream, When};

use crate::world::{World, class};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Names relative to the dataset of the test; `""` is that itself.
#[derive(Clone, Debug)]
enum Step {
    Create(String),
    Destroy(String),
    Rename(String, String),
    Mount(String),
    Unmount(String),
    Write(String, String, u64),
    Set(String, &'static str, &'static str),
    Inherit(String, &'static str),
    Snapshot(Vec<(String, String)>),
    RenameSnapshot(String, String, String),
    DestroySnapshots(String, Vec<String>, When),
    Bookmark(String, String, String),
    DestroyBookmark(String, String),
    Hold(String, String, String),
    Release(String, String, String),
    Rollback(String, String),
    Clone(String, String, String),
    Promote(String),
    /// From a snapshot, and from which base, into where; cut after so many percent.
    Replicate {
        from: String,
        snapshot: String,
        base: Option<String>,
        mark: bool,
        to: String,
        percent: Option<u64>,
    },
    Abort(String),
}

const DATASETS: &[&str] = &["a", "b", "a/x", "c"];
const SNAPSHOTS: &[&str] = &["1", "2", "3"];
const TAGS: &[&str] = &["t", "u"];

fn step(r: &mut Random) -> Step {
    let d = r.one(DATASETS).to_owned();
    let e = r.one(DATASETS).to_owned();
    let s = r.one(SNAPSHOTS).to_owned();
    let t = r.one(SNAPSHOTS).to_owned();
    match r.below(30) {
        0..=2 => Step::Create(d),
        3 => Step::Destroy(d),
        4 => Step::Rename(d, e),
        5 | 6 => Step::Mount(d),
        7 => Step::Unmount(d),
        8..=10 => Step::Write(d, format!("f{}", r.below(3)), 1 + r.below(200_000)),
        11 => {
            let (name, value) = [
                ("recordsize", "1M"),
                ("recordsize", "3"),
                ("compression", "zstd"),
                ("basalt:x", "1"),
                ("nonsense", "1"),
                ("readonly", "on"),
            ][r.below(6) as usize];
            Step::Set(d, name, value)
        }
        12 => Step::Inherit(d, r.one(&["recordsize", "compression", "basalt:x", "readonly", "used"]) as &'static str),
        13..=15 => {
            let mut all = vec![(d.clone(), s.clone())];
            if d != e && r.below(3) == 0 {
                all.push((e, s));
            }
            Step::Snapshot(all)
        }
        16 => Step::RenameSnapshot(d, s, t),
        17 | 18 => {
            let all = if s == t || r.below(2) == 0 { vec![s] } else { vec![s, t] };
            Step::DestroySnapshots(d, all, if r.below(3) == 0 { When::Free } else { When::Now })
        }
        19 => Step::Bookmark(d, s, t),
        20 => Step::DestroyBookmark(d, s),
        21 => Step::Hold(d, s, r.one(TAGS).to_owned()),
        22 => Step::Release(d, s, r.one(TAGS).to_owned()),
        23 => Step::Rollback(d, s),
        24 | 25 => Step::Clone(d, s, e),
        26 => Step::Promote(d),
        27 | 28 => {
            let base = (r.below(2) == 0).then_some(t);
            let percent = (r.below(4) == 0).then(|| 40 + r.below(30));
            Step::Replicate { from: d, snapshot: s, base, mark: r.below(3) == 0, to: e, percent }
        }
        _ => Step::Abort(d),
    }
}

struct Side<'a> {
    world: &'a World,
    root: Dataset,
}

impl Side<'_> {
    fn at(&self, name: &str) -> Dataset {
        self.root.child(name).unwrap()
    }

    fn snap(&self, dataset: &str, name: &str) -> Snapshot {
        self.at(dataset).snapshot(name).unwrap()
    }

    fn run(&self, step: &Step) -> Result<(), Class> {
        let zfs = &*self.world.zfs;
        let tag = |t: &str| t.parse::<HoldTag>().unwrap();
        let property = |name: &str| name.parse::<PropertyName>().unwrap();
        class(match step {
            Step::Create(d) => zfs.create(&self.at(d), &[]),
            Step::Destroy(d) => zfs.destroy(&self.at(d)),
            Step::Rename(d, e) => zfs.rename(&self.at(d), &self.at(e)),
            Step::Mount(d) => zfs.mount(&self.at(d)),
            Step::Unmount(d) => zfs.unmount(&self.at(d)),
            Step::Write(d, file, bytes) => {
                if zfs.datasets(&self.at(d), Reach::Itself).is_err() {
                    return Err(Class::NotFound);
                }
                return self.world.write(&self.at(d), file, *bytes);
            }
            Step::Set(d, name, value) => zfs.set(&self.at(d), &[(property(name), (*value).to_owned())]),
            Step::Inherit(d, name) => zfs.inherit(&self.at(d), &property(name)),
            Step::Snapshot(all) => zfs.snapshot(&all.iter().map(|(d, s)| self.snap(d, s)).collect::<Vec<_>>(), &[]),
            Step::RenameSnapshot(d, s, t) => zfs.rename_snapshot(&self.snap(d, s), &self.snap(d, t)),
            Step::DestroySnapshots(d, all, when) => {
                zfs.destroy_snapshots(&self.at(d), &all.iter().map(|s| self.snap(d, s)).collect::<Vec<_>>(), *when)
            }
            Step::Bookmark(d, s, m) => zfs.bookmark(&self.snap(d, s), &self.at(d).bookmark(m).unwrap()),
            Step::DestroyBookmark(d, m) => zfs.destroy_bookmark(&self.at(d).bookmark(m).unwrap()),
            Step::Hold(d, s, t) => zfs.hold(&self.snap(d, s), &tag(t)),
            Step::Release(d, s, t) => zfs.release(&self.snap(d, s), &tag(t)),
            Step::Rollback(d, s) => zfs.rollback(&self.snap(d, s)),
            Step::Clone(d, s, e) => zfs.clone_snapshot(&self.snap(d, s), &self.at(e), &[]),
            Step::Promote(d) => zfs.promote(&self.at(d)),
            Step::Replicate { from, snapshot, base, mark, to, percent } => {
                let base = base.as_ref().map(|b| match mark {
                    true => Base::Bookmark(self.at(from).bookmark(b).unwrap()),
                    false => Base::Snapshot(self.snap(from, b)),
                });
                let mut bytes = Vec::new();
                match zfs.send(&Stream::Snapshot { snapshot: self.snap(from, snapshot), base, raw: false }, &mut bytes)
                {
                    Err(e) => Err(e),
                    Ok(()) => {
                        let cut = percent.map_or(bytes.len(), |p| bytes.len() * p as usize / 100);
                        match zfs.receive(&self.at(to), &[], &mut &bytes[..cut]) {
                            // How much of a short stream is enough to keep is ZFS's to decide: it is dropped again, and only known as cut.
                            Err(e)
                                if percent.is_some() && matches!(e.class(), Class::Incomplete | Class::BadStream) =>
                            {
                                let _dropped = zfs.abort_receive(&self.at(to));
                                return Err(Class::Incomplete);
                            }
                            other => other,
                        }
                    }
                }
            }
            Step::Abort(d) => zfs.abort_receive(&self.at(d)),
        })
    }

    /// All there is, with guids as the order in which they were first seen, so that two worlds can be compared.
    fn state(&self, seen: &mut BTreeMap<u64, usize>) -> Vec<String> {
        let zfs = &*self.world.zfs;
        let mut lines = Vec::new();
        let prefix = format!("{}/", self.root);
        let short = |name: &str| name.strip_prefix(&prefix).unwrap_or(name).to_owned();
        for d in zfs.datasets(&self.root, Reach::Descendants).unwrap() {
            if d.name == self.root {
                continue;
            }
            let mut number = |guid: u64| {
                let next = seen.len();
                *seen.entry(guid).or_insert(next)
            };
            let uses = zfs.snapshot_uses(&d.name).unwrap();
            lines.push(format!(
                "{} is {}, a clone of {:?}",
                short(d.name.as_str()),
                number(d.guid),
                d.origin.map(|o| short(o.as_str()))
            ));
            for s in &uses {
                let name = short(s.entry.name.as_str());
                let mut clones: Vec<String> = s.clones.iter().map(|c| short(c.as_str())).collect();
                clones.sort();
                let holds = if s.holds == 0 { Vec::new() } else { zfs.holds(&s.entry.name).unwrap() };
                let tags: Vec<String> = holds.iter().map(|h| h.tag.to_string()).collect();
                lines.push(format!(
                    "{name} is {}, {tags:?}, {clones:?}, deferred {}",
                    number(s.entry.guid),
                    s.defer_destroy
                ));
            }
            for m in zfs.bookmarks(&d.name).unwrap() {
                lines.push(format!("{} is {}", short(m.name.as_str()), number(m.guid)));
            }
            let names = ["recordsize", "readonly", "basalt:x", "mounted"].map(|n| n.parse().unwrap());
            for p in zfs.properties(&Entity::from(&d.name), &names).unwrap() {
                lines.push(format!("{} {}={}", short(d.name.as_str()), p.name, p.value));
                if p.name.as_str() == "mounted" && p.value == "yes" {
                    lines.push(format!("{} has {:?}", short(d.name.as_str()), self.world.files(&d.name)));
                }
            }
        }
        lines
    }
}

/// Runs `steps` of a seed on the model, and on `real` too, if there is one. Panics with the seed and all steps where they differ.
pub fn run(seed: u64, steps: usize, real: Option<&World>) {
    let mut random = Random(seed);
    let world = World::model_of(seed);
    let model = Side { world: &world, root: world.fresh() };
    let real = real.map(|world| Side { world, root: world.fresh() });
    let (mut seen, mut seen_real) = (BTreeMap::new(), BTreeMap::new());
    let mut done: Vec<String> = Vec::new();
    for n in 0..steps {
        let step = step(&mut random);
        let before = model.state(&mut seen);
        let result = model.run(&step);
        done.push(format!("{n}: {step:?} -> {result:?}"));
        let failed = |why: String| -> ! { panic!("{why}\nseed {seed:#x}, steps:\n{}", done.join("\n")) };
        let after = model.state(&mut seen);
        if let Err(class) = result
            && !matches!(step, Step::Replicate { percent: Some(_), .. })
            && before != after
        {
            failed(format!("it was refused as {class:?} and changed something: {before:#?} {after:#?}"));
        }
        if matches!(result, Err(Class::Unknown | Class::Parse)) {
            failed("an engine must not say this".into());
        }
        let Some(real) = &real else { continue };
        let really = real.run(&step);
        if really != result {
            failed(format!("the model says {result:?}, ZFS {really:?}"));
        }
        // A refusal is known by its class; what there is is looked at when it may have changed.
        if result.is_ok() || n + 1 == steps {
            let found = real.state(&mut seen_real);
            if found != after {
                failed(format!("the model has {after:#?}, ZFS {found:#?}"));
            }
        }
    }
}

/// One seed, one world: else a failing seed would say nothing.
pub fn determinism() {
    let trace = |seed: u64| {
        let world = World::model_of(seed);
        let side = Side { world: &world, root: world.fresh() };
        let mut random = Random(seed);
        let results: Vec<_> = (0..300).map(|_| side.run(&step(&mut random))).collect();
        let guids: Vec<u64> =
            world.zfs.datasets(&side.root, Reach::Descendants).unwrap().iter().map(|d| d.guid).collect();
        (results, guids)
    };
    assert_eq!(trace(7), trace(7));
    assert_ne!(trace(7), trace(8));
    let classes: std::collections::BTreeSet<_> = trace(7).0.into_iter().filter_map(Result::err).collect();
    assert!(classes.len() >= 4, "such steps meet hardly anything: {classes:?}");
}
