//! What a batch comes down to: the last operation of every key, sorted by where and when it is written (STORE 13).

use std::collections::HashMap;

use basalt_blockstore::Multihash;

use crate::{BatchOp, Key, keyspace::Change};

/// The parts of a batch, in the order in which they are written. Within a part no key comes twice.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) block_puts: Vec<(Multihash, Vec<u8>)>,
    pub(crate) changes: Vec<Change>,
    pub(crate) block_deletes: Vec<Multihash>,
}

impl Plan {
    pub(crate) fn of(ops: Vec<BatchOp>) -> Plan {
        let mut last: HashMap<&Key, usize> = HashMap::with_capacity(ops.len());
        for (at, op) in ops.iter().enumerate() {
            last.insert(op.key(), at);
        }
        let mut is_last = vec![false; ops.len()];
        last.into_values().for_each(|at| is_last[at] = true);
        let mut plan = Plan::default();
        for (op, _) in ops.into_iter().zip(is_last).filter(|(_, is_last)| *is_last) {
            match (op.key().block(), op) {
                (Some(block), BatchOp::Put(_, value)) => plan.block_puts.push((block, value)),
                (Some(block), BatchOp::Delete(_)) => plan.block_deletes.push(block),
                (None, BatchOp::Put(key, value)) => plan.changes.push(Change::Put { key, value, expires_unix_ms: 0 }),
                (None, BatchOp::Delete(key)) => plan.changes.push(Change::Delete { key }),
            }
        }
        plan
    }

    /// The blocks that are put.
    pub(crate) fn blocks(&self) -> Vec<(&Multihash, &[u8])> {
        self.block_puts.iter().map(|(block, value)| (block, value.as_slice())).collect()
    }
}

impl BatchOp {
    /// The key that it changes.
    pub fn key(&self) -> &Key {
        match self {
            BatchOp::Put(key, _) | BatchOp::Delete(key) => key,
        }
    }
}
