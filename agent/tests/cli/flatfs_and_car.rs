//! Blocks in and out: verified, resumable, the source untouched.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::sandbox::{Kubo, Sandbox, block, car, cid, eventually};

type Blocks = Vec<(Vec<u8>, Vec<u8>)>;

fn blocks(count: u32) -> Blocks {
    (0..count).map(block).collect()
}

fn key(multihash: &[u8]) -> String {
    data_encoding::BASE32_NOPAD.encode(multihash)
}

/// A flatfs folder as Kubo leaves it.
fn flatfs(root: &Path, blocks: &Blocks) {
    fs::create_dir_all(root).unwrap();
    fs::write(root.join("SHARDING"), "/repo/flatfs/shard/v1/next-to-last/2\n").unwrap();
    fs::write(root.join("_README"), "This is a repository of IPLD objects.\n").unwrap();
    fs::write(root.join("diskUsage.cache"), "{\"diskUsage\":1,\"accuracy\":\"initial-exact\"}\n").unwrap();
    for (multihash, value) in blocks {
        let path = file_of(root, multihash);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
    }
}

fn file_of(root: &Path, multihash: &[u8]) -> PathBuf {
    let key = key(multihash);
    root.join(&key[key.len() - 3..key.len() - 1]).join(format!("{key}.data"))
}

/// Every file below a folder with its bytes.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    found.insert(path.strip_prefix(root).unwrap().to_path_buf(), fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_car_goes_in_and_comes_out_whole() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let blocks = blocks(300);
    let source = sandbox.write("in.car", car(&blocks));
    let before = fs::read(&source).unwrap();
    let counts = sandbox.basalt(&["import", "car", text(&source), "--json"]).json();
    assert_eq!((&counts["counts"]["blocks"], &counts["counts"]["new_blocks"]), (&300.into(), &300.into()));
    assert!(fs::read(&source).unwrap() == before, "the source was touched");

    let target = sandbox.path("out.car");
    sandbox.basalt(&["export", "car", text(&target)]).ok();
    let mut sorted = blocks.clone();
    sorted.sort();
    assert!(fs::read(&target).unwrap() == car(&sorted));
    let piped = sandbox.command(&["export", "car", "-"]).output().unwrap();
    assert!(piped.status.success() && piped.stdout == car(&sorted));
}

#[test]
fn importing_again_stores_nothing_twice() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let source = sandbox.write("in.car", car(&blocks(40)));
    sandbox.basalt(&["import", "car", text(&source)]).ok();
    let counts = sandbox.basalt(&["import", "car", text(&source), "--json"]).json();
    assert_eq!((&counts["counts"]["blocks"], &counts["counts"]["new_blocks"]), (&40.into(), &0.into()));
    assert_eq!(sandbox.status()["blocks"], 40);
}

#[test]
fn a_car_of_version_2_or_from_standard_input_is_as_good() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let inner = car(&blocks(30));
    let mut v2 = b"\x0a\xa1\x67version\x02".to_vec();
    v2.extend([0; 16]);
    for number in [51u64, inner.len() as u64, 0] {
        v2.extend(number.to_le_bytes());
    }
    v2.extend(&inner);
    let source = sandbox.write("v2.car", &v2);
    assert_eq!(sandbox.basalt(&["import", "car", text(&source), "--json"]).json()["car_version"], 2);
    assert_eq!(sandbox.status()["blocks"], 30);
    sandbox.basalt_with_input(&["import", "car", "-"], &car(&blocks(50))).ok();
    assert_eq!(sandbox.status()["blocks"], 50);
}

#[test]
fn a_damaged_car_is_refused_with_cid_and_offset_and_what_came_before_stays() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let mut blocks = blocks(20);
    blocks[12].1[100] ^= 1;
    let offset = car(&blocks[..12]).len();
    let source = sandbox.write("bad.car", car(&blocks));
    let name = cid(&blocks[12].0);
    sandbox
        .basalt(&["import", "car", text(&source)])
        .fails(1, &[&name, &format!("at byte {offset}"), "12 blocks before it"]);
    assert_eq!(sandbox.status()["blocks"], 12);
    // It does not pass at the second try either.
    sandbox.basalt(&["import", "car", text(&source)]).fails(1, &[&name]);
}

