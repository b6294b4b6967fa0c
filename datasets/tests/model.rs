//! Plans and their application on the model of ZFS: what they reach from anywhere, what they never touch, and what a kill at any step leaves.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path};

use basalt_datasets::{
    Declaration, Encryption, Facts, Layout, NODE_PROPERTY, Own, Plan, ROLE_PROPERTY, Repo, Stopped, apply, look, plan,
    unfinished,
};
use basalt_zfs::{Class, Dataset, DatasetEntry, Entity, Model, Pool, PropertyName, Reach, Source, Zfs, model::Fault};
use proptest::prelude::*;

const NODE: &str = "/nonexistent/basalt";

fn dataset(name: &str) -> Dataset {
    name.parse().unwrap()
}

fn property(name: &str) -> PropertyName {
    name.parse().unwrap()
}

fn pool(model: &Model) -> Pool {
    let pool: Pool = "tank".parse().unwrap();
    model.add_pool(&pool, 1 << 40);
    pool
}

fn world() -> Model {
    let model = Model::new(7);
    pool(&model);
    model
}

fn declaration() -> Declaration {
    Declaration {
        repo: Some(Repo { dataset: "tank/basalt/repo".into(), mountpoint: "/nonexistent/kubo".into() }),
        ..Declaration::below(&dataset("tank/basalt"), 2)
    }
}

fn layout_of(declared: &Declaration) -> Layout {
    Layout::new(declared, Path::new(NODE), "0123").unwrap()
}

fn layout() -> Layout {
    layout_of(&declaration())
}

fn planned(model: &Model, layout: &Layout) -> Plan {
    plan(layout, &look(model, layout).unwrap())
}

fn run(model: &Model, layout: &Layout, plan: &Plan, yes: bool) -> Result<(), Stopped> {
    apply(layout, plan, model, &Own(model), yes, &mut |_| {})
}

type Properties = BTreeMap<String, (String, Source)>;

/// All there is, without what differs from world to world.
fn state(model: &Model) -> Vec<(Dataset, Properties)> {
    let counters = ["guid", "createtxg", "creation", "snapshots_changed"];
    let all = model.datasets(&dataset("tank"), Reach::Descendants).unwrap();
    let properties = |d: &DatasetEntry| {
        let all = model.properties(&Entity::from(&d.name), &[]).unwrap().into_iter();
        all.map(|p| (p.name.to_string(), (p.value, p.source)))
            .filter(|(name, _)| !counters.contains(&name.as_str()))
            .collect()
    };
    all.iter().map(|d| (d.name.clone(), properties(d))).collect()
}

fn steps(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|planned| planned.step.to_string()).collect()
}

#[test]
fn a_fresh_pool_becomes_what_is_declared_and_then_nothing_is_left_to_do() {
    let (model, layout) = (world(), layout());
    let plan = planned(&model, &layout);
    assert_eq!(plan.risky().count(), 0);
    let shown = steps(&plan);
    assert!(
        shown[0].starts_with(
            "create tank/basalt basalt:node=0123 basalt:role=node mountpoint=/nonexistent/basalt atime=off"
        ),
        "{}",
        shown[0]
    );
    assert_eq!(shown[1], "create tank/basalt/shards basalt:role=shards canmount=off recordsize=262144");
    assert_eq!(shown[2], "create tank/basalt/shards/00 basalt:role=shard-00");
    assert_eq!(
        shown[7..],
        [
            "mount tank/basalt at /nonexistent/basalt",
            "mount tank/basalt/repo at /nonexistent/kubo",
            "mount tank/basalt/keyspace at /nonexistent/basalt/keyspace",
            "mount tank/basalt/shards/00 at /nonexistent/basalt/shards/00",
            "mount tank/basalt/shards/01 at /nonexistent/basalt/shards/01",
        ]
    );
    run(&model, &layout, &plan, false).unwrap();
    let again = planned(&model, &layout);
    assert!(again.is_done() && again.notes.is_empty(), "{again:?}");
    assert_eq!(unfinished(&model, layout.parent()).unwrap(), None);
    let facts = look(&model, &layout).unwrap();
    assert_eq!(facts.datasets[&dataset("tank/basalt/shards/00")].value("recordsize"), Some("262144"));
    assert_eq!(facts.datasets[&dataset("tank/basalt/shards/00")].value("atime"), Some("off"));
    assert!(!facts.datasets[&dataset("tank/basalt/shards")].is_mounted());
}

