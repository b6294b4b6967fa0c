//! A process that is killed at any step of any operation leaves what the next start finishes or undoes, and says so.
//!
//! A kill is a fault at the nth call of the model, done or not, after which every call fails and the journal takes nothing; then the faults go and a new keeper
//! starts. Each test runs through all n, until the operation ends before the kill.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use basalt_snapshots::{
    Aside, Content, Edge, Error, Fate, Held, HoldRecord, Intent, Journal, Judgement, Keeper, Kind, Lease, Met, Policy,
    Quiesce, Reason, Record, Result, SnapshotSet, Swapped, Unhurried,
};
use basalt_zfs::{Class, Dataset, Entity, HoldTag, Model, Pool, Reach, Zfs, model::Fault};

const NOW: u64 = 1_795_287_730;
const DAY: u64 = 86_400;

/// A record in memory, which dies with the model.
struct Memory {
    model: Arc<Model>,
    record: Arc<Mutex<Record>>,
}

impl Journal for Memory {
    fn load(&self) -> Result<Record> {
        Ok(self.record.lock().unwrap().clone())
    }

    fn save(&mut self, record: &Record) -> Result<()> {
        self.model.version().map_err(|err| Error::new(Kind::Journal, err.to_string()))?;
        *self.record.lock().unwrap() = record.clone();
        Ok(())
    }
}

/// Each dataset's name, files and properties.
type State = Vec<(String, BTreeMap<String, u64>, String)>;

/// A node on two pools: metadata and a repo on one, with a container, and a shard on the other.
struct World {
    model: Arc<Model>,
    record: Arc<Mutex<Record>>,
    datasets: Vec<Dataset>,
    holds: Arc<AtomicUsize>,
}

struct Served(Arc<AtomicUsize>);
struct Counted(Arc<AtomicUsize>, bool);

impl Held for Counted {
    fn is_held(&mut self) -> bool {
        self.1
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Quiesce for Served {
    fn hold(&self) -> Result<Option<Box<dyn Held>>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(Some(Box::new(Counted(self.0.clone(), true))))
    }
}

fn dataset(name: &str) -> Dataset {
    name.parse().unwrap()
}

impl World {
    fn new() -> World {
        let model = Arc::new(Model::new(7));
        for pool in ["fast", "bulk"] {
            model.add_pool(&pool.parse::<Pool>().unwrap(), 1 << 40);
        }
        let on = |name: &str, value: &str| (name.parse().unwrap(), value.to_owned());
        model.create(&dataset("fast/node"), &[on("mountpoint", "/srv/node"), on("basalt:role", "node")]).unwrap();
        model.create(&dataset("fast/node/shards"), &[on("canmount", "off")]).unwrap();
        model.create(&dataset("fast/node/shards/00"), &[on("recordsize", "1048576")]).unwrap();
        model.create(&dataset("fast/node/keyspace"), &[]).unwrap();
        model.create(&dataset("bulk/shard"), &[on("mountpoint", "/srv/node/shards/01")]).unwrap();
        let datasets: Vec<Dataset> =
            ["fast/node", "fast/node/keyspace", "fast/node/shards/00", "bulk/shard"].map(dataset).into();
        for one in &datasets {
            model.mount(one).unwrap();
        }
        World { model, record: Arc::default(), datasets, holds: Arc::default() }
    }

    fn keeper(&self) -> Keeper {
        let journal = Memory { model: self.model.clone(), record: self.record.clone() };
        Keeper::new(self.model.clone(), Box::new(journal), self.datasets.clone(), "n1").unwrap()
    }

    fn take(&self, now: u64) -> Result<SnapshotSet> {
        let mut keeper = self.keeper();
        let taken = keeper.take(now, &Served(self.holds.clone()))?;
        keeper.find(taken.name.as_str())
    }

    fn write(&self, file: &str, bytes: u64) {
        for one in &self.datasets {
            self.model.write(one, file, bytes).unwrap();
        }
    }

    /// Every call fails from the nth on; the nth may be done.
    fn kill_at(&self, n: u64, done: bool) {
        for at in 0..2000 {
            self.model.inject(Fault { operation: None, after: n, class: Class::Stuck, done: done && at == 0 });
        }
    }