#[test]
fn a_truncated_car_is_refused_and_the_whole_one_goes_in_afterwards() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let whole = car(&blocks(20));
    let source = sandbox.write("cut.car", &whole[..whole.len() - 7]);
    let ends = format!("at byte {}", whole.len() - 7);
    sandbox.basalt(&["import", "car", text(&source)]).fails(1, &[&ends, "it is cut", "19 blocks before it"]);
    fs::write(&source, &whole).unwrap();
    sandbox.basalt(&["import", "car", text(&source)]).ok();
    assert_eq!(sandbox.status()["blocks"], 20);
}

#[test]
fn what_is_no_car_is_refused() {
    let sandbox = Sandbox::with_node();
    let source = sandbox.write("letter.txt", "dear reader, this is no archive at all");
    sandbox.basalt(&["import", "car", text(&source)]).fails(1, &["letter.txt", "not a CAR", "nothing was imported"]);
    sandbox.basalt(&["import", "car", "/nowhere.car"]).fails(3, &["/nowhere.car"]);
    sandbox.basalt(&["import", "flatfs", text(&sandbox.path("nowhere"))]).fails(3, &["no such folder"]);
}

#[test]
fn an_import_that_was_killed_resumes_where_it_was() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    // Several rounds of 64 MiB, of which the first ones are done when it is killed.
    let big: Blocks = (0..200u32)
        .map(|n| {
            let value = n.to_le_bytes().repeat(256 << 10);
            let mut multihash = vec![0x12, 32];
            multihash.extend(<sha2::Sha256 as sha2::Digest>::digest(&value));
            (multihash, value)
        })
        .collect();
    let source = sandbox.write("big.car", car(&big));
    let mut first = sandbox.command(&["import", "car", text(&source)]).spawn().unwrap();
    let run = sandbox.node().join("run");
    let note = || {
        let entry = fs::read_dir(&run).ok()?.filter_map(Result::ok).find(|entry| {
            let name = entry.file_name().into_string().unwrap_or_default();
            name.starts_with("import-") && name.ends_with(".json")
        })?;
        serde_json::from_slice::<serde_json::Value>(&fs::read(entry.path()).ok()?).ok()
    };
    let noted = eventually("a round is noted", || {
        note().or_else(|| first.try_wait().unwrap().map(|_| serde_json::Value::Null))
    });
    assert!(!noted.is_null(), "the import ended before it could be killed: make the file larger");
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(sandbox.status()["blocks"].as_u64().unwrap() < 200);

    let said = sandbox.basalt(&["import", "car", text(&source), "--json"]);
    assert!(said.err.contains("resuming at byte"), "{said:?}");
    assert_eq!(said.json()["counts"]["blocks"], 200);
    assert_eq!(sandbox.status()["blocks"], 200);
    assert!(note().is_none(), "the note stayed");
    sandbox.basalt(&["verify", "--hash"]).ok();
}

#[test]
fn a_flatfs_goes_in_verified_and_comes_out_the_same() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let blocks = blocks(200);
    let source = sandbox.path("repo/blocks");
    flatfs(&source, &blocks);
    fs::write(source.join("XX").join("put-123"), "half")
        .or_else(|_| {
            fs::create_dir_all(source.join("XX"))?;
            fs::write(source.join("XX").join("put-123"), "half")
        })
        .unwrap();
    let before = tree(&source);
    // The repo is as good as its folder of blocks.
    let counts = sandbox.basalt(&["import", "flatfs", text(&sandbox.path("repo")), "--json"]).json();
    assert_eq!((&counts["counts"]["new_blocks"], &counts["strangers"]), (&200.into(), &1.into()));
    assert!(tree(&source) == before, "the source was touched");

    let target = sandbox.path("out");
    sandbox.basalt(&["export", "flatfs", text(&target)]).ok();
    let exported = tree(&target);
    let expected: BTreeMap<_, _> =
        before.into_iter().filter(|(path, _)| path.extension().is_some_and(|extension| extension == "data")).collect();
    assert_eq!(exported.len(), 201);
    for (path, value) in expected {
        assert!(exported.get(&path) == Some(&value), "{path:?}");
    }
    assert_eq!(exported[Path::new("SHARDING")], b"/repo/flatfs/shard/v1/next-to-last/2\n");
}

