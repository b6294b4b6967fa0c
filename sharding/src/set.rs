//! The shards as one: every block goes to its place on the ring; count, bytes, enumeration and flushes work over all of them.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    path::{Path, PathBuf},
};

use basalt_blockstore::{
    Buffer, Error, ErrorKind, Multihash, Options, Result, Shard,
    store::{Env, Op, Stats, Ticket},
    sync::{MutexGuard, RwLock, RwLockWriteGuard, thread},
};

use crate::{
    epoch::{Epoch, Holder, Record},
    ring::Ring,
};

/// The shards of a node. Every method may be called from many threads at once.
#[derive(Debug)]
pub struct ShardSet {
    epoch: Epoch,
    ring: Ring,
    /// In the order of their ids, which are their places here.
    members: Vec<Open>,
    /// Held for writing by whoever holds deletes.
    deletes: RwLock<()>,
}

/// No block of a [`ShardSet`] goes while this is there.
#[derive(Debug)]
#[must_use = "what is held goes on when this is dropped"]
pub struct Hold<'a> {
    _deletes: RwLockWriteGuard<'a, ()>,
    _reclaim: Vec<MutexGuard<'a, ()>>,
}

#[derive(Debug)]
struct Open {
    name: String,
    shard: Shard,
}

impl ShardSet {
    /// Opens all shards, each a folder with its weight, in parallel. `home` is the keyspace's folder, where the epoch record stands. A node that is
    /// new gets its record, durable on return; one that exists is `Format` where layout and record differ, and nothing is created then.
    pub fn open(
        shards: &[(PathBuf, u32)],
        home: &Path,
        ring_key: [u8; 16],
        env: &Env,
        options: &Options,
    ) -> Result<ShardSet> {
        let wanted = Wanted::new(shards, home, ring_key)?;
        let is_new = !wanted.matches_records(env)?;
        if !is_new {
            wanted.settle_records(env)?;
        }
        let set = wanted.open(env, |dir| Shard::open(dir, env, options.clone()))?;
        if is_new {
            if let Some(full) = set.members.iter().find(|open| open.shard.stats().count > 0) {
                let message = format!(
                    "{} holds blocks, but the keyspace's folder {} has no ring epoch record; is the keyspace's disk mounted?",
                    full.name,
                    home.display()
                );
                return Err(Error::new(ErrorKind::Format, message));
            }
            wanted.write_records(env)?;
        }
        Ok(set)
    }

    /// Opens all shards for reading only; the records must be there. Creates nothing.
    pub fn open_read_only(
        shards: &[(PathBuf, u32)],
        home: &Path,
        ring_key: [u8; 16],
        env: &Env,
        options: &Options,
    ) -> Result<ShardSet> {
        let wanted = Wanted::new(shards, home, ring_key)?;
        if !wanted.matches_records(env)? {
            let message = format!(
                "{} has no ring epoch record: no node was made there, or its disk is not mounted",
                home.display()
            );
            return Err(Error::new(ErrorKind::Format, message));
        }
        wanted.open(env, |dir| Shard::open_read_only(dir, env, options.clone()))
    }

    /// The epoch that the ring is at.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Id of the shard that a block belongs to.
    pub fn place(&self, key: &Multihash) -> u16 {
        self.ring.place(key.digest())
    }

