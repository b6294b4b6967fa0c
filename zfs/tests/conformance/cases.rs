//! One promise each, on any engine.

use std::io::Read;

use basalt_zfs::{
    Base, Class, Dataset, Entity, Error, Holder, PropertyName, Reach, Result, ResumeToken, RowsOf, Snapshot, Source,
    Stream, When, Zfs,
};

use crate::world::{NOBODY, World};

type Case = (&'static str, fn(&World));

/// Those for every change: one of each kind.
pub const SHORT: &[&str] = &[
    "one snapshot of several datasets is of one instant, or not at all",
    "a hold keeps a snapshot and is named",
    "a cut stream is resumed or dropped",
    "a key is needed, the right one, and raw streams need none",
    "a user without permissions is told which",
    "pools have their state",
];

pub const ALL: &[Case] = &[
    ("what is not there is NotFound", what_is_not_there),
    ("what is there is Exists", what_is_there),
    ("properties are set, inherited and refused", properties),
    ("one snapshot of several datasets is of one instant, or not at all", atomic_snapshot),
    ("a hold keeps a snapshot and is named", holds),
    ("a deferred destroy waits for the last hold and clone", deferred),
    ("snapshots are destroyed all or none", destroy_batch),
    ("a clone keeps its origin, and promotion turns that round", clones),
    ("a promotion with snapshots of one name is refused", promote_conflict),
    ("a bookmark outlives its snapshot and keeps its guid", bookmarks),
    ("a rollback goes to the youngest snapshot only", rollback),
    ("a rename keeps guids and takes all along", rename),
    ("a dataset with anything in it is not destroyed", destroy),
    ("mounts are known", mounts),
    ("a quota is a quota, and snapshots count", quota),
    ("a stream carries guids, whole and from a base", streams),
    ("a cut stream is resumed or dropped", resume),
    ("a target that was changed is left alone", diverged),
    ("what is no stream is BadStream", bad_streams),
    ("a key is needed, the right one, and raw streams need none", encryption),
    ("a user without permissions is told which", permissions),
    ("arguments that make no sense are Invalid", invalid),
    ("listing knows when nothing changed", snapshots_changed),
    ("several datasets are listed at once, without those that are not there", listing),
    ("pools have their state", pools),
];

fn snap(dataset: &Dataset, name: &str) -> Snapshot {
    dataset.snapshot(name).unwrap()
}

fn take(zfs: &dyn Zfs, dataset: &Dataset, name: &str) -> Snapshot {
    let snapshot = snap(dataset, name);
    zfs.snapshot(std::slice::from_ref(&snapshot), &[]).unwrap();
    snapshot
}

fn named(name: &str) -> PropertyName {
    name.parse().unwrap()
}

fn p(name: &str, value: &str) -> (PropertyName, String) {
    (named(name), value.to_owned())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, wanted: Class) -> Error {
    let error = result.expect_err("it must be refused");
    assert_eq!(error.class(), wanted, "{error}");
    assert!(!error.remedy().is_empty());
    error
}

fn get(w: &World, entity: impl Into<Entity>, name: &str) -> Option<(String, Source)> {
    let mut found = w.zfs.properties(&entity.into(), &[named(name)]).unwrap();
    assert!(found.len() <= 1);
    found.pop().map(|p| (p.value, p.source))
}

fn names(w: &World, dataset: &Dataset) -> Vec<String> {
    w.zfs.snapshots(dataset).unwrap().iter().map(|s| s.name.name().to_owned()).collect()
}

fn guid(w: &World, s: &Snapshot) -> u64 {
    w.zfs.snapshots(&s.dataset()).unwrap().iter().find(|e| e.name == *s).unwrap().guid
}

fn what_is_not_there(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let none = d.child("none").unwrap();
    let tag = "keep".parse().unwrap();
    refused(zfs.datasets(&none, Reach::Itself), Class::NotFound);
    refused(zfs.snapshots(&none), Class::NotFound);
    refused(zfs.bookmarks(&none), Class::NotFound);
    refused(zfs.properties(&Entity::from(&none), &[named("used")]), Class::NotFound);
    refused(zfs.properties(&Entity::from(&snap(&d, "x")), &[named("used")]), Class::NotFound);
    refused(zfs.holds(&snap(&d, "x")), Class::NotFound);
    refused(zfs.create(&none.child("x").unwrap(), &[]), Class::NotFound);
    refused(zfs.destroy(&none), Class::NotFound);
    refused(zfs.rename(&none, &d.child("x").unwrap()), Class::NotFound);
    refused(zfs.set(&none, &[p("atime", "off")]), Class::NotFound);
    refused(zfs.inherit(&none, &named("atime")), Class::NotFound);
    refused(zfs.snapshot(&[snap(&d, "x"), snap(&none, "x")], &[]), Class::NotFound);
    refused(zfs.rename_snapshot(&snap(&d, "x"), &snap(&d, "y")), Class::NotFound);
    refused(zfs.destroy_snapshots(&d, &[snap(&d, "x")], When::Now), Class::NotFound);
    refused(zfs.destroy_snapshots(&none, &[snap(&none, "x")], When::Now), Class::NotFound);
    refused(zfs.bookmark(&snap(&d, "x"), &d.bookmark("x").unwrap()), Class::NotFound);
    refused(zfs.destroy_bookmark(&d.bookmark("x").unwrap()), Class::NotFound);
    refused(zfs.hold(&snap(&d, "x"), &tag), Class::NotFound);
    refused(zfs.release(&snap(&d, "x"), &tag), Class::NotFound);
    refused(zfs.rollback(&snap(&d, "x")), Class::NotFound);
    refused(zfs.clone_snapshot(&snap(&d, "x"), &none, &[]), Class::NotFound);
    refused(zfs.promote(&none), Class::NotFound);
    refused(zfs.mount(&none), Class::NotFound);
    refused(zfs.unmount(&none), Class::NotFound);
    refused(zfs.load_key(&none, None), Class::NotFound);
    refused(zfs.resume_token(&none), Class::NotFound);
    refused(zfs.abort_receive(&d), Class::NotFound);
    refused(
        zfs.send(&Stream::Snapshot { snapshot: snap(&d, "x"), base: None, raw: false }, &mut Vec::new()),
        Class::NotFound,
    );
    refused(zfs.pool_status(&"no-such-pool".parse().unwrap()), Class::NotFound);
    refused(zfs.create(&"no-such-pool/x".parse().unwrap(), &[]), Class::NotFound);
    let s = take(zfs, &d, "s");
    refused(zfs.release(&s, &tag), Class::NotFound);
    refused(zfs.clone_snapshot(&s, &none.child("x").unwrap(), &[]), Class::NotFound);
}

fn what_is_there(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let (a, b) = (d.child("a").unwrap(), d.child("b").unwrap());
    zfs.create(&a, &[]).unwrap();
    zfs.create(&b, &[]).unwrap();
    refused(zfs.create(&a, &[]), Class::Exists);
    refused(zfs.rename(&a, &b), Class::Exists);
    let (s1, s2) = (take(zfs, &a, "s1"), take(zfs, &a, "s2"));
    refused(zfs.snapshot(std::slice::from_ref(&s1), &[]), Class::Exists);
    refused(zfs.rename_snapshot(&s1, &s2), Class::Exists);
    refused(zfs.clone_snapshot(&s1, &b, &[]), Class::Exists);
    let m = a.bookmark("m").unwrap();
    zfs.bookmark(&s1, &m).unwrap();
    refused(zfs.bookmark(&s2, &m), Class::Exists);
    let tag = "keep".parse().unwrap();
    zfs.hold(&s1, &tag).unwrap();
    refused(zfs.hold(&s1, &tag), Class::Exists);
}

fn properties(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let c = d.child("c").unwrap();
    zfs.set(&d, &[p("compression", "zstd"), p("basalt:note", "two  spaces, a comma = and 'quotes' $HOME")]).unwrap();
    zfs.create(&c, &[p("recordsize", "1M"), p("quota", "64M")]).unwrap();
    assert_eq!(get(w, &c, "recordsize"), Some(("1048576".into(), Source::Local)));
    assert_eq!(get(w, &c, "quota"), Some(("67108864".into(), Source::Local)));
    assert_eq!(get(w, &c, "compression"), Some(("zstd".into(), Source::Inherited(d.clone()))));
    let note = "two  spaces, a comma = and 'quotes' $HOME".to_owned();
    assert_eq!(get(w, &d, "basalt:note"), Some((note.clone(), Source::Local)));
    assert_eq!(get(w, &c, "basalt:note"), Some((note, Source::Inherited(d.clone()))));
    assert_eq!(get(w, &c, "basalt:other"), None);
    zfs.inherit(&c, &named("recordsize")).unwrap();
    assert_eq!(get(w, &c, "recordsize").unwrap().0, "131072");
    assert_eq!(get(w, &c, "type").unwrap().0, "filesystem");
    refused(zfs.set(&c, &[p("recordsize", "3")]), Class::Invalid);
    refused(zfs.set(&c, &[p("compression", "best")]), Class::Invalid);
    refused(zfs.set(&c, &[p("nonsense", "1")]), Class::Invalid);
    refused(zfs.set(&c, &[p("used", "1")]), Class::Invalid);
    refused(zfs.inherit(&c, &named("used")), Class::Invalid);
    refused(zfs.create(&d.child("x").unwrap(), &[p("recordsize", "3")]), Class::Invalid);
    refused(zfs.set(&c, &[p("basalt:note", "a\nb")]), Class::Invalid);
    let all = zfs.properties(&Entity::from(&c), &[]).unwrap();
    assert!(all.len() > 20 && all.iter().any(|p| p.name.as_str() == "basalt:note"));
    let entry = zfs.datasets(&d, Reach::Children).unwrap();
    assert_eq!(entry.iter().map(|e| e.name.clone()).collect::<Vec<_>>(), [d, c.clone()]);
    assert_eq!(get(w, &c, "guid").unwrap().0, entry[1].guid.to_string(), "guids are whole");
}

fn atomic_snapshot(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let parts: Vec<Dataset> = ["a", "b", "c"].iter().map(|n| d.child(n).unwrap()).collect();
    parts.iter().for_each(|c| zfs.create(c, &[]).unwrap());
    let one: Vec<Snapshot> = parts.iter().map(|c| snap(c, "one")).collect();
    zfs.snapshot(&one, &[p("basalt:epoch", "7")]).unwrap();
    let txgs: Vec<u64> = parts.iter().map(|c| zfs.snapshots(c).unwrap()[0].createtxg).collect();
    assert!(txgs.iter().all(|t| *t == txgs[0]), "one transaction group: {txgs:?}");
    assert_eq!(get(w, &one[1], "basalt:epoch").unwrap().0, "7");
    take(zfs, &parts[2], "two");
    let two: Vec<Snapshot> = parts.iter().map(|c| snap(c, "two")).collect();
    refused(zfs.snapshot(&two, &[]), Class::Exists);
    assert_eq!(
        (names(w, &parts[0]), names(w, &parts[1])),
        (vec!["one".into()], vec!["one".into()]),
        "none of them was made"
    );
    let all = zfs.snapshots(&parts[2]).unwrap();
    assert!(all[0].createtxg < all[1].createtxg && all[0].guid != all[1].guid);
}

fn holds(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let s = take(zfs, &d, "s");
    let (a, b) = ("edge 1".parse().unwrap(), "basalt:lease".parse().unwrap());
    zfs.hold(&s, &a).unwrap();
    zfs.hold(&s, &b).unwrap();
    assert_eq!(
        zfs.holds(&s).unwrap().iter().map(|h| h.tag.to_string()).collect::<Vec<_>>(),
        ["basalt:lease", "edge 1"]
    );
    let busy = refused(zfs.destroy_snapshots(&d, std::slice::from_ref(&s), When::Now), Class::Busy);
    assert_eq!(busy.holders(), [Holder::Hold(b.clone()), Holder::Hold(a.clone())]);
    let of = &zfs.snapshot_uses(&d).unwrap()[0];
    assert_eq!((of.holds, of.defer_destroy, of.clones.len()), (2, false, 0));
    zfs.release(&s, &a).unwrap();
    zfs.release(&s, &b).unwrap();
    zfs.destroy_snapshots(&d, std::slice::from_ref(&s), When::Now).unwrap();
    assert!(names(w, &d).is_empty());
}

fn deferred(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let tag = "keep".parse().unwrap();
    let (s, c) = (take(zfs, &d, "s"), d.child("clone").unwrap());
    zfs.hold(&s, &tag).unwrap();
    zfs.clone_snapshot(&s, &c, &[]).unwrap();
    zfs.destroy_snapshots(&d, std::slice::from_ref(&s), When::Free).unwrap();
    assert!(zfs.snapshot_uses(&d).unwrap()[0].defer_destroy);
    zfs.release(&s, &tag).unwrap();
    assert_eq!(names(w, &d), ["s"], "the clone still needs it");
    zfs.destroy(&c).unwrap();
    assert!(names(w, &d).is_empty());
}

fn destroy_batch(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let all: Vec<Snapshot> = ["a", "b", "c"].iter().map(|n| take(zfs, &d, n)).collect();
    let tag = "keep".parse().unwrap();
    zfs.hold(&all[1], &tag).unwrap();
    let busy = refused(zfs.destroy_snapshots(&d, &all, When::Now), Class::Busy);
    assert_eq!(busy.holders(), [Holder::Hold(tag)]);
    assert_eq!(names(w, &d), ["a", "b", "c"], "none went");
    zfs.destroy_snapshots(&d, &[all[0].clone(), snap(&d, "gone")], When::Now).unwrap();
    assert_eq!(names(w, &d), ["b", "c"]);
}

fn clones(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let (a, c) = (d.child("a").unwrap(), d.child("c").unwrap());
    zfs.create(&a, &[]).unwrap();
    zfs.mount(&a).unwrap();
    w.write(&a, "f", 100_000).unwrap();
    let s = take(zfs, &a, "s");
    let id = guid(w, &s);
    zfs.clone_snapshot(&s, &c, &[p("readonly", "on")]).unwrap();
    assert_eq!(zfs.datasets(&c, Reach::Itself).unwrap()[0].origin, Some(s.clone()));
    assert_eq!(get(w, &c, "mounted").unwrap().0, "no");
    zfs.mount(&c).unwrap();
    assert_eq!(w.files(&c).get("f"), Some(&100_000));
    assert_eq!(w.write(&c, "g", 1), Err(Class::ReadOnly));
    let busy = refused(zfs.destroy_snapshots(&a, std::slice::from_ref(&s), When::Now), Class::Busy);
    assert_eq!(busy.holders(), [Holder::Clone(c.clone())]);
    refused(zfs.promote(&a), Class::Invalid);
    zfs.promote(&c).unwrap();
    assert_eq!((names(w, &a), names(w, &c)), (vec![], vec!["s".to_owned()]));
    assert_eq!(guid(w, &snap(&c, "s")), id, "the snapshot is the same one");
    assert_eq!(zfs.datasets(&a, Reach::Itself).unwrap()[0].origin, Some(snap(&c, "s")));
    assert_eq!(zfs.datasets(&c, Reach::Itself).unwrap()[0].origin, None);
    zfs.destroy(&a).unwrap();
    zfs.destroy_snapshots(&c, &[snap(&c, "s")], When::Now).unwrap();
}

fn promote_conflict(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let (a, c) = (d.child("a").unwrap(), d.child("c").unwrap());
    zfs.create(&a, &[]).unwrap();
    take(zfs, &a, "same");
    zfs.clone_snapshot(&take(zfs, &a, "s"), &c, &[]).unwrap();
    take(zfs, &c, "same");
    refused(zfs.promote(&c), Class::Exists);
    assert_eq!(names(w, &a), ["same", "s"]);
}

fn bookmarks(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let s = take(zfs, &d, "s");
    let entry = zfs.snapshots(&d).unwrap().remove(0);
    zfs.bookmark(&s, &d.bookmark("m").unwrap()).unwrap();
    zfs.destroy_snapshots(&d, &[s], When::Now).unwrap();
    let marks = zfs.bookmarks(&d).unwrap();
    assert_eq!((marks[0].guid, marks[0].createtxg, marks.len()), (entry.guid, entry.createtxg, 1));
    zfs.destroy_bookmark(&d.bookmark("m").unwrap()).unwrap();
    assert!(zfs.bookmarks(&d).unwrap().is_empty());
}

fn rollback(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    w.write(&d, "f", 1000).unwrap();
    let s1 = take(zfs, &d, "s1");
    w.write(&d, "g", 1000).unwrap();
    zfs.rollback(&s1).unwrap();
    assert_eq!(w.files(&d).into_keys().collect::<Vec<_>>(), ["f"]);
    let s2 = take(zfs, &d, "s2");
    zfs.bookmark(&s2, &d.bookmark("m2").unwrap()).unwrap();
    let busy = refused(zfs.rollback(&s1), Class::Busy);
    let younger = |name: String| Holder::Younger(name);
    assert_eq!(busy.holders(), [younger(format!("{d}#m2")), younger(format!("{d}@s2"))]);
    zfs.destroy_snapshots(&d, &[s2], When::Now).unwrap();
    let busy = refused(zfs.rollback(&s1), Class::Busy);
    assert_eq!(busy.holders(), [younger(format!("{d}#m2"))], "a bookmark is in the way too");
    zfs.destroy_bookmark(&d.bookmark("m2").unwrap()).unwrap();
    zfs.rollback(&s1).unwrap();
}

fn rename(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let (a, b) = (d.child("a").unwrap(), d.child("b").unwrap());
    zfs.create(&a, &[]).unwrap();
    zfs.create(&a.child("x").unwrap(), &[]).unwrap();
    let s = take(zfs, &a.child("x").unwrap(), "s");
    let (fs_guid, s_guid) = (zfs.datasets(&a, Reach::Itself).unwrap()[0].guid, guid(w, &s));
    refused(zfs.rename(&a, &a.child("x/y").unwrap()), Class::Invalid);
    refused(zfs.rename(&a, &d.child("none/y").unwrap()), Class::NotFound);
    zfs.rename(&a, &b).unwrap();
    assert_eq!(zfs.datasets(&b, Reach::Itself).unwrap()[0].guid, fs_guid);
    let moved = snap(&b.child("x").unwrap(), "s");
    assert_eq!(guid(w, &moved), s_guid);
    zfs.rename_snapshot(&moved, &snap(&b.child("x").unwrap(), "t")).unwrap();
    assert_eq!(guid(w, &snap(&b.child("x").unwrap(), "t")), s_guid);
}

fn destroy(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let a = d.child("a").unwrap();
    zfs.create(&a, &[]).unwrap();
    let s = take(zfs, &d, "s");
    let busy = refused(zfs.destroy(&d), Class::Busy);
    assert_eq!(busy.holders(), [Holder::Child(a.to_string()), Holder::Child(s.to_string())]);
    zfs.destroy(&a).unwrap();
    zfs.destroy_snapshots(&d, &[s], When::Now).unwrap();
    w.with_open_file(&d, || {
        refused(zfs.destroy(&d), Class::Busy);
    });
    zfs.destroy(&d).unwrap();
    refused(zfs.datasets(&d, Reach::Itself), Class::NotFound);
}

fn mounts(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let mounted = |d: &Dataset| get(w, d, "mounted").unwrap().0;
    let a = d.child("a").unwrap();
    zfs.create(&a, &[]).unwrap();
    assert_eq!((mounted(&d), mounted(&a)), ("yes".into(), "no".into()), "creating mounts nothing");
    refused(zfs.unmount(&a), Class::Already);
    zfs.mount(&a).unwrap();
    refused(zfs.mount(&a), Class::Already);
    w.with_open_file(&a, || {
        refused(zfs.unmount(&a), Class::Busy);
    });
    zfs.unmount(&a).unwrap();
    zfs.set(&a, &[p("canmount", "off")]).unwrap();
    refused(zfs.mount(&a), Class::Invalid);
    zfs.set(&a, &[p("canmount", "on"), p("mountpoint", "none")]).unwrap();
    refused(zfs.mount(&a), Class::Invalid);
}

fn quota(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    zfs.set(&d, &[p("quota", "16M")]).unwrap();
    w.write(&d, "f", 8 << 20).unwrap();
    assert_eq!(w.write(&d, "g", 32 << 20), Err(Class::NoSpace));
    refused(zfs.set(&d, &[p("quota", "1M")]), Class::NoSpace);
    refused(zfs.set(&d, &[p("reservation", "100T")]), Class::NoSpace);
    let c = d.child("c").unwrap();
    zfs.create(&c, &[]).unwrap();
    assert!(get(w, &c, "available").unwrap().0.parse::<u64>().unwrap() <= 16 << 20, "what lies below is under it too");
}

/// The bytes of a stream.
fn sent(w: &World, snapshot: &Snapshot, base: Option<Base>, raw: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    w.zfs.send(&Stream::Snapshot { snapshot: snapshot.clone(), base, raw }, &mut bytes).unwrap();
    bytes
}

fn streams(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let (a, copy) = (d.child("a").unwrap(), d.child("copy").unwrap());
    zfs.create(&a, &[]).unwrap();
    zfs.mount(&a).unwrap();
    w.write(&a, "f", 300_000).unwrap();
    let s1 = take(zfs, &a, "s1");
    zfs.bookmark(&s1, &a.bookmark("m1").unwrap()).unwrap();
    w.write(&a, "g", 200_000).unwrap();
    let s2 = take(zfs, &a, "s2");
    take(zfs, &a, "s3");
    let size = zfs.send_size_bytes(&Stream::Snapshot { snapshot: s2.clone(), base: None, raw: false }).unwrap();
    let part = zfs
        .send_size_bytes(&Stream::Snapshot { snapshot: s2.clone(), base: Some(Base::Snapshot(s1.clone())), raw: false })
        .unwrap();
    assert!(size > 0 && part > 0 && part <= size, "{part} of {size}");

    zfs.receive(&copy, &[p("readonly", "on")], &mut sent(w, &s1, None, false).as_slice()).unwrap();
    assert_eq!(guid(w, &snap(&copy, "s1")), guid(w, &s1));
    assert_eq!(get(w, &copy, "readonly").unwrap(), ("on".into(), Source::Local));
    assert_eq!(get(w, &copy, "mounted").unwrap().0, "no");
    zfs.receive(&copy, &[], &mut sent(w, &s2, Some(Base::Bookmark(a.bookmark("m1").unwrap())), false).as_slice())
        .unwrap();
    zfs.receive(&copy, &[], &mut sent(w, &snap(&a, "s3"), Some(Base::Snapshot(s2.clone())), false).as_slice()).unwrap();
    let guids =
        |d: &Dataset| zfs.snapshots(d).unwrap().iter().map(|s| (s.name.name().to_owned(), s.guid)).collect::<Vec<_>>();
    assert_eq!(guids(&copy), guids(&a));
    zfs.mount(&copy).unwrap();
    assert_eq!(w.files(&copy), w.files(&a));

    refused(zfs.receive(&copy, &[], &mut sent(w, &s1, None, false).as_slice()), Class::Exists);
    refused(zfs.receive(&d.child("none/x").unwrap(), &[], &mut sent(w, &s1, None, false).as_slice()), Class::NotFound);
    let from_s1 = sent(w, &s2, Some(Base::Snapshot(s1.clone())), false);
    refused(zfs.receive(&d.child("none").unwrap(), &[], &mut from_s1.as_slice()), Class::NotFound);
    let backwards = Stream::Snapshot { snapshot: s1, base: Some(Base::Snapshot(s2)), raw: false };
    refused(zfs.send(&backwards, &mut Vec::new()), Class::Invalid);
}

fn resume(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let (a, copy) = (d.child("a").unwrap(), d.child("copy").unwrap());
    zfs.create(&a, &[]).unwrap();
    zfs.mount(&a).unwrap();
    w.write(&a, "f", 3 << 20).unwrap();
    let s1 = take(zfs, &a, "s1");
    let whole = sent(w, &s1, None, false);
    refused(zfs.receive(&copy, &[], &mut &whole[..whole.len() / 2]), Class::Incomplete);
    let token = zfs.resume_token(&copy).unwrap().expect("a token");
    refused(zfs.receive(&copy, &[], &mut whole.as_slice()), Class::Exists);
    let rest = Stream::Resume(token.clone());
    assert!(
        zfs.send_size_bytes(&rest).unwrap()
            < zfs.send_size_bytes(&Stream::Snapshot { snapshot: s1.clone(), base: None, raw: false }).unwrap()
    );
    let mut bytes = Vec::new();
    zfs.send(&rest, &mut bytes).unwrap();
    assert!(bytes.len() < whole.len(), "{} of {}", bytes.len(), whole.len());
    zfs.receive(&copy, &[], &mut bytes.as_slice()).unwrap();
    assert_eq!((zfs.resume_token(&copy).unwrap(), guid(w, &snap(&copy, "s1"))), (None, guid(w, &s1)));

    // A link that breaks is the same, and says so.
    struct Breaks<'a>(&'a [u8]);
    impl Read for Breaks<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() { Err(std::io::Error::other("the link broke")) } else { self.0.read(into) }
        }
    }
    let other = d.child("other").unwrap();
    let broken = refused(zfs.receive(&other, &[], &mut Breaks(&whole[..whole.len() / 2])), Class::Incomplete);
    assert_eq!(broken.class(), Class::Incomplete);
    assert!(zfs.resume_token(&other).unwrap().is_some());
    zfs.abort_receive(&other).unwrap();
    refused(zfs.datasets(&other, Reach::Itself), Class::NotFound);

    // The token of a snapshot that is gone; ZFS would find it by its guid in the copy too.
    zfs.destroy_snapshots(&a, &[s1], When::Now).unwrap();
    zfs.destroy_snapshots(&copy, &[snap(&copy, "s1")], When::Now).unwrap();
    refused(zfs.send(&Stream::Resume(token), &mut Vec::new()), Class::NotFound);
    let nonsense = ResumeToken::parse("1-abcdef-12-34").unwrap();
    refused(zfs.send(&Stream::Resume(nonsense), &mut Vec::new()), Class::BadStream);
}

