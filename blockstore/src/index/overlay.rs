//! An index in memory, alone or over one that must not be written: for stores opened for reading only (STORE 23).

use std::{collections::BTreeMap, sync::Arc};

use super::{Change, Index};
use crate::{error::Result, sync::RwLock};

type Map = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Changes in memory over a base that stays as it is.
#[derive(Debug, Default)]
pub(crate) struct OverlayIndex {
    base: Option<Arc<dyn Index>>,
    changes: RwLock<Map>,
}

impl OverlayIndex {
    pub(crate) fn new(base: Option<Arc<dyn Index>>) -> OverlayIndex {
        OverlayIndex { base, changes: RwLock::default() }
    }
}

impl Index for OverlayIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if let Some(change) = self.changes.read().get(key) {
            return Ok(change.clone());
        }
        self.base.as_ref().map_or(Ok(None), |base| base.get(key))
    }

    fn write(&self, changes: &[Change]) -> Result<()> {
        self.changes.write().extend(changes.iter().cloned());
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn scan(&self, from: &[u8], each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()> {
        let changes = self.changes.read().clone();
        let mut ours = changes.range(from.to_vec()..).peekable();
        let mut go = true;
        if let Some(base) = &self.base {
            base.scan(from, &mut |key, value| {
                while let Some((changed, new)) = ours.next_if(|(changed, _)| changed.as_slice() <= key) {
                    let same = changed.as_slice() == key;
                    if let Some(new) = new {
                        go = each(changed, new);
                    }
                    if same || !go {
                        return go;
                    }
                }
                go = each(key, value);
                go
            })?;
        }
        for (changed, new) in ours {
            if !go {
                break;
            }
            if let Some(new) = new {
                go = each(changed, new);
            }
        }
        Ok(())
    }
}