    /// A new process.
    fn revive(&self) -> (Keeper, Vec<String>) {
        self.model.clear_faults();
        let mut keeper = self.keeper();
        let said = keeper.recover(&|_| true).unwrap();
        assert_eq!(keeper.record().intent, None, "nothing is left half done");
        assert_eq!(self.record.lock().unwrap().intent, None);
        (keeper, said)
    }

    /// What the node's files are, where they are expected, and whether all is mounted as it was.
    fn state(&self) -> State {
        let of = |one: &Dataset| {
            let properties = self.model.properties(&Entity::from(one), &[]).unwrap();
            let value = |name: &str| {
                properties.iter().find(|p| p.name.as_str() == name).map_or(String::new(), |p| p.value.clone())
            };
            let all = ["canmount", "mounted", "mountpoint", "recordsize", "basalt:role"].map(value).join(" ");
            (one.to_string(), self.model.files(one), all)
        };
        self.datasets.iter().map(of).collect()
    }

    fn all(&self) -> Vec<String> {
        let of = |pool: &str| self.model.datasets(&dataset(pool), Reach::Descendants).unwrap();
        ["fast", "bulk"].into_iter().flat_map(of).map(|entry| entry.name.to_string()).collect()
    }
}

/// Runs `what` killed at each call, done and not; `after` looks at what the next start made of it. Says at how many points it was killed.
fn killed_everywhere<T>(
    world: impl Fn() -> World,
    what: impl Fn(&World, Keeper) -> Result<T>,
    after: impl Fn(&World, Keeper, &[String], bool),
) -> u64 {
    let mut points = 0;
    for done in [false, true] {
        for n in 0.. {
            let world = world();
            let keeper = world.keeper();
            world.kill_at(n, done);
            let outcome = what(&world, keeper);
            let was_left = world.record.lock().unwrap().intent.is_some();
            let (keeper, said) = world.revive();
            assert!(!was_left || !said.is_empty(), "what was left is said");
            let ended = outcome.is_ok();
            after(&world, keeper, &said, ended);
            if ended {
                break;
            }
            points += 1;
            assert!(n < 1000, "it never ends");
        }
    }
    points
}

#[test]
fn a_killed_take_leaves_a_whole_set_or_none() {
    let points = killed_everywhere(
        World::new,
        |world, mut keeper| keeper.take(NOW, &Served(world.holds.clone())),
        |world, keeper, _, ended| {
            let sets = keeper.sets().unwrap();
            assert!(sets.iter().all(SnapshotSet::is_whole) && sets.len() <= 1, "{sets:?}");
            assert!(!ended || sets.len() == 1);
            assert_eq!(world.holds.load(Ordering::SeqCst), 0, "deletes go on");
        },
    );
    assert!(points >= 8, "{points}");
}

#[test]
fn a_killed_take_in_one_pool_leaves_a_whole_set_or_none() {
    let one_pool = || {
        let world = World::new();
        World { datasets: world.datasets[..3].to_vec(), ..world }
    };
    killed_everywhere(
        one_pool,
        |world, mut keeper| keeper.take(NOW, &Served(world.holds.clone())),
        |_, keeper, said, ended| {
            let sets = keeper.sets().unwrap();
            assert!(sets.iter().all(SnapshotSet::is_whole) && sets.len() <= 1, "{sets:?}");
            let is_said = said.iter().any(|line| line.contains("was taken whole"));
            assert_eq!(sets.len() == 1, ended || is_said, "{said:?}");
        },
    );
}

#[test]
fn a_set_over_two_pools_is_taken_while_deletes_are_held_and_in_one_pool_without() {
    let world = World::new();
    let taken = world.keeper().take(NOW, &Served(world.holds.clone())).unwrap();
    assert!(taken.held_ms.is_some() && taken.snapshots.len() == 4);
    assert_eq!(taken.snapshots[0].dataset().as_str(), "fast/node", "metadata first");
    let one_pool = World { datasets: world.datasets[..3].to_vec(), record: Arc::default(), ..world };
    assert_eq!(one_pool.keeper().take(NOW, &Served(one_pool.holds.clone())).unwrap().held_ms, None);
}

#[test]
fn a_set_over_two_pools_during_which_deletes_were_let_go_is_undone() {
    struct LetGo(Arc<AtomicUsize>);
    impl Quiesce for LetGo {
        fn hold(&self) -> Result<Option<Box<dyn Held>>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(Some(Box::new(Counted(self.0.clone(), false))))
        }
    }
    let world = World::new();
    let refused = world.keeper().take(NOW, &LetGo(world.holds.clone())).unwrap_err().to_string();
    assert!(refused.contains("let go"), "{refused}");
    assert!(world.keeper().sets().unwrap().is_empty());
}

