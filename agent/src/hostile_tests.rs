//! Hostile bytes: what the command line reads from others (CAR files, flatfs folders, CIDs, blocks with links, notes) and what it is told.

use std::{io::Cursor, path::Path};

use basalt_blockstore::Multihash;
use basalt_fuzz::{
    any_bytes, hold, hostile, hostile_text,
    proptest::{prelude::*, sample::Index},
    within,
};
use clap::Parser;

use crate::{
    car::{CarReader, CarWriter},
    cid::{Cid, DAG_PB, RAW, read_varint, write_varint},
    cli::{self, Cli},
    config::TABLES,
    dag,
    flatfs::{FlatfsReader, Sharding},
};

const CASES: u32 = 2000;

fn any_multihash() -> impl Strategy<Value = Multihash> {
    (prop::sample::select(vec![0u8, 0x12, 0x13, 0x1e]), prop::collection::vec(any::<u8>(), 0..64))
        .prop_map(|(code, digest)| Multihash::parse(&[&[code, digest.len() as u8][..], &digest].concat()).unwrap())
}

fn any_cid() -> impl Strategy<Value = Cid> {
    prop_oneof![
        any::<[u8; 32]>().prop_map(|digest| Cid::parse(&[&[0x12, 0x20][..], &digest].concat()).unwrap()),
        (any_multihash(), prop::sample::select(vec![RAW, DAG_PB, 0x71, 0x72, 1 << 40])).prop_map(|(hash, codec)| {
            let mut bytes = vec![1];
            write_varint(codec, &mut bytes);
            bytes.extend_from_slice(hash.as_bytes());
            Cid::parse(&bytes).unwrap()
        }),
    ]
}

type Block = (Cid, Vec<u8>);

fn any_blocks() -> impl Strategy<Value = Vec<Block>> {
    prop::collection::vec((any_cid(), any_bytes()), 0..5)
}

fn car(roots: &[Cid], blocks: &[Block]) -> Vec<u8> {
    let mut writer = CarWriter::create(Vec::new(), roots).unwrap();
    blocks.iter().for_each(|(cid, data)| writer.block(cid, data).unwrap());
    writer.into_inner()
}

/// A CARv2 around a CARv1, with a gap before it.
fn car_v2(inner: &[u8], gap: u8) -> Vec<u8> {
    let mut bytes = vec![0x0a, 0xa1, 0x67];
    bytes.extend(b"version");
    bytes.push(2);
    bytes.extend([0; 16]);
    let begins = 51 + u64::from(gap);
    bytes.extend(begins.to_le_bytes());
    bytes.extend((inner.len() as u64).to_le_bytes());
    bytes.extend((begins + inner.len() as u64).to_le_bytes());
    bytes.resize(begins as usize, 0);
    bytes.extend(inner);
    bytes.extend(b"an index");
    bytes
}

fn read(bytes: &[u8]) -> Result<(Vec<Cid>, Vec<Block>), crate::car::CarError> {
    let mut reader = CarReader::open(Cursor::new(bytes))?;
    let mut found = Vec::new();
    while let Some(section) = reader.next_section()? {
        found.push((section.cid, section.data));
    }
    Ok((reader.roots().to_vec(), found))
}

#[test]
fn a_car_reads_back_in_both_versions() {
    let cases = (prop::collection::vec(any_cid(), 0..4), any_blocks(), any::<u8>());
    hold("CAR", CASES, cases, |(roots, blocks, gap)| {
        let bytes = car(&roots, &blocks);
        prop_assert_eq!(read(&bytes).unwrap(), (roots.clone(), blocks.clone()));
        prop_assert_eq!(read(&car_v2(&bytes, gap)).unwrap(), (roots, blocks));
        Ok(())
    });
}

#[test]
fn hostile_cars_are_errors_or_cars_and_take_no_more_than_they_have() {
    let valid = (prop::collection::vec(any_cid(), 0..4), any_blocks(), any::<u8>(), any::<bool>()).prop_map(
        |(roots, blocks, gap, is_v2)| {
            let bytes = car(&roots, &blocks);
            if is_v2 { car_v2(&bytes, gap) } else { bytes }
        },
    );
    hold("CAR, hostile", 2 * CASES, hostile(valid), |bytes| {
        // A length is believed up to a MiB at a time; the rest grows with what is there.
        let limit = (2 << 20) + 64 * bytes.len();
        match within(limit, || read(&bytes))? {
            Ok((roots, blocks)) => {
                let again = car(&roots, &blocks);
                prop_assert_eq!(read(&again).unwrap(), (roots, blocks));
            }
            Err(err) => prop_assert!(err.offset <= bytes.len() as u64 || err.what.contains("CARv2"), "{}", err),
        }
        Ok(())
    });
}