    /// The shards in the order of their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Shard> {
        self.members.iter().map(|open| &open.shard)
    }

    /// How many shards there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Never: a set has a shard at least.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn of(&self, key: &Multihash) -> &Shard {
        // The ring knows only ids of members: both were made from one epoch.
        &self.members[usize::from(self.place(key))].shard
    }

    /// [`Shard::put`] in the block's shard.
    pub fn put(&self, key: &Multihash, value: &[u8]) -> Result<()> {
        self.of(key).put(key, value)
    }

    /// Writes blocks, each to its shard unless it is there; the ticket waits for what the durability class promises of all of them. Where a shard refuses
    /// its part, the others' blocks may be stored nevertheless.
    pub fn submit_put(&self, blocks: &[(&Multihash, &[u8])]) -> Result<Ticket> {
        if let [(key, _)] = blocks {
            return self.of(key).submit_put(blocks);
        }
        self.submit_grouped(blocks, |(key, _)| key, |shard, part| shard.submit_put(part))
    }

    /// Reads a block into `buffer` (replaced); `NotFound` where it is absent.
    pub fn get(&self, key: &Multihash, buffer: &mut dyn Buffer) -> Result<()> {
        self.of(key).get(key, buffer)
    }

    /// Size of a block in bytes, `None` where it is absent. Never reads the log.
    pub fn size(&self, key: &Multihash) -> Result<Option<u32>> {
        self.of(key).size(key)
    }

    /// Whether a block is there. Never reads the log.
    pub fn has(&self, key: &Multihash) -> Result<bool> {
        self.of(key).has(key)
    }

    /// Offers a candidate for a quarantined block; see [`Shard::heal`].
    pub fn heal(&self, key: &Multihash, candidate: &[u8]) -> Result<bool> {
        self.of(key).heal(key, candidate)
    }

    /// Deletes a block; see [`Shard::delete`].
    pub fn delete(&self, key: &Multihash) -> Result<()> {
        self.submit_delete(&[key])?.wait()
    }

    /// Deletes blocks; absent is fine. Gone for readers on return, durable within the bounded delay and at Sync.
    pub fn submit_delete(&self, keys: &[&Multihash]) -> Result<Ticket> {
        let _not_held = self.deletes.read();
        self.submit_grouped(
            keys,
            |key| key,
            |shard, part| {
                let ops: Vec<Op<'_>> = part.iter().map(|key| Op::Delete { key: key.as_bytes() }).collect();
                shard.store().submit(&ops, false)
            },
        )
    }

    /// Groups items by shard, submits every group, then makes one ticket of all.
    fn submit_grouped<T: Copy>(
        &self,
        items: &[T],
        key: impl Fn(&T) -> &Multihash,
        submit: impl Fn(&Shard, &[T]) -> Result<Ticket>,
    ) -> Result<Ticket> {
        if let [open] = self.members.as_slice() {
            return submit(&open.shard, items);
        }
        let mut parts: Vec<Vec<T>> = vec![Vec::new(); self.members.len()];
        for item in items {
            parts[usize::from(self.place(key(item)))].push(*item);
        }
        let mut tickets = Vec::new();
        for (open, part) in self.members.iter().zip(&parts) {
            if !part.is_empty() {
                // A shard that refuses must not hide what became of the parts that others have taken.
                tickets.push(submit(&open.shard, part).unwrap_or_else(|err| Ticket::ready(Err(err))));
            }
        }
        Ok(Ticket::all(tickets))
    }

    /// Whether any shard holds what is not known durable, or is fenced and can't promise it.
    pub fn is_dirty(&self) -> bool {
        self.iter().any(is_dirty)
    }

    /// Why a shard takes no more writes, if one does not.
    pub fn fenced(&self) -> Option<Error> {
        self.members.iter().find_map(|open| open.shard.store().fenced().map(|err| err.context(&open.name)))
    }

    /// Holds deletes and reclaim of all shards until what this returns is dropped: no block goes meanwhile. Waits for what is under way.
    pub fn hold(&self) -> Hold<'_> {
        let deletes = self.deletes.write();
        Hold { _deletes: deletes, _reclaim: self.iter().map(|shard| shard.store().hold_reclaim()).collect() }
    }

    /// [`basalt_blockstore::Store::watch`] of every shard.
    pub fn watch(&self) {
        self.iter().for_each(|shard| shard.store().watch());
    }

    /// Whether a write to some shard would wait at this moment, before it has a ticket.
    pub fn writes_wait(&self) -> bool {
        self.iter().any(|shard| shard.store().writes_wait())
    }

    /// Makes everything that was acknowledged before the call durable. Flushes the shards that have something to flush in parallel.
    pub fn sync(&self) -> Result<()> {
        self.submit_sync()?.wait()
    }

    /// Starts what [`ShardSet::sync`] does. Every shard's flush is started, whatever another's says.
    pub fn submit_sync(&self) -> Result<Ticket> {
        let dirty = self.members.iter().filter(|open| is_dirty(&open.shard));
        let start = |open: &Open| {
            let started = open.shard.submit_sync().map_err(|err| err.context(format_args!("sync {}", open.name)));
            started.unwrap_or_else(|err| Ticket::ready(Err(err)))
        };
        Ok(Ticket::all(dirty.map(start).collect()))
    }

    /// Up to `limit` blocks with their sizes in the order of their multihash bytes, above `after`; fewer only at the end. For page after
    /// page, [`ShardSet::walk`] asks the shards less often.
    pub fn enumerate(&self, after: Option<&Multihash>, limit: usize) -> Result<Vec<(Multihash, u32)>> {
        let mut walk = self.walk(after);
        // Each shard has its share of a page, and a little for the scatter.
        let refill = (limit / self.len() + limit / self.len() / 4 + 8).min(REFILL_MAX);
        walk.lanes.iter_mut().for_each(|lane| lane.refill = refill);
        walk.next_page(limit)
    }

    /// Walks all blocks above `after` in the order of their multihash bytes. Holds no iterator of a shard: a block that is present
    /// throughout appears exactly once, others may or may not.
    pub fn walk(&self, after: Option<&Multihash>) -> Walk<'_> {
        let lane = || Lane { ready: VecDeque::new(), last: after.cloned(), refill: REFILL_FIRST, ended: false };
        Walk {
            set: self,
            lanes: self.members.iter().map(|_| lane()).collect(),
            heads: BinaryHeap::new(),
            started: false,
            last: None,
        }
    }

    /// Bytes of live blocks of all shards, exact; O(shards).
    pub fn live_bytes(&self) -> u64 {
        self.iter().map(|shard| shard.live().bytes).sum()
    }

    /// Exact sums over all shards, O(1) each.
    pub fn stats(&self) -> Stats {
        self.iter().map(Shard::stats).fold(Stats::default(), |a, b| Stats {
            count: a.count + b.count,
            bytes: a.bytes + b.bytes,
            key_bytes: a.key_bytes + b.key_bytes,
            allocated_bytes: a.allocated_bytes + b.allocated_bytes,
            segments: a.segments + b.segments,
            dead_bytes: a.dead_bytes + b.dead_bytes,
            unflushed_bytes: a.unflushed_bytes + b.unflushed_bytes,
            quarantined: a.quarantined + b.quarantined,
            replayed: a.replayed + b.replayed,
        })
    }

    /// Gauges of each shard, in the order of their ids.
    pub fn stats_each(&self) -> Vec<Stats> {
        self.iter().map(Shard::stats).collect()
    }

    /// Syncs and closes all shards, in parallel; every one is closed, whatever another says. The first failure in order is reported.
    pub fn close(&self) -> Result<()> {
        let close = |open: &Open| open.shard.close().map_err(|err| err.context(format_args!("close {}", open.name)));
        let outcomes = in_parallel(&self.members, close);
        outcomes.into_iter().collect()
    }
}