fn diverged(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let (a, copy) = (d.child("a").unwrap(), d.child("copy").unwrap());
    zfs.create(&a, &[]).unwrap();
    zfs.mount(&a).unwrap();
    w.write(&a, "f", 100_000).unwrap();
    let s1 = take(zfs, &a, "s1");
    w.write(&a, "g", 100_000).unwrap();
    let s2 = take(zfs, &a, "s2");
    let (full, part) = (sent(w, &s1, None, false), sent(w, &s2, Some(Base::Snapshot(s1)), false));
    zfs.receive(&copy, &[], &mut full.as_slice()).unwrap();
    zfs.mount(&copy).unwrap();
    w.write(&copy, "mine", 100_000).unwrap();
    refused(zfs.receive(&copy, &[], &mut part.as_slice()), Class::Diverged);
    assert_eq!(w.files(&copy).len(), 2, "it is left alone");
    let own = take(zfs, &copy, "own");
    refused(zfs.receive(&copy, &[], &mut part.as_slice()), Class::Diverged);
    assert_eq!(names(w, &copy), ["s1", "own"]);
    zfs.destroy_snapshots(&copy, &[own], When::Now).unwrap();
    zfs.rollback(&snap(&copy, "s1")).unwrap();
    zfs.receive(&copy, &[], &mut part.as_slice()).unwrap();
    assert_eq!(names(w, &copy), ["s1", "s2"]);
}