#[test]
fn cids_read_back_in_every_form() {
    hold("CID", CASES, (any_cid(), any_bytes()), |(cid, more)| {
        prop_assert_eq!(&Cid::parse(&cid.to_bytes()).unwrap(), &cid);
        prop_assert_eq!(&cid.to_string().parse::<Cid>().unwrap(), &cid);
        let bytes = [cid.to_bytes(), more].concat();
        let (read, used) = Cid::read(&bytes).unwrap();
        prop_assert_eq!((&read, used), (&cid, cid.to_bytes().len()));
        Ok(())
    });
}

#[test]
fn hostile_cids_are_refused_or_have_one_form() {
    hold("CID, hostile bytes", 2 * CASES, hostile(any_cid().prop_map(|cid| cid.to_bytes())), |bytes| {
        if let Ok(cid) = within(2048 + 4 * bytes.len(), || Cid::parse(&bytes))? {
            prop_assert_eq!(cid.to_bytes(), bytes);
        }
        Ok(())
    });
    hold("CID, hostile text", 2 * CASES, hostile_text(any_cid().prop_map(|cid| cid.to_string())), |text| {
        if let Ok(cid) = within(16 << 10, || text.parse::<Cid>())? {
            prop_assert_eq!(cid.to_string().parse::<Cid>().unwrap(), cid);
        }
        Ok(())
    });
}

#[test]
fn varints_of_cars_have_one_form() {
    hold("CAR varint", CASES, (any::<u64>(), any_bytes()), |(value, bytes)| {
        let value = value >> 1;
        let mut written = Vec::new();
        write_varint(value, &mut written);
        prop_assert_eq!(read_varint(&written), Some((value, written.len())));
        if let Some((value, used)) = read_varint(&bytes) {
            let mut again = Vec::new();
            write_varint(value, &mut again);
            prop_assert_eq!(&again[..], &bytes[..used]);
        }
        Ok(())
    });
}

#[test]
fn hostile_blocks_have_no_links_that_are_not_in_them() {
    let links = prop::collection::vec(any_cid(), 0..6).prop_map(|cids| {
        let mut dag_pb = Vec::new();
        let mut dag_cbor = vec![0x80 | cids.len() as u8];
        for cid in cids {
            let bytes = cid.to_bytes();
            dag_pb.extend([0x12, bytes.len() as u8 + 2, 0x0a, bytes.len() as u8]);
            dag_pb.extend(&bytes);
            dag_cbor.extend([0xd8, 42, 0x58, bytes.len() as u8 + 1, 0]);
            dag_cbor.extend(&bytes);
        }
        (dag_pb, dag_cbor)
    });
    let of = |codec: u64| {
        let mut bytes = vec![1];
        write_varint(codec, &mut bytes);
        bytes.extend([0, 0]);
        Cid::parse(&bytes).unwrap()
    };
    let bytes = links.prop_flat_map(|(dag_pb, dag_cbor)| (hostile(Just(dag_pb)), hostile(Just(dag_cbor))));
    hold("links of blocks, hostile", CASES, bytes, |(dag_pb, dag_cbor)| {
        for (codec, bytes) in [(DAG_PB, dag_pb), (0x71, dag_cbor)] {
            let found = within((64 << 10) + 128 * bytes.len(), || dag::links(&of(codec), &bytes))?;
            for link in found.unwrap_or_default() {
                let link = link.to_bytes();
                prop_assert!(bytes.windows(link.len()).any(|window| window == link), "{:?}", link);
            }
        }
        Ok(())
    });
    // Nested as deep as a block can be: refused, and no stack is used up.
    for open in [0x81u8, 0xa1] {
        let deep = if open == 0x81 { vec![open; 2 << 20] } else { [0xa1, 0x60].repeat(1 << 20) };
        assert!(dag::links(&of(0x71), &deep).unwrap_err().contains("too deep"));
    }
}

#[test]
fn hostile_sharding_is_refused_or_finds_a_folder() {
    let valid = (prop::sample::select(vec!["prefix", "suffix", "next-to-last"]), 0u8..40)
        .prop_map(|(function, width)| format!("/repo/flatfs/shard/v1/{function}/{width}\n"));
    let cases = (hostile_text(valid), any_multihash(), any::<String>());
    hold("SHARDING", CASES, cases, |(text, hash, name)| {
        if let Some(sharding) = within(1024, || Sharding::parse(&text))? {
            let width = sharding.folder("AAAA").chars().count();
            prop_assert!((1..=32).contains(&width));
            for key in [hash.to_base32(), name] {
                let folder = within(4096 + 8 * key.len(), || sharding.folder(&key))?;
                prop_assert_eq!(folder.chars().count(), width);
            }
        }
        Ok(())
    });
}

