//! `basalt snapshot diff`: both sides are walked in the order of their keys, side by side, so that memory is that of two pages.

use std::path::Path;

use basalt_blockstore::{Multihash, Options as StoreOptions, Store, store::Env};
use basalt_node::{Node, lock::OwnerLock};
use basalt_snapshots::{SetName, SnapshotSet};
use serde_json::json;

use super::{keeper, place::Place, view};
use crate::{
    cid::Cid,
    cli::SnapshotOptions,
    exit::{Failure, Outcome},
    progress::bytes,
    say::{say, tell},
};

/// Keys of a page.
const PAGE: usize = 4096;
const PINS: &[u8] = b"/pins/pin/";

/// What one side has and the other hasn't.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Blocks only on the younger side.
    pub blocks_added: u64,
    /// Their bytes.
    pub bytes_added: u64,
    /// Blocks only on the older side.
    pub blocks_removed: u64,
    /// Their bytes.
    pub bytes_removed: u64,
    /// Pins only on the younger side.
    pub pins_added: Vec<String>,
    /// Pins only on the older side.
    pub pins_removed: Vec<String>,
    /// Other keys (MFS root, names) that were added, removed or changed.
    pub keys_changed: u64,
}

/// Something that one of two sorted sides has, or that differs.
enum Side<T> {
    Old(T),
    New(T),
    Both(T, T),
}

/// Two sorted sequences, side by side.
struct Merge<T, A, B> {
    old: A,
    new: B,
    heads: (Option<T>, Option<T>),
    is_begun: bool,
}

impl<T, A, B> Merge<T, A, B>
where
    A: FnMut() -> Outcome<Option<T>>,
    B: FnMut() -> Outcome<Option<T>>,
{
    fn of(old: A, new: B) -> Merge<T, A, B> {
        Merge { old, new, heads: (None, None), is_begun: false }
    }

    fn next<K: Ord + ?Sized>(&mut self, key: impl Fn(&T) -> &K) -> Outcome<Option<Side<T>>> {
        if !std::mem::replace(&mut self.is_begun, true) {
            self.heads = ((self.old)()?, (self.new)()?);
        }
        let order = match &self.heads {
            (None, None) => return Ok(None),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(old), Some(new)) => key(old).cmp(key(new)),
        };
        let old = if order.is_le() { std::mem::replace(&mut self.heads.0, (self.old)()?) } else { None };
        let new = if order.is_ge() { std::mem::replace(&mut self.heads.1, (self.new)()?) } else { None };
        Ok(match (old, new) {
            (Some(old), Some(new)) => Some(Side::Both(old, new)),
            (Some(old), None) => Some(Side::Old(old)),
            (None, Some(new)) => Some(Side::New(new)),
            (None, None) => None,
        })
    }
}

/// Compares two nodes; `tell` hears of each block that one of them hasn't, `true` where it is the younger one's.
pub fn compare(old: &Node, new: &Node, tell: &mut dyn FnMut(bool, &Multihash)) -> Outcome<Difference> {
    let mut difference = Difference::default();
    let (mut old_walk, mut new_walk) = (old.datastore().shards().walk(None), new.datastore().shards().walk(None));
    let mut blocks = Merge::of(|| Ok(old_walk.next_block()?), || Ok(new_walk.next_block()?));
    while let Some(side) = blocks.next(|(key, _): &(Multihash, u32)| key)? {
        match side {
            Side::Old((key, size)) => {
                difference.blocks_removed += 1;
                difference.bytes_removed += u64::from(size);
                tell(false, &key);
            }
            Side::New((key, size)) => {
                difference.blocks_added += 1;
                difference.bytes_added += u64::from(size);
                tell(true, &key);
            }
            Side::Both(..) => {}
        }
    }
    compare_keys(old.datastore().keyspace(), new.datastore().keyspace(), &mut difference)?;
    Ok(difference)
}