/// Kills at every operation of an apply, before it is done and after; the next apply must reach what an undisturbed one reaches.
fn killed_everywhere(prepare: &dyn Fn(&Model)) {
    let layout = layout();
    let undisturbed = world();
    prepare(&undisturbed);
    run(&undisturbed, &layout, &planned(&undisturbed, &layout), true).unwrap();
    let mut kills = 0;
    for done in [false, true] {
        for after in 0.. {
            let model = world();
            prepare(&model);
            let plan = planned(&model, &layout);
            model.inject(Fault { operation: None, after, class: Class::Io, done });
            let Err(stopped) = run(&model, &layout, &plan, true) else { break };
            kills += 1;
            let Stopped::Step { .. } = &stopped else { panic!("{stopped}") };
            let was_left = planned(&model, &layout);
            let is_there = model.datasets(layout.parent(), Reach::Itself).is_ok();
            if is_there && !was_left.steps.is_empty() {
                // Only the first operation of all may have left nothing to see.
                let seen = unfinished(&model, layout.parent()).unwrap();
                assert!(
                    seen.is_some() || (after == 0 && !done),
                    "killed at {after}, done {done}: {stopped}, and nobody would know"
                );
                assert!(seen.is_none() || was_left.notes.iter().any(|note| note.what.contains("did not end")));
            }
            run(&model, &layout, &was_left, true).unwrap();
            assert_eq!(state(&model), state(&undisturbed), "killed at {after}, done {done}: {stopped}");
            assert_eq!(unfinished(&model, layout.parent()).unwrap(), None);
        }
    }
    assert!(kills > 8, "only {kills} places to be killed at");
}

#[test]
fn an_apply_on_a_fresh_pool_that_is_killed_anywhere_is_finished_by_the_next() {
    killed_everywhere(&|_| {});
}

#[test]
fn an_apply_on_a_drifted_node_that_is_killed_anywhere_is_finished_by_the_next() {
    killed_everywhere(&|model| {
        let layout = layout();
        run(model, &layout, &planned(model, &layout), false).unwrap();
        let set = |d: &str, name: &str, value: &str| model.set(&dataset(d), &[(property(name), value.into())]).unwrap();
        set("tank/basalt", "sync", "disabled");
        set("tank/basalt", "compression", "off");
        set("tank/basalt/shards", "recordsize", "1M");
        set("tank/basalt/keyspace", "sync", "disabled");
        set("tank/basalt/shards/00", "canmount", "noauto");
        model.unmount(&dataset("tank/basalt/shards/00")).unwrap();
        model.unmount(&dataset("tank/basalt/repo")).unwrap();
        model.destroy(&dataset("tank/basalt/repo")).unwrap();
    });
}

#[test]
fn drift_is_found_and_explained() {
    let (model, layout) = (world(), layout());
    run(&model, &layout, &planned(&model, &layout), false).unwrap();
    let set = |d: &str, name: &str, value: &str| model.set(&dataset(d), &[(property(name), value.into())]).unwrap();
    set("tank/basalt/keyspace", "sync", "disabled");
    set("tank/basalt/shards/01", "quota", "1G");
    model.inherit(&dataset("tank/basalt"), &property("dedup")).unwrap();
    set("tank", "dedup", "on");
    model.unmount(&dataset("tank/basalt/shards/01")).unwrap();
    model.create(&dataset("tank/basalt/thesis"), &[]).unwrap();
    let plan = planned(&model, &layout);
    assert_eq!(
        steps(&plan),
        [
            "set dedup=off on tank/basalt",
            "inherit sync on tank/basalt/keyspace",
            "mount tank/basalt/shards/01 at /nonexistent/basalt/shards/01"
        ]
    );
    assert!(plan.steps[0].why.contains("inherited from tank"), "{}", plan.steps[0].why);
    assert!(plan.steps[1].why.contains("does not open"), "{}", plan.steps[1].why);
    let notes: Vec<_> = plan.notes.iter().map(|note| note.what.as_str()).collect();
    assert_eq!(
        notes,
        [
            "tank/basalt/thesis lies in the node's dataset and is not declared",
            "tank/basalt/shards/01 has quota=1073741824, set by hand: nothing is declared for it"
        ]
    );
}