#[test]
fn a_pool_that_refuses_leaves_no_half_of_a_set_in_the_other() {
    let world = World::new();
    world.model.set_pool_read_only(&"bulk".parse().unwrap(), true);
    let refused = world.take(NOW).unwrap_err();
    assert!(refused.kind() == Kind::Zfs(Class::ReadOnly) && refused.to_string().contains("are undone"), "{refused}");
    assert!(world.keeper().sets().unwrap().is_empty());
    assert_eq!(world.record.lock().unwrap().intent, None);
}

#[test]
fn a_killed_hold_or_release_is_on_all_snapshots_or_on_none() {
    let tag: HoldTag = "keep".parse().unwrap();
    let held = |keeper: &Keeper| -> Vec<bool> {
        let set = keeper.find("latest").unwrap();
        set.snapshots().map(|s| keeper.zfs().holds(s).unwrap().iter().any(|h| h.tag == tag)).collect()
    };
    let with_set = || {
        let world = World::new();
        world.take(NOW).unwrap();
        world
    };
    let hold = |keeper: &mut Keeper| {
        let set = keeper.find("latest")?;
        keeper.hold(&set, "keep", NOW)
    };
    killed_everywhere(
        with_set,
        |_, mut keeper| hold(&mut keeper),
        |_, keeper, _, ended| {
            let held = held(&keeper);
            assert!(held.iter().all(|one| *one == held[0]) && (held[0] || !ended), "{held:?}");
            assert_eq!(keeper.record().holds.len(), usize::from(held[0]));
        },
    );
    let with_hold = || {
        let world = with_set();
        hold(&mut world.keeper()).unwrap();
        world
    };
    let release = |_: &World, mut keeper: Keeper| {
        let set = keeper.find("latest")?.name;
        keeper.release(&set, "keep")
    };
    killed_everywhere(with_hold, release, |_, keeper, _, ended| {
        let held = held(&keeper);
        assert!(held.iter().all(|one| *one == held[0]) && (!held[0] || !ended), "{held:?}");
        assert_eq!(keeper.record().holds.len(), usize::from(held[0]));
    });
}

#[test]
fn a_hold_on_record_that_zfs_lacks_is_set_again_and_one_of_a_set_that_is_gone_is_forgotten() {
    let world = World::new();
    let set = world.take(NOW).unwrap();
    world.keeper().hold(&set, "keep", NOW).unwrap();
    let one = set.snapshots().next().unwrap();
    world.model.release(one, &"keep".parse().unwrap()).unwrap();
    let (keeper, said) = world.revive();
    assert!(said[0].contains("set again") && said[0].contains(one.as_str()), "{said:?}");
    assert_eq!(world.model.holds(one).unwrap().len(), 1);
    drop(keeper);
    world.record.lock().unwrap().holds.push(HoldRecord {
        set: "basalt-2020-01-01T00:00:00Z-1-00000000".parse().unwrap(),
        tag: "x".into(),
        since_unix_s: 0,
    });
    assert!(world.revive().1[0].contains("which is gone"));
}

fn keep_one() -> Policy {
    Policy::parse(["last:1"], 0).unwrap()
}

