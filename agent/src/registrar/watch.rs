//! Sees Kubo's pins change as Kubo writes them, where `/pins` is in this node.
//!
//! What changed is noted and nothing more: a write waits for no ledger, and notes are bounded. When there are too many the watch says that it missed some, and
//! Kubo is asked for all of its pins.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use basalt_datastore::{Key, KeyObserver};
use basalt_stateplane::Multihash;
use tokio::sync::Notify;

use super::records::{self, Said};

/// DAGs that are noted at a time.
const NOTED_MAX: usize = 65_536;

/// What was seen since it was last asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// DAGs whose pins may have changed.
    pub touched: BTreeSet<Multihash>,
    /// Whether there was more than that.
    pub missed: bool,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct PinWatch {
    state: Mutex<State>,
    noticed: Notify,
}

#[derive(Debug, Default)]
struct State {
    seen: Seen,
    /// Whether anything was ever seen: Kubo's pins are here.
    saw: bool,
    off: Option<String>,
}

impl PinWatch {
    fn state(&self) -> MutexGuard<'_, State> {
        // Held for a moment only, by whoever has it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something was seen.
    pub async fn noticed(&self) {
        self.noticed.notified().await;
    }

    /// What was seen since the last call.
    pub fn take(&self) -> Seen {
        std::mem::take(&mut self.state().seen)
    }

    /// Why it looks no more; `None`: it does.
    pub fn off(&self) -> Option<String> {
        self.state().off.clone()
    }

    /// Whether it has ever seen anything.
    pub fn saw(&self) -> bool {
        self.state().saw
    }
}

impl KeyObserver for PinWatch {
    fn changed(&self, key: &Key, value: Option<&[u8]>) {
        let said = records::read(key.as_str(), value);
        let mut state = self.state();
        if state.off.is_some() {
            return;
        }
        state.saw = true;
        match said {
            Said::Nothing => return,
            Said::Touched(multihash) if state.seen.touched.len() < NOTED_MAX => {
                state.seen.touched.insert(multihash);
            }
            Said::Touched(_) => state.seen.missed = true,
            Said::Unknown(why) => {
                tracing::error!(
                    why,
                    "Kubo's pins are of a kind that is not known here: from now on Kubo is asked for them"
                );
                state.off = Some(why);
                state.seen.missed = true;
            }
        }
        drop(state);
        self.noticed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(watch: &PinWatch, n: u32) {
        let bytes = [&[0x12, 0x20][..], &[0; 28], &n.to_be_bytes()].concat();
        let multihash = Multihash::from_bytes(&bytes).unwrap();
        let key = format!("{}/uId", records::index_prefixes(&multihash)[0]);
        watch.changed(&Key::new(&key).unwrap(), None);
    }

    #[test]
    fn too_many_changes_cost_no_memory_and_are_not_forgotten() {
        let watch = PinWatch::default();
        assert!(!watch.saw());
        (0..NOTED_MAX as u32 + 10).for_each(|n| touch(&watch, n));
        let seen = watch.take();
        assert_eq!((seen.touched.len(), seen.missed, watch.saw()), (NOTED_MAX, true, true));
        assert_eq!(watch.take(), Seen::default());
        touch(&watch, 1);
        assert_eq!(watch.take().touched.len(), 1);
    }

    #[test]
    fn an_unknown_record_turns_it_off_and_asks_for_a_scan() {
        let watch = PinWatch::default();
        watch.changed(&Key::new("/pins/pin/x").unwrap(), Some(b"\xa1\x61v\x02"));
        assert!(watch.off().unwrap().contains("field 'v'"), "{:?}", watch.off());
        assert!(watch.take().missed);
        touch(&watch, 1);
        assert_eq!(watch.take(), Seen::default());
    }
}