#[test]
fn space_is_kept_back_from_the_first_moment_and_a_node_that_lifts_it_has_not_drifted() {
    let (model, layout) = (world(), layout());
    let plan = planned(&model, &layout);
    let made =
        "create tank/basalt/reserve basalt:role=reserve canmount=off basalt:reserve=134217728 refreservation=134217728";
    assert!(steps(&plan).contains(&made.to_owned()), "{:?}", steps(&plan));
    run(&model, &layout, &plan, false).unwrap();
    model.set(&dataset("tank/basalt/reserve"), &[(property("refreservation"), "none".into())]).unwrap();
    let lifted = planned(&model, &layout);
    assert!(lifted.is_done() && lifted.notes.is_empty(), "{lifted:?}");
}

#[test]
fn what_was_there_before_is_only_taken_with_a_word() {
    let (model, layout) = (world(), layout());
    model.create(&dataset("tank/basalt"), &[(property("mountpoint"), NODE.into())]).unwrap();
    model.mount(&dataset("tank/basalt")).unwrap();
    model.write(&dataset("tank/basalt"), "thesis.tex", 1000).unwrap();
    let before = state(&model);
    let plan = planned(&model, &layout);
    assert!(plan.risky().all(|planned| planned.risk.as_ref().unwrap().contains("1000 bytes")), "{plan:?}");
    let Err(Stopped::Risks(2)) = run(&model, &layout, &plan, false) else { panic!("it was taken") };
    assert_eq!(state(&model), before);
    run(&model, &layout, &plan, true).unwrap();
    assert_eq!(model.files(&dataset("tank/basalt")).len(), 1, "and nothing in it is lost");
}

#[test]
fn another_node_s_datasets_are_left_alone() {
    let (model, layout) = (world(), layout());
    run(&model, &layout, &planned(&model, &layout), false).unwrap();
    let other = Layout::new(&declaration(), Path::new("/nonexistent/other"), "4567").unwrap();
    let before = state(&model);
    let plan = planned(&model, &other);
    assert!(plan.steps.is_empty() && plan.obstacles.len() == 7, "{plan:?}");
    assert!(plan.obstacles[0].what.contains("belongs to node 0123"));
    let Err(Stopped::Obstacles(7)) = run(&model, &other, &plan, true) else { panic!("it was taken") };
    assert_eq!(state(&model), before);
}

#[test]
fn nothing_is_mounted_over_a_folder_that_holds_something() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config"), "{}").unwrap();
    let declared = Declaration {
        repo: Some(Repo { dataset: "tank/basalt/repo".into(), mountpoint: dir.path().into() }),
        ..declaration()
    };
    let (model, layout) = (world(), layout_of(&declared));
    let plan = planned(&model, &layout);
    assert!(plan.obstacles[0].what.contains("holds 'config'"), "{plan:?}");
    let Err(Stopped::Obstacles(1)) = run(&model, &layout, &plan, true) else { panic!("it was hidden") };
    assert!(model.datasets(layout.parent(), Reach::Itself).is_err(), "and nothing was made");
}

#[test]
fn a_missing_pool_or_parent_is_named() {
    let plan_of = |name: &str| planned(&world(), &layout_of(&Declaration::below(&dataset(name), 1)));
    assert!(plan_of("lost/basalt").obstacles[0].remedy.contains("zpool import lost"));
    assert!(plan_of("tank/a/basalt").obstacles[0].what.contains("there is no tank/a"));
}