#[test]
fn damaged_files_of_a_flatfs_are_named_and_the_others_go_in() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let blocks = blocks(30);
    let source = sandbox.path("blocks");
    flatfs(&source, &blocks);
    let (empty, rotten) = (file_of(&source, &blocks[3].0), file_of(&source, &blocks[4].0));
    fs::write(&empty, "").unwrap();
    fs::write(&rotten, "other bytes").unwrap();
    sandbox
        .basalt(&["import", "flatfs", text(&source)])
        .fails(1, &["2 blocks", text(&empty), "as a power cut leaves it", text(&rotten), "don't hash"]);
    assert_eq!(sandbox.status()["blocks"], 28);
}

#[test]
fn an_export_that_was_cut_resumes_and_writes_the_same_bytes() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let source = sandbox.write("in.car", car(&blocks(100)));
    sandbox.basalt(&["import", "car", text(&source)]).ok();
    let whole = sandbox.path("whole.car");
    sandbox.basalt(&["export", "car", text(&whole)]).ok();
    let bytes = fs::read(&whole).unwrap();
    for len in [0, 5, 18, 40, bytes.len() / 2, bytes.len() - 1, bytes.len()] {
        let target = sandbox.path(&format!("cut-{len}.car"));
        let mut partial = target.clone().into_os_string();
        partial.push(".partial");
        fs::write(&partial, &bytes[..len]).unwrap();
        sandbox.basalt(&["export", "car", text(&target)]).ok();
        assert!(fs::read(&target).unwrap() == bytes, "cut at {len}");
        assert!(!Path::new(&partial).exists());
    }
    sandbox.basalt(&["export", "car", text(&whole)]).fails(1, &["is there already"]);

    let folder = sandbox.path("flatfs");
    sandbox.basalt(&["export", "flatfs", text(&folder)]).ok();
    let before = tree(&folder);
    let all = blocks(100);
    fs::remove_file(file_of(&folder, &all[1].0)).unwrap();
    fs::write(file_of(&folder, &all[2].0), "").unwrap();
    fs::write(file_of(&folder, &all[3].0), vec![0; all[3].1.len()]).unwrap();
    let counts = sandbox.basalt(&["export", "flatfs", text(&folder), "--json"]).json();
    assert_eq!((&counts["counts"]["blocks"], &counts["counts"]["kept_blocks"]), (&100.into(), &97.into()));
    assert!(tree(&folder) == before);
}

/// A dag-pb block that links to these CIDs.
fn directory(links: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
    let mut value = Vec::new();
    for cid in links {
        value.extend([0x12, cid.len() as u8 + 2, 0x0a, cid.len() as u8]);
        value.extend(cid);
    }
    value.extend([0x0a, 0x02, 0x08, 0x01]);
    let mut multihash = vec![0x12, 32];
    multihash.extend(<sha2::Sha256 as sha2::Digest>::digest(&value));
    (multihash, value)
}

fn raw_cid(multihash: &[u8]) -> Vec<u8> {
    [&[1, 0x55][..], multihash].concat()
}

#[test]
fn a_dag_comes_out_whole_under_its_own_cids_and_without_what_is_beside_it() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let leaves = blocks(6);
    let below = directory(&[raw_cid(&leaves[2].0), raw_cid(&leaves[3].0), raw_cid(&leaves[0].0)]);
    // A CIDv0 link, a leaf twice, and one that has its bytes in its CID.
    let inline = vec![1, 0x55, 0, 2, b'h', b'i'];
    let top = directory(&[raw_cid(&leaves[0].0), below.0.clone(), raw_cid(&leaves[1].0), inline]);
    let all = [leaves.clone(), vec![below.clone(), top.clone()]].concat();
    sandbox.basalt_with_input(&["import", "car", "-"], &car(&all)).ok();

    let root = bs58::encode(&top.0).into_string();
    let target = sandbox.path("dag.car");
    let counts = sandbox.basalt(&["export", "car", text(&target), "--root", &root, "--json"]).json();
    assert_eq!(counts["counts"]["blocks"], 6);

    // Header with the root, then parents before children, each once, dag-pb as the CIDv0 by which it is linked to.
    let mut header = vec![0xa2, 0x65];
    header.extend(b"roots\x81\xd8\x2a\x58\x23\x00");
    header.extend(&top.0);
    header.extend(b"\x67version\x01");
    let mut expected = vec![header.len() as u8];
    expected.extend(header);
    let mut section = |cid: &[u8], value: &[u8]| {
        let mut len = cid.len() + value.len();
        while len >= 0x80 {
            expected.push(len as u8 | 0x80);
            len >>= 7;
        }
        expected.push(len as u8);
        expected.extend(cid);
        expected.extend(value);
    };
    section(&top.0, &top.1);
    section(&raw_cid(&leaves[0].0), &leaves[0].1);
    section(&below.0, &below.1);
    for leaf in [&leaves[2], &leaves[3], &leaves[1]] {
        section(&raw_cid(&leaf.0), &leaf.1);
    }
    assert!(fs::read(&target).unwrap() == expected);

    let again = Sandbox::with_node();
    let _other = again.agent(&[]);
    assert_eq!(again.basalt(&["import", "car", text(&target), "--json"]).json()["roots"][0], root.as_str());
}