fn is_dirty(shard: &Shard) -> bool {
    shard.store().is_dirty() || shard.store().fenced().is_some()
}

/// Runs `work` on a thread for each item, the last one on this thread; the results are in order.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let Some((last, others)) = items.split_last() else { return Vec::new() };
    thread::scope(|scope| {
        let threads: Vec<_> = others.iter().map(|item| scope.spawn(|| work(item))).collect();
        let last = work(last);
        let join = |thread: thread::ScopedJoinHandle<'_, R>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).chain([last]).collect()
    })
}

/// A layout that is asked for, before anything is opened.
struct Wanted<'a> {
    shards: &'a [(PathBuf, u32)],
    home: &'a Path,
    epoch: Epoch,
    ring: Ring,
}

impl<'a> Wanted<'a> {
    fn new(shards: &'a [(PathBuf, u32)], home: &'a Path, ring_key: [u8; 16]) -> Result<Wanted<'a>> {
        let weights: Vec<u32> = shards.iter().map(|(_, weight)| *weight).collect();
        let epoch = Epoch::first(ring_key, &weights)?;
        let on_ring: Vec<(u16, u32)> = epoch.shards.iter().map(|member| (member.id, member.weight)).collect();
        Ok(Wanted { shards, home, ring: Ring::new(ring_key, &on_ring)?, epoch })
    }

    fn places(&self) -> impl Iterator<Item = (Holder, &Path)> {
        (0u16..).map(Holder::Shard).zip(self.shards.iter().map(|(dir, _)| dir.as_path()))
    }

    /// Whether the node exists, and is the one of this layout; `false` where it is new.
    fn matches_records(&self, env: &Env) -> Result<bool> {
        let home = Record::read(&*env.disk, self.home)?;
        if let Some(home) = &home {
            self.check(home, Holder::Keyspace, self.home)?;
        }
        for (holder, dir) in self.places() {
            match Record::read(&*env.disk, dir)? {
                Some(copy) => self.check(&copy, holder, dir)?,
                None if home.is_some() => {
                    let message = format!(
                        "{holder} of this node should be in {}, but that folder has no ring epoch record; is its disk mounted?",
                        dir.display()
                    );
                    return Err(Error::new(ErrorKind::Format, message));
                }
                None => {}
            }
        }
        Ok(home.is_some())
    }

    /// Refuses a copy that stands in the wrong place, is another node's, or disagrees with the layout.
    fn check(&self, found: &Record, holder: Holder, dir: &Path) -> Result<()> {
        let refuse = |message: String| Err(Error::new(ErrorKind::Format, message));
        let dir = dir.display();
        if found.epoch.ring_key != self.epoch.ring_key {
            return refuse(format!("{dir} belongs to another node; it can't be {holder} of this one"));
        }
        if found.holder != holder {
            return refuse(format!(
                "{dir} is {} of this node, but the config has it as {holder}; put the paths back",
                found.holder
            ));
        }
        if found.epoch.number != self.epoch.number {
            return refuse(format!(
                "the ring in {dir} is at epoch {}, this program knows epoch {}; use the newer basalt that changed it",
                found.epoch.number, self.epoch.number
            ));
        }
        if found.epoch.shards.len() != self.epoch.shards.len() {
            return refuse(format!(
                "this node was made with {} shards (says {dir}), but the config lists {}; list them all, in their order",
                found.epoch.shards.len(),
                self.epoch.shards.len()
            ));
        }
        for (had, wants) in found.epoch.shards.iter().zip(&self.epoch.shards) {
            if had != wants {
                return refuse(format!(
                    "shard {} was made with weight {} (says {dir}), but the config says {}; put the weight back: a change would hide its blocks",
                    had.id, had.weight, wants.weight
                ));
            }
        }
        Ok(())
    }

    /// Opens the shards in parallel; the error of one names it.
    fn open(&self, env: &Env, open: impl Fn(&Path) -> Result<Shard> + Sync) -> Result<ShardSet> {
        let places: Vec<(Holder, &Path)> = self.places().collect();
        let open_one = |(holder, dir): &(Holder, &Path)| {
            let name = format!("{holder} ({})", dir.display());
            match open(dir) {
                Ok(shard) => Ok(Open { name, shard }),
                Err(err) => Err(err.context(format_args!("open {name}"))),
            }
        };
        let opened: Vec<Result<Open>> =
            if env.clock.threads() { in_parallel(&places, open_one) } else { places.iter().map(open_one).collect() };
        let members = opened.into_iter().collect::<Result<_>>()?;
        Ok(ShardSet { epoch: self.epoch.clone(), ring: self.ring.clone(), members, deletes: RwLock::default() })
    }

    /// Sees to it that the records of a node that is opened can't vanish behind what is written to it.
    fn settle_records(&self, env: &Env) -> Result<()> {
        self.places().chain([(Holder::Keyspace, self.home)]).try_for_each(|(_, dir)| Record::settle(&*env.disk, dir))
    }

    /// Makes the node: its shards' copies first, then the home copy, which counts.
    fn write_records(&self, env: &Env) -> Result<()> {
        for (holder, dir) in self.places().chain([(Holder::Keyspace, self.home)]) {
            Record { epoch: self.epoch.clone(), holder }.write(&*env.disk, dir)?;
        }
        Ok(())
    }
}