fn bad_streams(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let target = d.child("x").unwrap();
    let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    refused(zfs.receive(&target, &[], &mut noise.as_slice()), Class::BadStream);
    refused(zfs.receive(&target, &[], &mut std::io::empty()), Class::BadStream);
    refused(zfs.datasets(&target, Reach::Itself), Class::NotFound);
}

fn encryption(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let (e, copy) = (d.child("e").unwrap(), d.child("copy").unwrap());
    let key = [7u8; 32];
    let location = w.key("key", &key);
    let how = [p("encryption", "aes-256-gcm"), p("keyformat", "raw"), p("keylocation", &location)];
    zfs.create(&e, &how).unwrap();
    zfs.mount(&e).unwrap();
    w.write(&e, "f", 200_000).unwrap();
    let s1 = take(zfs, &e, "s1");
    let status = |d: &Dataset| get(w, d, "keystatus").map(|(value, _)| value);
    assert_eq!((status(&e), status(&d)), (Some("available".into()), None));
    refused(zfs.unload_key(&e), Class::Busy);
    zfs.unmount(&e).unwrap();
    zfs.unload_key(&e).unwrap();
    refused(zfs.unload_key(&e), Class::Already);
    assert_eq!(status(&e), Some("unavailable".into()));
    refused(zfs.mount(&e), Class::KeyNotLoaded);
    refused(zfs.create(&e.child("x").unwrap(), &[]), Class::KeyNotLoaded);
    refused(
        zfs.send(&Stream::Snapshot { snapshot: s1.clone(), base: None, raw: false }, &mut Vec::new()),
        Class::KeyNotLoaded,
    );
    let raw = sent(w, &s1, None, true);
    zfs.receive(&copy, &[], &mut raw.as_slice()).unwrap();
    assert_eq!((guid(w, &snap(&copy, "s1")), status(&copy)), (guid(w, &s1), Some("unavailable".into())));
    refused(zfs.mount(&copy), Class::KeyNotLoaded);
    refused(zfs.load_key(&copy, Some(&[8u8; 32])), Class::KeyWrong);
    zfs.load_key(&copy, Some(&key)).unwrap();
    zfs.mount(&copy).unwrap();
    assert_eq!(w.files(&copy).get("f"), Some(&200_000));
    zfs.load_key(&e, None).unwrap();
    refused(zfs.load_key(&e, None), Class::Already);
    refused(zfs.load_key(&d, Some(&key)), Class::Invalid);
}