#[test]
fn a_dag_that_is_not_whole_is_refused_with_the_cid_that_is_missing() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let leaves = blocks(2);
    let top = directory(&[raw_cid(&leaves[0].0), raw_cid(&leaves[1].0)]);
    sandbox.basalt_with_input(&["import", "car", "-"], &car(&[leaves[0].clone(), top.clone()])).ok();
    let target = sandbox.path("dag.car");
    let root = bs58::encode(&top.0).into_string();
    sandbox.basalt(&["export", "car", text(&target), "--root", &root]).fails(3, &[&cid(&leaves[1].0), "not whole"]);
    sandbox.basalt(&["export", "car", text(&target), "--root", "Qmx"]).fails(2, &["Qmx"]);
    assert!(!target.exists());
}

#[test]
fn an_export_into_the_node_itself_or_a_foreign_folder_is_refused() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let inside = sandbox.node().join("shards");
    sandbox.basalt(&["export", "flatfs", text(&inside)]).fails(2, &["in the node itself"]);
    sandbox.write("home/letter.txt", "dear");
    sandbox.basalt(&["export", "flatfs", text(&sandbox.path("home"))]).fails(1, &["neither empty nor a flatfs"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_behind_a_connected_kubo_is_refused_unless_allowed() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let source = sandbox.write("in.car", car(&blocks(5)));
    let folder = sandbox.path("blocks");
    flatfs(&folder, &blocks(7));
    let kubo = Kubo::connect(&sandbox).await;
    for command in [["import", "car", text(&source)], ["import", "flatfs", text(&folder)]] {
        sandbox.basalt(&command).fails(1, &["test 1", "--allow-connected", "restart"]);
        assert_eq!(sandbox.status()["blocks"], 0);
    }
    let said = sandbox.basalt(&["import", "car", text(&source), "--allow-connected"]).ok();
    assert!(said.out.contains("restart every Kubo"), "{said:?}");
    assert_eq!(sandbox.status()["blocks"], 5);
    drop(kubo);
    eventually("the connection is gone", || sandbox.status()["clients"].as_array().unwrap().is_empty().then_some(()));
    sandbox.basalt(&["import", "flatfs", text(&folder)]).ok();
}

#[test]
fn a_reader_of_standard_output_that_goes_away_is_a_failure_and_no_panic() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    let big: Blocks = (0..400).map(block).collect();
    sandbox.basalt_with_input(&["import", "car", "-"], &car(&big)).ok();
    let mut child = sandbox.command(&["export", "car", "-"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(err.replace("\n", ""), "", "nobody is left to be told");
    assert_eq!(output.status.code(), Some(1), "{err}");
    let _ = std::io::sink().write(&output.stdout);
}

#[test]
fn verify_reads_every_block_back() {
    let sandbox = Sandbox::with_node();
    let _agent = sandbox.agent(&[]);
    sandbox.basalt_with_input(&["import", "car", "-"], &car(&blocks(60))).ok();
    let report = sandbox.basalt(&["verify", "--hash", "--json"]).json();
    assert_eq!((&report["blocks"], &report["damaged"]), (&60.into(), &serde_json::json!([])));
    let page = sandbox.basalt(&["verify"]).ok().out;
    assert!(page.contains("verified 60 blocks"), "{page}");
}