#[test]
fn a_killed_prune_destroys_what_was_judged_and_nothing_else() {
    let with_sets = || {
        let world = World::new();
        for day in 0..4 {
            world.take(NOW + day * DAY).unwrap();
        }
        let held = world.keeper().sets().unwrap()[1].clone();
        world.keeper().hold(&held, "keep", NOW).unwrap();
        world
    };
    let prune = |_: &World, mut keeper: Keeper| {
        let verdicts = keeper.explain(&keep_one(), NOW + 9 * DAY, Judgement::default())?;
        keeper.prune(&verdicts, &Unhurried::default())
    };
    let points = killed_everywhere(with_sets, prune, |_, keeper, _, ended| {
        let left: Vec<u64> = keeper.sets().unwrap().iter().map(|set| (set.name.taken_unix_s() - NOW) / DAY).collect();
        assert!(left == [1, 3] || (!ended && left == [0, 1, 2, 3]), "{left:?}");
        assert!(keeper.sets().unwrap().iter().all(SnapshotSet::is_whole));
    });
    assert!(points > 10, "{points}");
}

#[test]
fn a_killed_thinning_leaves_the_class_that_is_kept_and_nothing_broken() {
    let with_contents = |mut keeper: Keeper| {
        keeper.know_contents(|one| match one.as_str() {
            "fast/node" | "fast/node/keyspace" => Some(Content::Metadata),
            _ => Some(Content::Blocks),
        });
        keeper
    };
    let with_sets = || {
        let world = World::new();
        for day in 0..3 {
            world.take(NOW + day * DAY).unwrap();
        }
        world
    };
    let mut policy = keep_one();
    policy.longer.insert(Content::Metadata, Policy::parse(["daily:2"], 0).unwrap());
    let prune = |_: &World, keeper: Keeper| {
        let mut keeper = with_contents(keeper);
        let verdicts = keeper.explain(&policy, NOW + 9 * DAY, Judgement::default())?;
        keeper.prune(&verdicts, &Unhurried::default())
    };
    let points = killed_everywhere(with_sets, prune, |_, keeper, _, ended| {
        let keeper = with_contents(keeper);
        let sets = keeper.sets().unwrap();
        let left: Vec<Option<String>> = sets.iter().map(|set| keeper.left(set).map(|left| left.to_string())).collect();
        let all = Some("blocks and metadata".to_owned());
        let pruned = [Some("metadata".to_owned()), all.clone()];
        assert!(left == pruned || (!ended && left == [all.clone(), all.clone(), all]), "{left:?}");
        let refused = keeper.plan_restore(&sets[0]).err().map(|err| err.to_string());
        assert!(sets.len() == 3 || refused.is_some_and(|why| why.contains("2 of 4") && why.contains("metadata")));
    });
    assert!(points > 8, "{points}");
}

#[test]
fn a_prune_waits_before_each_batch_but_the_first() {
    struct Counting(Mutex<Vec<String>>);
    impl basalt_snapshots::Pace for Counting {
        fn wait(&self, _: &dyn Zfs, pool: &Pool) {
            self.0.lock().unwrap().push(pool.to_string());
        }
    }
    let world = World::new();
    for hour in 0..31 {
        world.take(NOW + hour * 3600).unwrap();
    }
    let mut keeper = world.keeper();
    let verdicts = keeper.explain(&keep_one(), NOW + 9 * DAY, Judgement::default()).unwrap();
    let pace = Counting(Mutex::default());
    let pruned = keeper.prune(&verdicts, &pace).unwrap();
    assert_eq!(pruned.destroyed, 30 * 4);
    let waits = pace.0.into_inner().unwrap();
    assert_eq!(waits, ["fast", "fast", "fast", "fast", "fast", "bulk", "bulk"], "25 and 5 of each of 4 datasets");
}

#[test]
fn what_is_held_or_cloned_is_kept_and_named() {
    let world = World::new();
    for day in 0..3 {
        world.take(NOW + day * DAY).unwrap();
    }
    let keeper = world.keeper();
    let sets = keeper.sets().unwrap();
    let first = sets[0].snapshots().nth(2).unwrap().clone();
    world.model.clone_snapshot(&first, &dataset("fast/look"), &[]).unwrap();
    let verdicts = keeper.explain(&keep_one(), NOW + 9 * DAY, Judgement::default()).unwrap();
    assert_eq!(verdicts[0].reasons, [Reason::Guarded("clone fast/look".into())]);
    assert_eq!(verdicts[1].fate, Fate::Destroy);
    drop(keeper);
    // Taken hold of between the judgement and the destroy.
    let second = sets[1].snapshots().next().unwrap();
    world.model.hold(second, &"late".parse().unwrap()).unwrap();
    let pruned = world.keeper().prune(&verdicts, &Unhurried::default()).unwrap();
    assert_eq!((pruned.destroyed, pruned.busy.len()), (3, 1));
    assert!(pruned.busy[0].0 == *second && pruned.busy[0].1.contains("late"), "{pruned:?}");
}