#[test]
fn hostile_files_of_a_flatfs_are_blocks_by_their_name_or_strangers() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("AA");
    let name = any_multihash().prop_map(|hash| format!("{hash}.data"));
    std::fs::write(dir.path().join("SHARDING"), "/repo/flatfs/shard/v1/next-to-last/2\n").unwrap();
    hold("flatfs names", 200, prop::collection::vec(hostile_text(name), 0..8), |names| {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        let mut made = 0;
        for name in &names {
            let is_one_name = !name.contains(['/', '\0']) && !matches!(name.as_str(), "" | "." | "..");
            let path = folder.join(name);
            if is_one_name && name.len() < 250 && !path.exists() && std::fs::write(&path, b"x").is_ok() {
                made += 1;
            }
        }
        let reader = FlatfsReader::open(dir.path()).map_err(|err| TestCaseError::fail(err.message))?;
        let (blocks, strangers) = reader.blocks("AA").map_err(|err| TestCaseError::fail(err.message))?;
        prop_assert_eq!(blocks.len() + strangers.len(), made);
        for block in blocks {
            let name = block.path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            prop_assert_eq!(name, format!("{}.data", block.multihash));
        }
        Ok(())
    });
    // What is larger than any block is not read.
    let file = std::fs::File::create(folder.join("CIQ.data")).unwrap();
    file.set_len(1 << 40).unwrap();
    let huge =
        crate::flatfs::BlockFile { path: folder.join("CIQ.data"), multihash: Multihash::parse(&[0, 0]).unwrap() };
    let read = within(4096, || huge.read()).unwrap();
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::FileTooLarge);
}

#[test]
fn hostile_command_lines_are_errors_or_commands() {
    let line = prop::sample::select(vec![
        "basalt agent --exit-when-idle --set limits.connections_max=7",
        "basalt --node /tmp/n init --shards 4 --durability strict",
        "basalt import car a.car --allow-connected --json",
        "basalt export car out.car --root bafkqaaa",
        "basalt scrub start --rate 16MiB",
        "basalt config show --set log.level=debug",
        "basalt verify --hash --json",
    ])
    .prop_map(str::to_owned);
    hold("command lines", CASES / 4, hostile_text(line), |line| {
        let words: Vec<&str> = std::iter::once("basalt").chain(line.split(' ').skip(1)).collect();
        let _ = Cli::try_parse_from(words);
        Ok(())
    });
    hold(
        "sizes",
        CASES,
        hostile_text((any::<u64>(), "[ ]?[KMGT]?i?B?").prop_map(|(n, unit)| format!("{n}{unit}"))),
        |text| {
            if let Ok(rate) = within(4096, || cli::rate(&text))? {
                prop_assert_eq!(basalt_node::config::bytes(&basalt_node::config::display_bytes(rate)), Some(rate));
            }
            Ok(())
        },
    );
}

#[test]
fn hostile_configs_of_the_agent_are_errors_or_configs() {
    let valid = Just(
        "[node]\nshards = 2\n[log]\nlevel = \"debug\"\nfile_bytes_max = \"1 MiB\"\n[http]\nlisten = \"127.0.0.1:5040\"\n[agent]\nidle_exit_ms = 7\n"
            .to_owned(),
    );
    hold("agent's config", CASES, hostile_text(valid), |text| {
        let limit = (512 << 10) + 256 * text.len();
        let checked = within(limit, || {
            basalt_node::config::Settings::check(&text, Path::new("basalt.toml"), TABLES, &|_| None)
                .map(|settings| basalt_node::Config::from_settings(&settings))
        })?;
        if let Err(err) = checked {
            prop_assert!(err.to_string().contains("basalt.toml"));
        }
        Ok(())
    });
}

#[test]
fn hostile_notes_of_an_import_are_passed_over() {
    let note = r#"{"source":"a","identity":"b","node_id":"c","offset":7,"folder":"AA","counts":{"blocks":1,"new_blocks":1,"bytes":1,"damaged":0,"strangers":0}}"#;
    hold("import note", CASES, (hostile(Just(note.as_bytes().to_vec())), any::<Index>()), |(bytes, _)| {
        within((16 << 10) + 16 * bytes.len(), || crate::import::reads_as_a_note(&bytes))?;
        Ok(())
    });
}