/// Blocks that a walk asks of one shard at first, and at most. It grows in between, so that a short walk is cheap and a long one asks
/// seldom.
const REFILL_FIRST: usize = 16;
const REFILL_MAX: usize = 1024;

/// A walk over all blocks; see [`ShardSet::walk`].
#[derive(Debug)]
pub struct Walk<'a> {
    set: &'a ShardSet,
    lanes: Vec<Lane>,
    /// The next block of every lane that has one, with its lane.
    heads: BinaryHeap<Reverse<(Multihash, u32, usize)>>,
    started: bool,
    last: Option<Multihash>,
}

/// What has been read ahead of one shard.
#[derive(Debug)]
struct Lane {
    ready: VecDeque<(Multihash, u32)>,
    last: Option<Multihash>,
    /// How many to ask for next time.
    refill: usize,
    ended: bool,
}

impl Walk<'_> {
    /// The next blocks with their sizes; fewer than `limit` only at the end.
    pub fn next_page(&mut self, limit: usize) -> Result<Vec<(Multihash, u32)>> {
        let mut page = Vec::new();
        while page.len() < limit {
            match self.next_block()? {
                Some(block) => page.push(block),
                None => break,
            }
        }
        Ok(page)
    }

    /// The next block with its size; `None` at the end. After an error the walk goes on where it was.
    pub fn next_block(&mut self) -> Result<Option<(Multihash, u32)>> {
        if !self.started {
            for lane in 0..self.lanes.len() {
                self.read_ahead(lane)?;
            }
            for lane in 0..self.lanes.len() {
                self.advance(lane);
            }
            self.started = true;
        }
        loop {
            let Some(Reverse((_, _, lane))) = self.heads.peek() else { return Ok(None) };
            // Before the head is taken, so that an error loses nothing.
            self.read_ahead(*lane)?;
            let Some(Reverse((key, size, lane))) = self.heads.pop() else { return Ok(None) };
            self.advance(lane);
            // A block that is being moved stands in two shards.
            if self.last.as_ref() != Some(&key) {
                self.last = Some(key.clone());
                return Ok(Some((key, size)));
            }
        }
    }

    fn read_ahead(&mut self, lane: usize) -> Result<()> {
        let (lane, open) = (&mut self.lanes[lane], &self.set.members[lane]);
        if lane.ended || !lane.ready.is_empty() {
            return Ok(());
        }
        let found = open.shard.enumerate(lane.last.as_ref(), lane.refill);
        let found = found.map_err(|err| err.context(format_args!("enumerate {}", open.name)))?;
        lane.ended = found.len() < lane.refill;
        if let Some((last, _)) = found.last() {
            lane.last = Some(last.clone());
        }
        lane.ready.extend(found);
        lane.refill = (lane.refill * 2).clamp(1, REFILL_MAX);
        Ok(())
    }

    fn advance(&mut self, lane: usize) {
        if let Some((key, size)) = self.lanes[lane].ready.pop_front() {
            self.heads.push(Reverse((key, size, lane)));
        }
    }
}
