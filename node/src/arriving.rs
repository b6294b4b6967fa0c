//! A batch that a client is sending, by whichever way: counted as it arrives, so that one batch, and all batches together, stay within their memory.

use std::sync::{Arc, atomic::Ordering};

use basalt_datastore::{BatchOp, Error, ErrorKind, Result};

use crate::node::Node;

/// What an operation takes in memory beside key and value.
const OPERATION_BYTES: usize = 96;

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Arriving {
    node: Arc<Node>,
    ops: Vec<BatchOp>,
    /// Keys and values.
    bytes: usize,
    /// What they take in memory.
    taken: usize,
}

impl Arriving {
    pub(crate) fn new(node: Arc<Node>) -> Arriving {
        Arriving { node, ops: Vec::new(), bytes: 0, taken: 0 }
    }

    /// One more operation; an error where the batch, or all that are being sent, would be too large.
    pub(crate) fn add(&mut self, op: BatchOp) -> Result<()> {
        let bytes = match &op {
            BatchOp::Put(key, value) => key.as_str().len() + value.len(),
            BatchOp::Delete(key) => key.as_str().len(),
        };
        self.bytes += bytes;
        // A batch of many small operations is mostly what is around them.
        let taken = bytes + OPERATION_BYTES;
        self.taken += taken;
        let all = self.node.batch_bytes().fetch_add(taken, Ordering::Relaxed) + taken;
        let config = self.node.config();
        if self.bytes > config.datastore.batch_bytes_max {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the batch has more than the {} bytes that [limits] batch_bytes_max allows: commit it in parts",
                    config.datastore.batch_bytes_max
                ),
            ));
        }
        if all > config.batch_memory_bytes {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "batches of {all} bytes are being sent to the node, more than the {} that [limits] batch_memory_bytes allows; nothing \
                     of this one was applied: send fewer at a time, or raise the limit",
                    config.batch_memory_bytes
                ),
            ));
        }
        self.ops.push(op);
        Ok(())
    }

    /// Everything that has arrived, to be applied while this is kept.
    pub(crate) fn take(&mut self) -> Vec<BatchOp> {
        std::mem::take(&mut self.ops)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.node.batch_bytes().fetch_sub(self.taken, Ordering::Relaxed);
    }
}