#[test]
fn a_quota_below_what_is_used_and_a_reservation_of_what_is_not_there_are_named_before_anything_is_done() {
    let (model, layout) = (world(), layout());
    run(&model, &layout, &planned(&model, &layout), false).unwrap();
    model.write(&dataset("tank/basalt/shards/00"), "log", 5 << 20).unwrap();
    let with = |name: &str, value: &str| {
        let properties = [("node".into(), [(name.into(), value.into()), ("atime".into(), "on".into())].into())].into();
        planned(&model, &layout_of(&Declaration { properties, ..declaration() }))
    };
    assert!(
        with("quota", "1M").obstacles[0].what.contains("quota=1048576 is declared, and 5242880 bytes are used already")
    );
    assert!(with("reservation", "2T").obstacles[0].what.contains("reservation=2199023255552"));
    assert_eq!(steps(&with("quota", "1G")), ["set atime=on on tank/basalt", "set quota=1073741824 on tank/basalt"]);
}

#[test]
fn an_encrypted_node_has_its_key_loaded_before_anything_else() {
    let declared = Declaration {
        encryption: Some(Encryption { keyformat: "raw".into(), keylocation: "file:///keys/basalt".into() }),
        ..declaration()
    };
    let (model, layout) = (world(), layout_of(&declared));
    model.put_key("file:///keys/basalt", &[7; 32]);
    run(&model, &layout, &planned(&model, &layout), false).unwrap();
    assert!(planned(&model, &layout).is_done());
    // As after a restart.
    for member in layout.holding() {
        // What lies in one goes with it.
        let _unmounted_before = model.unmount(&member.dataset);
    }
    model.unload_key(layout.parent()).unwrap();
    let plan = planned(&model, &layout);
    assert_eq!(steps(&plan)[0], "load the key of tank/basalt");
    assert_eq!(plan.steps.len(), 6);
    run(&model, &layout, &plan, false).unwrap();
    assert!(planned(&model, &layout).is_done());
    // And one that is there without cannot be made so.
    let plain = world();
    run(&plain, &self::layout(), &planned(&plain, &self::layout()), false).unwrap();
    assert!(planned(&plain, &layout).obstacles.iter().all(|obstacle| obstacle.what.contains("is not encrypted")));
}

/// What may have happened to datasets before a plan is made.
#[derive(Clone, Debug)]
enum Past {
    Create(usize),
    Set(usize, usize),
    Mount(usize),
    Unmount(usize),
    Write(usize),
    Destroy(usize),
    Snapshot(usize),
    Apply,
    ApplyHalf(u64),
}

const NAMES: &[&str] = &[
    "tank",
    "tank/basalt",
    "tank/basalt/shards",
    "tank/basalt/shards/00",
    "tank/basalt/shards/01",
    "tank/basalt/keyspace",
    "tank/basalt/repo",
    "tank/basalt/reserve",
    "tank/basalt/other",
    "tank/basalt/shards/02",
];

const VALUES: &[(&str, &str)] = &[
    ("sync", "disabled"),
    ("sync", "standard"),
    ("recordsize", "1M"),
    ("compression", "zstd"),
    ("quota", "4K"),
    ("quota", "none"),
    ("canmount", "off"),
    ("canmount", "noauto"),
    ("mountpoint", "/nonexistent/elsewhere"),
    ("mountpoint", "none"),
    ("dedup", "on"),
    ("readonly", "on"),
    (NODE_PROPERTY, "0123"),
    (NODE_PROPERTY, "feed"),
    (ROLE_PROPERTY, "keyspace"),
    ("atime", "on"),
];

fn past() -> impl Strategy<Value = Past> {
    let name = 0..NAMES.len();
    prop_oneof![
        4 => name.clone().prop_map(Past::Create),
        4 => (name.clone(), 0..VALUES.len()).prop_map(|(n, v)| Past::Set(n, v)),
        2 => name.clone().prop_map(Past::Mount),
        2 => name.clone().prop_map(Past::Unmount),
        2 => name.clone().prop_map(Past::Write),
        1 => name.clone().prop_map(Past::Destroy),
        1 => name.prop_map(Past::Snapshot),
        2 => Just(Past::Apply),
        1 => (0u64..20).prop_map(Past::ApplyHalf),
    ]
}