#[test]
fn nothing_is_judged_while_a_dataset_can_t_be_listed() {
    let world = World::new();
    world.take(NOW).unwrap();
    world.model.remove_pool(&"bulk".parse().unwrap());
    assert!(world.keeper().explain(&keep_one(), NOW, Judgement::default()).is_err());
}

#[test]
fn a_lease_keeps_its_set_and_ends_with_its_process() {
    let world = World::new();
    let set = world.take(NOW).unwrap();
    world.take(NOW + DAY).unwrap();
    let lease = Lease {
        id: "m1".into(),
        set: set.name.clone(),
        by: "basalt snapshot mount (pid 7)".into(),
        process: Some((7, 1)),
    };
    world.keeper().lease(lease).unwrap();
    let refused = restore(&mut world.keeper()).unwrap_err().to_string();
    assert!(refused.contains("(pid 7)") && refused.contains("stop that first"), "{refused}");
    let fate = |keeper: &Keeper| keeper.explain(&keep_one(), NOW + 9 * DAY, Judgement::default()).unwrap()[0].fate;
    let (mut keeper, said) = world.revive();
    assert!(said.is_empty() && fate(&keeper) == Fate::Keep);
    let said = keeper.recover(&|_| false).unwrap();
    assert!(said[0].contains("is gone"), "{said:?}");
    assert_eq!(fate(&keeper), Fate::Destroy);
}

/// A node that was changed after its set was taken, with a younger set.
fn changed() -> World {
    let world = World::new();
    world.write("old", 10);
    world.take(NOW).unwrap();
    world.write("new", 20);
    world.take(NOW + DAY).unwrap();
    world
}

fn restore(keeper: &mut Keeper) -> Result<Swapped> {
    let set = keeper.sets()?.into_iter().next().ok_or_else(|| Error::new(Kind::NotFound, "no set"))?;
    let plan = keeper.plan_restore(&set)?;
    keeper.restore(&plan)
}

fn before_and_restored() -> (State, State) {
    let world = changed();
    let before = world.state();
    restore(&mut world.keeper()).unwrap();
    (before, world.state())
}