fn permissions(w: &World) {
    let d = w.fresh();
    let s = take(&*w.zfs, &d, "s");
    w.as_nobody(&d, &[], |zfs| {
        let denied = refused(zfs.snapshot(&[snap(&d, "no")], &[]), Class::Permission);
        assert_eq!(denied.remedy(), format!("as root: zfs allow -u {NOBODY} snapshot {d}"));
        refused(zfs.hold(&s, &"x".parse().unwrap()), Class::Permission);
        refused(zfs.set(&d, &[p("atime", "off")]), Class::Permission);
        refused(zfs.destroy_snapshots(&d, std::slice::from_ref(&s), When::Now), Class::Permission);
        refused(zfs.rollback(&s), Class::Permission);
        refused(zfs.unmount(&d), Class::Permission);
        assert_eq!(zfs.snapshots(&d).unwrap().len(), 1, "looking is free");
    });
    w.as_nobody(&d, &["snapshot", "hold", "release", "bookmark"], |zfs| {
        let allowed = zfs.delegation(&d).unwrap().allowed(&d, NOBODY, &[]);
        assert!(["bookmark", "hold", "release", "snapshot"].iter().all(|p| allowed.contains(*p)), "{allowed:?}");
        let yes = take(zfs, &d, "yes");
        zfs.hold(&yes, &"x".parse().unwrap()).unwrap();
        zfs.bookmark(&yes, &d.bookmark("b").unwrap()).unwrap();
        zfs.release(&yes, &"x".parse().unwrap()).unwrap();
        refused(zfs.destroy_snapshots(&d, &[yes], When::Now), Class::Permission);
    });
}

