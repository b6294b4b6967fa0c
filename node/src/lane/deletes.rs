//! Deletes that a client may ask for again, because its lane broke before the answer came (STORE 29).
//!
//! Whatever is put between the two must stay: a Delete that was done once is not done again, it is answered again. The numbers of a client's Deletes are
//! therefore its own over all its lanes, and the node remembers the last of them as long as it is open.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use basalt_datastore::Result;

/// Deletes of one client that are remembered.
const REMEMBERED: usize = 1024;
/// Clients whose Deletes are remembered; of more, those are forgotten that have asked for none for longest.
const CLIENTS_MAX: usize = 256;
/// Bytes of a client's name for itself; another is none, and nothing of it is remembered.
const CLIENT_BYTES: usize = 16;

/// Who asked for a Delete.
pub(super) type ClientId = [u8; CLIENT_BYTES];

/// By its handshake.
pub(super) fn client_id(said: &[u8]) -> Option<ClientId> {
    said.try_into().ok()
}

/// What hears of a Delete's outcome.
pub(super) type Listener = Box<dyn FnOnce(Result<()>) + Send>;

/// See the module's page.
#[derive(Default)]
pub(super) struct Deletes(Mutex<VecDeque<Client>>);

struct Client {
    id: ClientId,
    deletes: VecDeque<(u64, State)>,
}

enum State {
    UnderWay(Vec<Listener>),
    Ended(Result<()>),
}

impl Deletes {
    /// A Delete has come, and `tell` answers it: now, where it was done before; with the first one's outcome, where that is under way. `Some`: it is the
    /// first, is to be done, and told to [`Deletes::end`].
    pub(super) fn begin(&self, id: ClientId, number: u64, tell: Listener) -> Option<Listener> {
        let mut clients = self.lock();
        let client = match clients.iter().position(|client| client.id == id) {
            Some(at) => clients.remove(at).unwrap_or_else(|| Client::new(id)),
            None => Client::new(id),
        };
        clients.push_back(client);
        if clients.len() > CLIENTS_MAX {
            clients.pop_front();
        }
        let deletes = &mut clients.back_mut()?.deletes;
        match deletes.iter_mut().find(|(known, _)| *known == number) {
            None => {
                if deletes.len() >= REMEMBERED {
                    // The oldest that has ended: what is under way has an outcome to come.
                    let ended = deletes.iter().position(|(_, state)| matches!(state, State::Ended(_)));
                    deletes.remove(ended.unwrap_or(0));
                }
                deletes.push_back((number, State::UnderWay(Vec::new())));
                Some(tell)
            }
            Some((_, State::UnderWay(listeners))) => {
                listeners.push(tell);
                None
            }
            Some((_, State::Ended(outcome))) => {
                let outcome = outcome.clone();
                drop(clients);
                tell(outcome);
                None
            }
        }
    }

    /// The outcome of a Delete that was to be done.
    pub(super) fn end(&self, id: ClientId, number: u64, outcome: &Result<()>) {
        let mut clients = self.lock();
        let client = clients.iter_mut().find(|client| client.id == id);
        let state = client.and_then(|client| client.deletes.iter_mut().find(|(known, _)| *known == number));
        let Some((_, state)) = state else { return };
        let before = std::mem::replace(state, State::Ended(outcome.clone()));
        drop(clients);
        if let State::UnderWay(listeners) = before {
            listeners.into_iter().for_each(|tell| tell(outcome.clone()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Client>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    fn new(id: ClientId) -> Client {
        Client { id, deletes: VecDeque::new() }
    }
}

impl std::fmt::Debug for Deletes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deletes").field("clients", &self.lock().len()).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends there")]
mod tests {
    use std::sync::{Arc, mpsc};

    use basalt_datastore::{Error, ErrorKind};

    use super::*;

    const ONE: ClientId = [1; 16];
    const OTHER: ClientId = [2; 16];

    /// Asks; whether it is to be done, and what is told.
    fn ask(deletes: &Deletes, id: ClientId, number: u64) -> (bool, mpsc::Receiver<Result<()>>) {
        let (told, hears) = mpsc::channel();
        let first = deletes.begin(id, number, Box::new(move |outcome| drop(told.send(outcome))));
        (first.is_some(), hears)
    }

    #[test]
    fn a_delete_is_done_once_and_answered_as_often_as_it_is_asked_for() {
        let deletes = Deletes::default();
        assert!(ask(&deletes, ONE, 7).0);
        let (again, early) = ask(&deletes, ONE, 7);
        assert!(!again && early.try_recv().is_err(), "the first one is under way");
        deletes.end(ONE, 7, &Err(Error::new(ErrorKind::Io, "no")));
        assert_eq!(early.recv().unwrap().unwrap_err().kind(), ErrorKind::Io);
        let (again, late) = ask(&deletes, ONE, 7);
        assert!(!again);
        assert_eq!(late.recv().unwrap().unwrap_err().kind(), ErrorKind::Io);
        assert!(ask(&deletes, ONE, 8).0 && ask(&deletes, OTHER, 7).0, "others are others");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_under_way_is_kept_longest() {
        let deletes = Deletes::default();
        assert!(ask(&deletes, ONE, 0).0);
        for number in 1..=2 * REMEMBERED as u64 {
            assert!(ask(&deletes, ONE, number).0);
            deletes.end(ONE, number, &Ok(()));
        }
        assert!(!ask(&deletes, ONE, 0).0, "it is under way");
        assert!(!ask(&deletes, ONE, 2 * REMEMBERED as u64).0);
        assert!(ask(&deletes, ONE, 1).0, "forgotten");
        assert_eq!(deletes.lock()[0].deletes.len(), REMEMBERED);
        for other in 0..CLIENTS_MAX {
            ask(&deletes, [other as u8; 16].map(|byte| byte.wrapping_add(3)), 1);
        }
        assert!(deletes.lock().len() <= CLIENTS_MAX);
    }

    #[test]
    fn of_many_that_ask_for_the_same_one_does_it() {
        let deletes = Arc::new(Deletes::default());
        let done: usize = std::thread::scope(|scope| {
            let ask = |_| {
                let deletes = deletes.clone();
                scope.spawn(move || {
                    let (first, hears) = ask(&deletes, ONE, 7);
                    if first {
                        deletes.end(ONE, 7, &Ok(()));
                    } else {
                        hears.recv().unwrap().unwrap();
                    }
                    usize::from(first)
                })
            };
            let threads: Vec<_> = (0..16).map(ask).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(done, 1);
    }
}