/// Compares what is not a block.
fn compare_keys(old: &Store, new: &Store, difference: &mut Difference) -> Outcome {
    let mut keys = Merge::of(pages(old), pages(new));
    while let Some(side) = keys.next(|(key, _): &(Vec<u8>, Vec<u8>)| key.as_slice())? {
        let is_pin = |key: &[u8]| key.starts_with(PINS);
        match side {
            Side::Both((_, old), (_, new)) if old == new => {}
            Side::Both((key, old), (_, new)) if is_pin(&key) => {
                difference.pins_removed.push(pin(&key, &old));
                difference.pins_added.push(pin(&key, &new));
            }
            Side::Old((key, value)) if is_pin(&key) => difference.pins_removed.push(pin(&key, &value)),
            Side::New((key, value)) if is_pin(&key) => difference.pins_added.push(pin(&key, &value)),
            _ => difference.keys_changed += 1,
        }
    }
    Ok(())
}

/// Keys and values of a store, in order, a page at a time.
fn pages(store: &Store) -> impl FnMut() -> Outcome<Option<(Vec<u8>, Vec<u8>)>> {
    let mut page: std::vec::IntoIter<(Vec<u8>, Vec<u8>)> = Vec::new().into_iter();
    let mut after: Option<Vec<u8>> = None;
    let mut at_end = false;
    move || {
        loop {
            if let Some(found) = page.next() {
                return Ok(Some(found));
            }
            if at_end {
                return Ok(None);
            }
            let found = store.scan(b"", after.as_deref(), PAGE, true)?;
            at_end = found.len() < PAGE;
            after = found.last().map(|found| found.key.clone()).or(after.take());
            page = found
                .into_iter()
                .map(|found| (found.key, found.value.unwrap_or_default()))
                .collect::<Vec<_>>()
                .into_iter();
        }
    }
}

/// A pin as its CID, mode and name. Kubo writes them as CBOR maps; one that isn't is shown by its key.
fn pin(key: &[u8], value: &[u8]) -> String {
    let read = || -> Result<String, minicbor::decode::Error> {
        let mut decoder = minicbor::Decoder::new(value);
        let (mut cid, mut mode, mut name) = (None, 0, String::new());
        for _ in 0..decoder.map()?.unwrap_or(0) {
            match decoder.str()? {
                "cid" | "Cid" => cid = Cid::parse(decoder.bytes()?).ok(),
                "mode" | "Mode" => mode = decoder.i64()?,
                "name" | "Name" => name = decoder.str()?.to_owned(),
                _ => decoder.skip()?,
            }
        }
        let cid = cid.ok_or_else(|| minicbor::decode::Error::message("no cid"))?;
        let mode = match mode {
            0 => "recursive",
            1 => "direct",
            _ => "of another mode",
        };
        let named = if name.is_empty() { String::new() } else { format!(" {name:?}") };
        Ok(format!("{cid} {mode}{named}"))
    };
    read().unwrap_or_else(|_| String::from_utf8_lossy(key).into_owned())
}

/// The node of a set, or of the folder as it is, with what keeps it there.
pub struct Opened {
    /// The node.
    pub node: std::sync::Arc<Node>,
    _dir: Option<tempfile::TempDir>,
}

impl Opened {
    /// Opens a set.
    pub fn set(place: &Place, set: &SetName, command: &'static str) -> Outcome<Opened> {
        let dir = tempfile::tempdir().map_err(|err| Failure::io("make a folder for links to the set", err))?;
        let at = dir.path().join("node");
        view::make(place, set, &at)?;
        Ok(Opened { node: view::open(&at, command)?, _dir: Some(dir) })
    }

    /// Opens the node as it is; refused while somebody serves it.
    pub fn live(place: &Place, command: &'static str) -> Outcome<Opened> {
        place.require_node()?;
        Opened::refuse_served(place)?;
        Ok(Opened { node: view::open(&place.node, command)?, _dir: None })
    }