fn happen(model: &Model, past: &Past) {
    let d = |n: &usize| dataset(NAMES[*n]);
    let layout = layout();
    // What is refused has not happened.
    let _refused = match past {
        Past::Create(n) => model.create(&d(n), &[]).is_ok(),
        Past::Set(n, v) => model.set(&d(n), &[(property(VALUES[*v].0), VALUES[*v].1.into())]).is_ok(),
        Past::Mount(n) => model.mount(&d(n)).is_ok(),
        Past::Unmount(n) => model.unmount(&d(n)).is_ok(),
        Past::Write(n) => model.write(&d(n), "file", 10_000).is_ok(),
        Past::Destroy(n) => model.destroy(&d(n)).is_ok(),
        Past::Snapshot(n) => model.snapshot(&[d(n).snapshot("s").unwrap()], &[]).is_ok(),
        Past::Apply => run(model, &layout, &planned(model, &layout), true).is_ok(),
        Past::ApplyHalf(after) => {
            let plan = planned(model, &layout);
            model.inject(Fault { operation: None, after: *after, class: Class::Io, done: after % 2 == 0 });
            let half = run(model, &layout, &plan, true).is_ok();
            model.clear_faults();
            half
        }
    };
}

fn kept(model: &Model) -> BTreeMap<Dataset, (u64, usize, BTreeMap<String, u64>)> {
    let all = model.datasets(&dataset("tank"), Reach::Descendants).unwrap();
    all.into_iter()
        .map(|d| (d.name.clone(), (d.guid, model.snapshots(&d.name).unwrap().len(), model.files(&d.name))))
        .collect()
}

fn undeclared(model: &Model, facts: &Facts) -> Vec<(Dataset, Vec<(PropertyName, String)>)> {
    let local = |d: &Dataset| {
        let all = model.properties(&Entity::from(d), &[]).unwrap();
        all.into_iter().filter(|p| p.source == Source::Local).map(|p| (p.name, p.value)).collect()
    };
    facts.undeclared.iter().map(|d| (d.clone(), local(d))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// From any past: where nothing is in the way, one apply reaches what is declared, for good; nothing that was there is lost or, where it isn't
    /// declared, touched. Where something is in the way or a word is missing, nothing changes at all.
    #[test]
    fn an_apply_reaches_what_is_declared_and_takes_nothing_away(pasts in prop::collection::vec(past(), 0..25)) {
        let (model, layout) = (world(), layout());
        pasts.iter().for_each(|past| happen(&model, past));
        let facts = look(&model, &layout).unwrap();
        let plan = plan(&layout, &facts);
        let (before, kept_before, others) = (state(&model), kept(&model), undeclared(&model, &facts));
        let needs_word = plan.risky().count() > 0;
        if needs_word || !plan.obstacles.is_empty() {
            prop_assert!(run(&model, &layout, &plan, false).is_err());
            prop_assert_eq!(&state(&model), &before);
        }
        match run(&model, &layout, &plan, true) {
            Err(stopped) => {
                prop_assert!(!plan.obstacles.is_empty(), "{}", stopped);
                prop_assert_eq!(state(&model), before);
            }
            Ok(()) => {
                let again = planned(&model, &layout);
                prop_assert!(again.is_done(), "{:?}", again);
                prop_assert_eq!(unfinished(&model, layout.parent()).unwrap(), None);
                let after = state(&model);
                run(&model, &layout, &again, false).unwrap();
                prop_assert_eq!(state(&model), after);
            }
        }
        let kept_after = kept(&model);
        for (name, was) in &kept_before {
            prop_assert_eq!(kept_after.get(name), Some(was));
        }
        prop_assert_eq!(undeclared(&model, &look(&model, &layout).unwrap()), others);
        for planned in &plan.steps {
            prop_assert!(!planned.why.is_empty());
        }
    }
}
