//! What the numbers that callers hold stand for. A number is given once and never again, so one that was closed, closed twice or made up
//! finds nothing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use basalt_datastore::Error;
use basalt_node::{NodeFile, clients::Presence};
use basalt_proto::v1;

use crate::{
    hosted::{Hosted, Pages},
    outcome::{Failure, Kind, Result},
};

static NEXT: AtomicU64 = AtomicU64::new(1);
static VIEWS: RwLock<BTreeMap<u64, View>> = RwLock::new(BTreeMap::new());
static QUERIES: RwLock<BTreeMap<u64, Query>> = RwLock::new(BTreeMap::new());
/// A place for each folder that was ever opened, so that one opening or closing of it waits for the other, and for no other folder's.
static PLACES: Mutex<BTreeMap<PathBuf, Arc<Place>>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Default)]
struct Place {
    open: Mutex<Option<Open>>,
}

/// The node of a place, and how many views of it there are.
#[derive(Debug)]
struct Open {
    hosted: Arc<Hosted>,
    views: usize,
}

/// What a handle stands for.
#[derive(Debug)]
struct View {
    hosted: Arc<Hosted>,
    place: Arc<Place>,
    _presence: Presence,
}

/// What a cursor stands for.
#[derive(Debug)]
struct Query {
    of: u64,
    pages: Arc<Pages>,
}

/// Opens a view of the node of a folder: the handle, and the node's answer to the handshake.
pub(crate) fn open(
    path: &Path,
    said: v1::HandshakeRequest,
    deadline: Duration,
) -> Result<(u64, v1::HandshakeResponse)> {
    // Before anything else, for it says best what is wrong with a folder that is no node.
    NodeFile::read(path)?;
    let name = path.canonicalize().map_err(|err| Error::io(format!("look for the node in {}", path.display()), err))?;
    let place = lock(&PLACES).entry(name).or_default().clone();
    let mut open = lock(&place.open);
    let hosted = match &*open {
        Some(open) => open.hosted.clone(),
        None => Arc::new(Hosted::open(path, deadline)?),
    };
    let (presence, answer) = match hosted.node().admit(said) {
        Ok(admitted) => admitted,
        Err(err) => {
            if open.is_none() {
                hosted.close()?;
            }
            return Err(err.into());
        }
    };
    open.get_or_insert_with(|| Open { hosted: hosted.clone(), views: 0 }).views += 1;
    drop(open);
    let handle = NEXT.fetch_add(1, Ordering::Relaxed);
    write(&VIEWS).insert(handle, View { hosted, place, _presence: presence });
    Ok((handle, answer))
}

/// Closes a view, with its queries; the last one of a node closes that.
pub(crate) fn close(handle: u64) -> Result<()> {
    let view = write(&VIEWS).remove(&handle).ok_or_else(|| gone(handle))?;
    write(&QUERIES).retain(|_, query| query.of != handle);
    let mut open = lock(&view.place.open);
    let Some(node) = &mut *open else { return Ok(()) };
    node.views -= 1;
    if node.views > 0 {
        return Ok(());
    }
    *open = None;
    // Under the lock: whoever opens the folder again waits until this has let go of it.
    view.hosted.close()
}

/// The node behind a handle.
pub(crate) fn hosted(handle: u64) -> Result<Arc<Hosted>> {
    read(&VIEWS).get(&handle).map(|view| view.hosted.clone()).ok_or_else(|| gone(handle))
}

/// Starts a query through a handle: its cursor.
pub(crate) fn query(handle: u64, request: v1::QueryRequest) -> Result<u64> {
    let pages = Arc::new(hosted(handle)?.query(request)?);
    let cursor = NEXT.fetch_add(1, Ordering::Relaxed);
    write(&QUERIES).insert(cursor, Query { of: handle, pages });
    if !read(&VIEWS).contains_key(&handle) {
        // Closed meanwhile, and so this cursor may have been missed.
        write(&QUERIES).remove(&cursor);
        return Err(gone(handle));
    }
    Ok(cursor)
}

/// The pages behind a cursor.
pub(crate) fn pages(cursor: u64) -> Result<Arc<Pages>> {
    read(&QUERIES).get(&cursor).map(|query| query.pages.clone()).ok_or_else(|| gone(cursor))
}

/// Ends a query.
pub(crate) fn close_query(cursor: u64) -> Result<()> {
    write(&QUERIES).remove(&cursor).map(|_| ()).ok_or_else(|| gone(cursor))
}

fn gone(number: u64) -> Failure {
    Failure::new(Kind::Closed, format!("handle {number} is not open: it was closed before, or never opened"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