    fn refuse_served(place: &Place) -> Outcome {
        if let Some(owner) = OwnerLock::owner(&place.node) {
            return Err(Failure::new(format!(
                "node {} is open ({owner}) and changes while it is looked at: take a set and compare with that (`basalt snapshot take`, then `diff SET latest`)",
                place.node.display()
            )));
        }
        Ok(())
    }

    /// Lets go of it.
    pub fn close(self) -> Outcome {
        Ok(self.node.close()?)
    }
}

/// `basalt snapshot diff`.
pub fn diff(node: &Path, from: &str, to: Option<&str>, summary: bool, options: &SnapshotOptions) -> Outcome {
    let place = Place::find(node, options)?;
    let keeper = keeper(&place)?;
    let (from, to) = (keeper.find(from)?, to.map(|to| keeper.find(to)).transpose()?);
    let is_thinned = |set: &SnapshotSet| place.left(set).is_some();
    if is_thinned(&from) || to.as_ref().is_some_and(is_thinned) {
        return diff_of_metadata(&place, &from.name, to.as_ref().map(|to| &to.name), options);
    }
    let (from, to) = (from.name, to.map(|to| to.name));
    let old = Opened::set(&place, &from, "basalt snapshot diff")?;
    let new = match &to {
        Some(to) => Opened::set(&place, to, "basalt snapshot diff")?,
        None => Opened::live(&place, "basalt snapshot diff")?,
    };
    let mut tell = |added: bool, block: &Multihash| {
        if summary {
            return;
        }
        match options.json {
            true => say!("{}", json!({ "block": block.raw_cid(), "added": added })),
            false => say!("{} block {}", if added { '+' } else { '-' }, block.raw_cid()),
        }
    };
    let difference = compare(&old.node, &new.node, &mut tell)?;
    old.close()?;
    new.close()?;
    told(&from, to.as_ref(), &difference, options);
    Ok(())
}

/// What sets differ in of which a policy has left the metadata: their pins.
fn diff_of_metadata(place: &Place, from: &SetName, to: Option<&SetName>, options: &SnapshotOptions) -> Outcome {
    let keyspace = place.node.join("keyspace");
    let open = |set: Option<&SetName>| -> Outcome<Store> {
        let dir = match set {
            Some(set) => view::in_set(place, set, &keyspace).filter(|dir| dir.is_dir()).ok_or_else(|| {
                Failure::new(format!("{set} has no metadata (any more), and without it there is nothing to compare"))
            })?,
            None => keyspace.clone(),
        };
        Ok(Store::open_read_only(&dir, &Env::real(), StoreOptions::default())?)
    };
    if to.is_none() {
        Opened::refuse_served(place)?;
    }
    let (old, new) = (open(Some(from))?, open(to)?);
    let mut difference = Difference::default();
    compare_keys(&old, &new, &mut difference)?;
    tell!("basalt: blocks are not compared: a policy has left no more than the metadata of one of them");
    told(from, to, &difference, options);
    Ok(())
}

fn told(from: &SetName, to: Option<&SetName>, difference: &Difference, options: &SnapshotOptions) {
    if options.json {
        say!("{}", object(from, to, difference));
        return;
    }
    difference.pins_added.iter().for_each(|pin| say!("+ pin {pin}"));
    difference.pins_removed.iter().for_each(|pin| say!("- pin {pin}"));
    say!("from {from} to {}: {}", to.map_or("the node as it is", SetName::as_str), line(difference));
}

/// A difference in a line.
pub fn line(difference: &Difference) -> String {
    format!(
        "{} blocks more ({}), {} fewer ({}); {} pins more, {} fewer; {} other keys differ",
        difference.blocks_added,
        bytes(difference.bytes_added),
        difference.blocks_removed,
        bytes(difference.bytes_removed),
        difference.pins_added.len(),
        difference.pins_removed.len(),
        difference.keys_changed
    )
}

