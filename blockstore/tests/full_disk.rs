//! A real disk that is full to its last byte, under the real RocksDB: what it refuses, that it serves on, and that it goes on by itself once there is room.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use basalt_blockstore::{
    ErrorKind, Options,
    store::{Env, Op, Store},
};

/// The disk of a test, in the run of it that has one.
const DISK: &str = "BASALT_TEST_SMALL_DISK";

/// Runs the calling test once more, in a process whose mounts nobody else sees, on a file system of its own with that many MiB. Some folder of it
/// in that process, `None` in the one that started it.
fn small_disk(test: &str, options: &str) -> Option<PathBuf> {
    if let Some(disk) = std::env::var_os(DISK) {
        return Some(disk.into());
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let script = format!(
        "mount -t tmpfs -o {options} none \"$DISK\" && {DISK}=\"$DISK\" exec \"$PROGRAM\" --exact {test} --nocapture --test-threads 1"
    );
    let mut unshare = Command::new("unshare");
    unshare.arg("--mount");
    if !nix::unistd::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let status = unshare
        .args(["sh", "-c", &script])
        .env("DISK", dir.path())
        .env("PROGRAM", std::env::current_exe().unwrap())
        .status()
        .unwrap();
    assert!(status.success(), "{test} on a disk of its own (mount namespaces are needed): {status}");
    None
}

fn key(number: u32) -> Vec<u8> {
    format!("key-{number:08}").into_bytes()
}

fn value(number: u32, len: usize) -> Vec<u8> {
    number.to_le_bytes().iter().copied().cycle().take(len).collect()
}

fn put(store: &Store, number: u32, len: usize) -> Result<(), ErrorKind> {
    store.write(&[Op::PutIfAbsent { key: &key(number), value: &value(number, len) }], false).map_err(|err| err.kind())
}

fn get(store: &Store, number: u32) -> Result<Vec<u8>, ErrorKind> {
    let mut buffer = Vec::new();
    store.get(&key(number), &mut buffer).map(|_| buffer).map_err(|err| err.kind())
}

/// Takes all space that is left.
fn fill(disk: &Path) -> PathBuf {
    use std::io::Write;
    let path = disk.join("of another program");
    let mut file = fs::File::create(&path).unwrap();
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![7; size]).is_ok() {}
    }
    path
}

fn delete(store: &Store, number: u32) {
    store.write(&[Op::Delete { key: &key(number) }], false).unwrap();
}

fn options() -> Options {
    Options { segment_bytes: 4 << 20, reserve_bytes: 4 << 20, ..Options::default() }
}

#[test]
fn after_a_disk_was_full_to_the_last_byte_the_index_goes_on_without_a_restart() {
    let Some(disk) =
        small_disk("after_a_disk_was_full_to_the_last_byte_the_index_goes_on_without_a_restart", "size=64m")
    else {
        return;
    };
    let dir = disk.join("store");
    let store = Store::open(&dir, &Env::real(), options()).unwrap();
    let first = |round: u32| round * 1000;
    let holds = |store: &Store, from: u32, to: u32| {
        (0..to).for_each(|number| assert_eq!(get(store, number).is_ok(), number >= from, "{number} of {from} to {to}"));
        assert_eq!(store.stats().count, u64::from(to - from));
    };
    (0..first(1)).for_each(|number| put(&store, number, 4096).unwrap());
    for round in 0..3 {
        (first(round + 1)..first(round + 2)).for_each(|number| put(&store, number, 4096).unwrap());
        let filler = fill(&disk);
        // The tombstones go where the open segment has space reserved; the index finds none.
        (first(round)..first(round + 1)).for_each(|number| delete(&store, number));
        let refused = store.reclaim().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
        holds(&store, first(round + 1), first(round + 2));
        fs::remove_file(filler).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(err) = store.reclaim() {
            assert!(Instant::now() < deadline, "{err}");
            std::thread::sleep(Duration::from_millis(50));
        }
        holds(&store, first(round + 1), first(round + 2));
    }
    store.close().unwrap();
    holds(&Store::open(&dir, &Env::real(), options()).unwrap(), first(3), first(4));
}

#[test]
fn an_index_that_finds_no_room_to_open_is_not_taken_for_damaged() {
    let Some(disk) = small_disk("an_index_that_finds_no_room_to_open_is_not_taken_for_damaged", "size=24m") else {
        return;
    };
    let dir = disk.join("store");
    let store = Store::open(&dir, &Env::real(), options()).unwrap();
    (0..1000).for_each(|number| put(&store, number, 4096).unwrap());
    store.close().unwrap();
    // RocksDB draws it when it makes a database.
    let identity = || fs::read(dir.join("index/IDENTITY")).unwrap();
    let before = identity();
    let filler = fill(&disk);
    let refused = Store::open(&dir, &Env::real(), options()).map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
    assert!(refused.to_string().contains("free some"), "{refused}");
    fs::remove_file(filler).unwrap();
    let store = Store::open(&dir, &Env::real(), options()).unwrap();
    assert_eq!(identity(), before, "it was made anew");
    (0..1000).for_each(|number| assert!(get(&store, number).is_ok()));
}