fn invalid(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    let a = d.child("a").unwrap();
    zfs.create(&a, &[]).unwrap();
    refused(zfs.snapshot(&[], &[]), Class::Invalid);
    refused(zfs.snapshot(&[snap(&d, "x"), snap(&d, "y")], &[]), Class::Invalid);
    refused(zfs.snapshot(&[snap(&d, "x"), "other/a@x".parse().unwrap()], &[]), Class::Invalid);
    refused(zfs.snapshot(&[snap(&d, "x")], &[p("atime", "off")]), Class::Invalid);
    refused(zfs.destroy_snapshots(&d, &[], When::Now), Class::Invalid);
    refused(zfs.destroy_snapshots(&d, &[snap(&a, "x")], When::Now), Class::Invalid);
    let s = take(zfs, &d, "s");
    refused(zfs.bookmark(&s, &a.bookmark("x").unwrap()), Class::Invalid);
    refused(zfs.rename_snapshot(&s, &snap(&a, "s")), Class::Invalid);
    refused(zfs.destroy(&d.pool().root()), Class::Invalid);
    refused(zfs.rename(&a, &"no-such-pool/a".parse().unwrap()), Class::NotFound);
    assert_eq!(names(w, &d), ["s"]);
}

fn snapshots_changed(w: &World) {
    let zfs = &*w.zfs;
    let d = w.fresh();
    take(zfs, &d, "s");
    let Some(first) = zfs.snapshots_changed_unix_s(&d).unwrap() else {
        assert!(zfs.version().unwrap().tools < (2, 2, 0), "only releases before 2.2 can't tell");
        return;
    };
    assert_eq!(zfs.snapshots_changed_unix_s(&d).unwrap(), Some(first));
    assert_eq!(zfs.snapshots_changed_unix_s(&d).unwrap(), Some(first));
}