#[test]
fn a_restore_brings_back_the_set_and_keeps_what_it_replaces() {
    let world = changed();
    let mut keeper = world.keeper();
    let set = keeper.sets().unwrap().remove(0);
    let plan = keeper.plan_restore(&set).unwrap();
    assert_eq!(plan.tops, [dataset("fast/node"), dataset("bulk/shard")]);
    assert_eq!(plan.younger.len(), 1);
    let lineage = |world: &World| {
        world.model.properties(&Entity::from(&dataset("fast/node")), &["basalt:lineage".parse().unwrap()]).unwrap()
    };
    assert!(lineage(&world).is_empty());
    let swapped = keeper.restore(&plan).unwrap();
    for (name, files, properties) in world.state() {
        assert_eq!(files.keys().collect::<Vec<_>>(), ["old"], "{name}");
        assert!(properties.starts_with("on yes"), "{name}: {properties}");
    }
    assert_eq!(lineage(&world)[0].value.len(), 16);
    assert_eq!(keeper.sets().unwrap().len(), 1, "the set is the node's again");
    let suffix = &swapped.aside.suffix;
    for name in [format!("fast/node{suffix}/shards/00"), format!("bulk/shard{suffix}")] {
        assert_eq!(world.model.files(&dataset(&name)).len(), 2, "{name} has what was replaced");
    }
    // And on: sets are taken, pruned, and the one that was restored from stays as long as the old does.
    drop(keeper);
    world.take(NOW + 2 * DAY).unwrap();
    let verdicts = world.keeper().explain(&keep_one(), NOW + 9 * DAY, Judgement::default()).unwrap();
    assert!(matches!(&verdicts[0].reasons[..], [Reason::Guarded(by), ..] if by.contains("-before-")), "{verdicts:?}");
    let id = swapped.aside.id;
    world.keeper().confirm_restore(&id).unwrap();
    assert!(
        !world.all().iter().any(|name| name.contains("-before-") || name.contains("-restore-")),
        "{:?}",
        world.all()
    );
    assert_eq!(
        world.keeper().explain(&keep_one(), NOW + 9 * DAY, Judgement::default()).unwrap()[0].fate,
        Fate::Destroy
    );
    assert_eq!(world.keeper().confirm_restore(&id).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_killed_restore_is_undone_or_finished() {
    let (before, restored) = before_and_restored();
    let points = killed_everywhere(
        changed,
        |_, mut keeper| restore(&mut keeper),
        |world, keeper, said, ended| {
            let (state, asides) = (world.state(), keeper.record().asides.len());
            assert!(!world.all().iter().any(|name| name.contains("-restore-")), "{:?}", world.all());
            match asides {
                0 => assert!(state == before && !ended, "{said:?} {state:?}"),
                _ => assert_eq!(state, restored, "{said:?}"),
            }
            assert_eq!(keeper.sets().unwrap().len(), 2 - asides);
        },
    );
    assert!(points > 40, "{points}");
}

#[test]
fn a_repo_whose_folder_has_the_node_s_in_it_is_restored_though_its_dataset_is_below() {
    let world = World::new();
    let at = |folder: &str| vec![("mountpoint".parse().unwrap(), folder.to_owned())];
    world.model.create(&dataset("fast/life"), &at("/srv/ipfs/basalt")).unwrap();
    world.model.create(&dataset("fast/life/repo"), &at("/srv/ipfs")).unwrap();
    let datasets: Vec<Dataset> = ["fast/life", "fast/life/repo"].map(dataset).into();
    let world = World { datasets, record: Arc::default(), ..world };
    for one in ["fast/life/repo", "fast/life"] {
        world.model.mount(&dataset(one)).unwrap();
    }
    world.write("old", 10);
    world.take(NOW).unwrap();
    world.write("new", 20);
    restore(&mut world.keeper()).unwrap();
    assert!(world.state().iter().all(|(_, files, properties)| files.len() == 1 && properties.starts_with("on yes")));
}

#[test]
fn a_restore_whose_recovery_is_killed_too_is_undone_or_finished() {
    let (before, restored) = before_and_restored();
    for n in (0..120).step_by(3) {
        for m in (0..60).step_by(4) {
            let world = changed();
            let mut keeper = world.keeper();
            world.kill_at(n, n % 2 == 0);
            let _killed = restore(&mut keeper);
            world.model.clear_faults();
            let mut keeper = world.keeper();
            world.kill_at(m, m % 8 == 0);
            let _killed_again = keeper.recover(&|_| true);
            let (keeper, said) = world.revive();
            let expected = if keeper.record().asides.is_empty() { &before } else { &restored };
            assert_eq!(world.state(), *expected, "killed at {n}, then at {m}: {said:?}");
        }
    }
}

#[test]
fn a_killed_undo_and_a_killed_confirmation_end_well() {
    let (before, restored) = before_and_restored();
    let with_restore = || {
        let world = changed();
        restore(&mut world.keeper()).unwrap();
        world
    };
    let aside = |keeper: &Keeper| -> Aside { keeper.record().asides[0].clone() };
    let undo = |_: &World, mut keeper: Keeper| {
        let id = aside(&keeper).id;
        keeper.undo_restore(&id)
    };
    killed_everywhere(with_restore, undo, |world, keeper, said, ended| {
        let is_undone = aside(&keeper).suffix.contains("-undone-");
        assert!(is_undone || !ended);
        assert_eq!(world.state(), *if is_undone { &before } else { &restored }, "{said:?}");
        assert_eq!(keeper.sets().unwrap().len(), if is_undone { 2 } else { 1 });
    });
    let confirm = |_: &World, mut keeper: Keeper| {
        let id = aside(&keeper).id;
        keeper.confirm_restore(&id)
    };
    killed_everywhere(with_restore, confirm, |world, keeper, said, ended| {
        assert_eq!(world.state(), restored, "{said:?}");
        let is_gone = !world.all().iter().any(|name| name.contains("-before-"));
        assert_eq!(is_gone, keeper.record().asides.is_empty());
        assert!(is_gone || !ended);
    });
}

/// Marks as an agent finds and writes them: here in memory, for parts that a test sets back.
fn live_once(world: &World, marks: &mut BTreeMap<String, Option<String>>) -> (Met, String) {
    let mut keeper = world.keeper();
    let met = keeper.meet(marks).unwrap();
    let parts: Vec<String> = marks.keys().cloned().collect();
    keeper.mark(&parts, |part, mark| marks.insert(part.to_owned(), Some(mark.to_owned())).is_some()).unwrap();
    (met, keeper.lineage().to_owned())
}

#[test]
fn a_part_that_was_rolled_back_behind_the_node_s_back_is_found_and_draws_a_new_lineage() {
    let world = World::new();
    let mut marks: BTreeMap<String, Option<String>> =
        ["keyspace", "shards/00"].map(|part| (part.to_owned(), None)).into();
    let (met, first) = live_once(&world, &mut marks);
    assert!(met.strangers.is_empty() && first.len() == 16, "a node that is new to this host is nobody's");
    let taken = marks.clone();
    assert_eq!(live_once(&world, &mut marks), (Met::default(), first.clone()));
    // One part, as by `zfs rollback` of one shard.
    marks.insert("shards/00".into(), taken["shards/00"].clone());
    let (met, second) = live_once(&world, &mut marks);
    assert_eq!((met.strangers, met.is_all), (vec!["shards/00".to_owned()], false));
    assert_ne!(first, second);
    assert_eq!(live_once(&world, &mut marks), (Met::default(), second.clone()));
    // All of them, or one whose mark is gone.
    marks = taken;
    marks.insert("keyspace".into(), None);
    let (met, third) = live_once(&world, &mut marks);
    assert!(met.is_all && met.strangers.len() == 2 && third != second);
}

#[test]
fn a_mark_that_is_cut_short_is_no_other_life() {
    for n in 0..6 {
        let world = World::new();
        let mut marks: BTreeMap<String, Option<String>> =
            ["keyspace", "shards/00"].map(|part| (part.to_owned(), None)).into();
        live_once(&world, &mut marks);
        let mut keeper = world.keeper();
        world.kill_at(n, n % 2 == 0);
        let parts: Vec<String> = marks.keys().cloned().collect();
        let mut left = n % 3;
        let _cut = keeper.mark(&parts, |part, mark| {
            left = left.saturating_sub(1);
            left > 0 && marks.insert(part.to_owned(), Some(mark.to_owned())).is_some()
        });
        world.revive();
        assert_eq!(live_once(&world, &mut marks).0, Met::default(), "{n}");
    }
}

#[test]
fn what_an_edge_reported_to_another_lineage_is_no_cursor_but_its_base_is_kept() {
    let world = changed();
    let guid = world.keeper().sets().unwrap()[0].members[0].as_ref().unwrap().guid;
    let mut keeper = world.keeper();
    keeper.note_edge(Edge { name: "vault".into(), has: [guid].into(), lineage: String::new() }).unwrap();
    assert!(keeper.cursor("vault").is_some());
    restore(&mut keeper).unwrap();
    let restored = keeper.lineage().to_owned();
    assert!(keeper.cursor("vault").is_none(), "positions of the life that was replaced mean nothing here");
    let property = |dataset: &Dataset| {
        world.model.properties(&Entity::from(dataset), &["basalt:lineage".parse().unwrap()]).unwrap()[0].value.clone()
    };
    assert!(world.datasets.iter().all(|one| property(one) == restored));
    let id = keeper.record().asides[0].id.clone();
    keeper.confirm_restore(&id).unwrap();
    drop(keeper);
    world.take(NOW + 2 * DAY).unwrap();
    let mut keeper = world.keeper();
    let verdicts = keeper.explain(&keep_one(), NOW + 9 * DAY, Judgement::default()).unwrap();
    assert_eq!(verdicts[0].reasons, [Reason::Base("vault".into())]);
    keeper.note_edge(Edge { name: "vault".into(), has: [guid].into(), lineage: String::new() }).unwrap();
    assert!(keeper.cursor("vault").is_some(), "asked again, it counts");
}

#[test]
fn a_restore_undone_and_undone_again_is_there_again() {
    let world = changed();
    let before = world.state();
    let id = restore(&mut world.keeper()).unwrap().aside.id;
    let restored = world.state();
    world.keeper().undo_restore(&id).unwrap();
    assert_eq!(world.state(), before);
    world.keeper().undo_restore(&id).unwrap();
    assert_eq!(world.state(), restored);
    world.keeper().undo_restore(&id).unwrap();
    world.keeper().confirm_restore(&id).unwrap();
    assert_eq!(world.state(), before);
    assert_eq!(world.keeper().sets().unwrap().len(), 2, "both sets are the node's, as if nothing had been");
}

#[test]
fn a_node_in_use_is_not_restored_and_stays_as_it_was() {
    let world = changed();
    let before = world.state();
    world.model.set_open_files(&dataset("fast/node/keyspace"), 1);
    let refused = restore(&mut world.keeper()).unwrap_err();
    assert!(
        refused.kind() == Kind::Zfs(Class::Busy)
            && refused.to_string().contains("stop Kubo")
            && refused.to_string().contains("as it was"),
        "{refused}"
    );
    assert_eq!(world.state(), before);
    assert!(!world.all().iter().any(|name| name.contains("-restore-")));
}

#[test]
fn a_dataset_that_is_not_in_the_set_or_a_set_that_is_not_whole_is_no_restore() {
    let world = changed();
    world.model.create(&dataset("fast/node/mine"), &[]).unwrap();
    let refused = restore(&mut world.keeper()).unwrap_err().to_string();
    assert!(refused.contains("fast/node/mine") && refused.contains("Rename it"), "{refused}");
    let set = world.keeper().sets().unwrap().remove(0);
    let one = set.snapshots().last().unwrap();
    world.model.destroy_snapshots(&one.dataset(), std::slice::from_ref(one), basalt_zfs::When::Now).unwrap();
    assert!(restore(&mut world.keeper()).unwrap_err().to_string().contains("3 of 4"));
}

#[test]
fn what_was_left_half_done_is_settled_before_anything_else_is_begun() {
    let world = World::new();
    let set = world.take(NOW).unwrap();
    world.record.lock().unwrap().intent = Some(Intent::Prune { snapshots: Vec::new() });
    assert_eq!(world.keeper().hold(&set, "keep", NOW).unwrap_err().kind(), Kind::Refused);
    world.revive().0.hold(&set, "keep", NOW).unwrap();
}

#[test]
fn a_node_whose_folder_is_gone_is_restored_by_the_record() {
    let world = changed();
    let nowhere = World {
        datasets: Vec::new(),
        record: world.record.clone(),
        model: world.model.clone(),
        holds: world.holds.clone(),
    };
    restore(&mut nowhere.keeper()).unwrap();
    assert!(world.state().iter().all(|(_, files, ..)| files.len() == 1));
}

#[test]
fn a_set_is_found_by_what_is_its_own_alone() {
    let world = changed();
    let keeper = world.keeper();
    let sets = keeper.sets().unwrap();
    let (first, second) = (&sets[0].name, &sets[1].name);
    for (said, meant) in [
        ("latest", second),
        (first.as_str(), first),
        ("2026-11-21", first),
        (&first.as_str()[first.as_str().len() - 8..], first),
    ] {
        assert_eq!(keeper.find(said).unwrap().name, *meant, "{said}");
    }
    assert_eq!(keeper.find("basalt-2026").unwrap_err().kind(), Kind::Refused);
    assert_eq!(keeper.find("2030-01-01").unwrap_err().kind(), Kind::NotFound);
}
