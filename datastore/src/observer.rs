//! Who looks on while keys change: the agent sees Kubo's pins change as Kubo writes them.

use std::{fmt::Debug, sync::Arc};

use basalt_blockstore::{Result, store::Ticket};

use crate::{Key, keyspace::Change};

/// Looks on while keys that are no blocks change.
pub trait KeyObserver: Debug + Send + Sync + 'static {
    /// A key was put (with its value) or removed, and that is acknowledged. Of changes of one key at the same time the last word may be that of an earlier one: who
    /// must know what holds reads it. Called on a thread that others wait for: it must not block.
    fn changed(&self, key: &Key, value: Option<&[u8]>);
}

/// An observer of the keys beneath a prefix.
#[derive(Debug)]
pub(crate) struct Observed {
    prefix: String,
    observer: Arc<dyn KeyObserver>,
}

impl Observed {
    pub(crate) fn new(prefix: &Key, observer: Arc<dyn KeyObserver>) -> Observed {
        Observed { prefix: format!("{}/", prefix.as_str().trim_end_matches('/')), observer }
    }

    fn sees(&self, changes: &[Change]) -> bool {
        changes.iter().any(|change| change.key().as_str().starts_with(&self.prefix))
    }

    /// Tells of changes that were made.
    pub(crate) fn tell(&self, changes: &[Change]) {
        for change in changes.iter().filter(|change| change.key().as_str().starts_with(&self.prefix)) {
            match change {
                Change::Put { key, value, .. } => self.observer.changed(key, Some(value)),
                Change::Delete { key } => self.observer.changed(key, None),
                Change::Expire { .. } => {}
            }
        }
    }

    /// Tells of changes once they are acknowledged. A ticket that is of no interest stays as it is.
    pub(crate) fn tell_after(self: &Arc<Observed>, changes: Vec<Change>, written: Result<Ticket>) -> Result<Ticket> {
        if !self.sees(&changes) {
            return written;
        }
        let (written, observed) = (written?, Arc::clone(self));
        let (ticket, completer) = Ticket::pending();
        written.then(move |outcome| {
            if outcome.is_ok() {
                observed.tell(&changes);
            }
            completer.complete(outcome);
        });
        Ok(ticket)
    }
}