/// A difference as JSON.
pub fn object(from: &SetName, to: Option<&SetName>, difference: &Difference) -> serde_json::Value {
    json!({
        "from": from.as_str(),
        "to": to.map(SetName::as_str),
        "blocks_added": difference.blocks_added,
        "bytes_added": difference.bytes_added,
        "blocks_removed": difference.blocks_removed,
        "bytes_removed": difference.bytes_removed,
        "pins_added": difference.pins_added,
        "pins_removed": difference.pins_removed,
        "keys_changed": difference.keys_changed,
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use basalt_datastore::Key;
    use basalt_node::{Config, Host, InitOptions};
    use proptest::prelude::*;

    use super::*;

    fn node(dir: &Path, shards: usize, blocks: &BTreeSet<u8>, keys: &[(&str, &[u8])]) -> Arc<Node> {
        basalt_node::init(dir, &InitOptions { shards, ..InitOptions::default() }).unwrap();
        let node = Node::open(dir, Config::default(), Host::Command("a test")).unwrap();
        for block in blocks {
            node.datastore().put(&Key::of_block(&multihash(*block)), &vec![*block; usize::from(*block)]).unwrap();
        }
        for (key, value) in keys {
            node.datastore().put(&Key::new(key).unwrap(), value).unwrap();
        }
        node
    }

    /// Identity multihashes, whose order is not that of the shards.
    fn multihash(number: u8) -> Multihash {
        Multihash::parse(&[0x12, 32].into_iter().chain([number.reverse_bits(); 32]).collect::<Vec<u8>>()).unwrap()
    }

    fn pin_value(name: &str) -> Vec<u8> {
        let cid = Cid::raw(multihash(7)).to_bytes();
        let mut value = Vec::new();
        let mut encoder = minicbor::Encoder::new(&mut value);
        encoder.map(3).unwrap().str("cid").unwrap().bytes(&cid).unwrap();
        encoder.str("mode").unwrap().i64(0).unwrap().str("name").unwrap().str(name).unwrap();
        value
    }

    #[test]
    fn pins_are_shown_by_cid_mode_and_name_and_other_keys_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, yours) = (pin_value("mine"), pin_value(""));
        let none = BTreeSet::new();
        let old = node(
            &dir.path().join("a"),
            1,
            &none,
            &[("/pins/pin/1", &mine), ("/pins/pin/2", b"no cbor"), ("/local/filesroot", b"1"), ("/same", b"x")],
        );
        let new = node(
            &dir.path().join("b"),
            1,
            &none,
            &[("/pins/pin/3", &yours), ("/local/filesroot", b"2"), ("/same", b"x"), ("/new", b"")],
        );
        let difference = compare(&old, &new, &mut |_, _| {}).unwrap();
        let cid = Cid::raw(multihash(7));
        assert_eq!(difference.pins_added, [format!("{cid} recursive")]);
        assert_eq!(difference.pins_removed, [format!("{cid} recursive \"mine\""), "/pins/pin/2".to_owned()]);
        assert_eq!(difference.keys_changed, 2);
        assert_eq!((difference.blocks_added, difference.blocks_removed), (0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

        #[test]
        fn the_blocks_told_are_those_that_one_side_lacks(old: BTreeSet<u8>, new: BTreeSet<u8>, shards in 1usize..4) {
            let dir = tempfile::tempdir().unwrap();
            let (a, b) = (node(&dir.path().join("a"), 1, &old, &[]), node(&dir.path().join("b"), shards, &new, &[]));
            let (mut added, mut removed) = (BTreeSet::new(), BTreeSet::new());
            let difference = compare(&a, &b, &mut |is_added, key| {
                if is_added { &mut added } else { &mut removed }.insert(key.clone());
            })
            .unwrap();
            prop_assert_eq!(&added, &new.difference(&old).map(|n| multihash(*n)).collect());
            prop_assert_eq!(&removed, &old.difference(&new).map(|n| multihash(*n)).collect());
            prop_assert_eq!((difference.blocks_added, difference.blocks_removed), (added.len() as u64, removed.len() as u64));
            prop_assert_eq!(difference.bytes_added, new.difference(&old).map(|n| u64::from(*n)).sum::<u64>());
        }
    }
}