fn listing(w: &World) {
    let zfs = &*w.zfs;
    let (a, b) = (w.fresh(), w.fresh());
    zfs.set(&a, &[p("sync", "always"), p("basalt:note", "7")]).unwrap();
    take(zfs, &a, "one");
    take(zfs, &b, "two");
    let names = ["sync", "basalt:note", "snapshots_changed"].map(named);
    let absent = a.child("absent").unwrap();
    let listed = zfs.listing(&[b.clone(), absent, a.clone()], RowsOf::Datasets, &names).unwrap();
    let seen: Vec<_> =
        listed.iter().map(|l| (l.name.as_str(), l.values[0].as_deref(), l.values[1].as_deref())).collect();
    let mut wanted = vec![(a.as_str(), Some("always"), Some("7")), (b.as_str(), Some("standard"), None)];
    wanted.sort();
    assert_eq!(seen, wanted);
    let changed = listed.iter().find(|l| l.name.as_str() == a.as_str()).unwrap().values[2].as_ref();
    assert_eq!(changed.and_then(|at| at.parse().ok()), zfs.snapshots_changed_unix_s(&a).unwrap());
    assert_eq!(zfs.listing(&[], RowsOf::Datasets, &names).unwrap(), []);
    refused(zfs.listing(&[a.clone(), "elsewhere/x".parse().unwrap()], RowsOf::Datasets, &names), Class::Invalid);
    let listed = zfs.listing(&[a.clone(), b.clone()], RowsOf::Snapshots, &["creation", "objsetid"].map(named)).unwrap();
    let mut wanted = [snap(&a, "one"), snap(&b, "two")];
    wanted.sort();
    assert_eq!(listed.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), wanted.each_ref().map(Snapshot::as_str));
    let objsets: std::collections::BTreeSet<_> = listed.iter().map(|l| l.values[1].clone().unwrap()).collect();
    assert!(objsets.len() == 2 && listed.iter().all(|l| l.values[0].is_some()));
}

fn pools(w: &World) {
    let zfs = &*w.zfs;
    let pool = w.fresh().pool();
    let entry = zfs.pools().unwrap().into_iter().find(|p| p.name == pool).unwrap();
    assert!(entry.size_bytes > entry.allocated_bytes && !entry.read_only && entry.guid != 0);
    let status = zfs.pool_status(&pool).unwrap();
    assert_eq!((status.health, status.data_errors), (entry.health, 0));
    assert!(!status.vdevs.is_empty());
}
