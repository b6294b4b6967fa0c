//! Answers on their way to one client, from whichever thread has them.
//!
//! Who has an answer sends it, if nobody is sending. A thread that must not wait (it has just made a group of writes durable) leaves what the
//! socket does not take at once to the lane's clerk.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    net::Shutdown,
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use basalt_blockstore::{Error, ErrorKind};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, sendmsg},
};

use super::frame::{HEAD_BYTES, Head, outcome_number};
use crate::clients::Held;

/// Longest message of an error, in bytes.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Largest value whose memory is kept.
const SPARE_BYTES_MAX: usize = 1 << 20;

/// Requests of one lane that may be under way.
const UNDER_WAY_MAX: usize = 1024;

/// An answer, or what is left of it.
#[derive(Debug)]
pub(super) struct Answer {
    head: [u8; HEAD_BYTES],
    payload: Vec<u8>,
    sent: usize,
    /// Counts the payload as long as it is here.
    _held: Option<Held>,
}

impl Answer {
    /// What a request brought.
    pub(super) fn new(number: u64, outcome: Result<Vec<u8>, Error>, held: Option<Held>) -> Answer {
        let (what, payload) = match outcome {
            Ok(payload) => (outcome_number(Ok(())), payload),
            Err(err) => (outcome_number(Err(err.kind())), message(&err)),
        };
        let bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let head = Head { bytes, what, flags: 0, key_bytes: 0, number }.encode();
        Answer { head, payload, sent: 0, _held: held }
    }
}

fn message(err: &Error) -> Vec<u8> {
    // That a key is absent is no news for a person.
    if err.kind() == ErrorKind::NotFound {
        return Vec::new();
    }
    let mut message = err.to_string();
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
    message.into_bytes()
}

/// What the clerk does besides sending: a write that is to be submitted again.
pub(super) type Errand = Box<dyn FnOnce() + Send>;

/// See the module's page.
pub(super) struct Answers {
    stream: UnixStream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Answer>,
    errands: VecDeque<Errand>,
    /// Somebody sends, and goes on until the queue is empty.
    is_sending: bool,
    /// Requests that came and whose answers are not sent yet.
    under_way: usize,
    /// Nothing more will come of this lane.
    is_closed: bool,
    /// The memory of the last value that was sent, for the next: fresh memory of a block's size comes from the kernel page by page.
    spare: Vec<u8>,
}

impl Answers {
    pub(super) fn new(stream: UnixStream) -> Arc<Answers> {
        Arc::new(Answers { stream, state: Mutex::default(), changed: Condvar::new() })
    }

    /// One more request is under way; waits until there may be. `false`: the lane is over.
    pub(super) fn begin(&self) -> bool {
        let full = |state: &mut State| state.under_way >= UNDER_WAY_MAX && !state.is_closed;
        let mut state = self.changed.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        state.under_way += 1;
        !state.is_closed
    }

    /// Memory for a value that is to be sent. What it holds is to be overwritten.
    pub(super) fn spare(&self) -> Vec<u8> {
        std::mem::take(&mut self.lock().spare)
    }

    /// A request that had begun has no answer.
    pub(super) fn forget(&self) {
        self.lock().under_way -= 1;
    }

    /// Sends an answer, now or soon; `may_wait`: this thread may wait until the client takes it.
    pub(super) fn send(&self, answer: Answer, may_wait: bool) {
        let mut state = self.lock();
        if may_wait {
            // Or a client that takes slowly would have one value after the other queued for it, until it is cut off for holding too much.
            let others_send = |state: &mut State| state.is_sending && !state.is_closed;
            state = self.changed.wait_while(state, others_send).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_closed {
            return;
        }
        state.queue.push_back(answer);
        if !state.is_sending {
            state.is_sending = true;
            self.drain(state, may_wait);
        }
    }

    /// Has the clerk do something; drops it where the lane is over.
    pub(super) fn give(&self, errand: Errand) {
        let mut state = self.lock();
        if state.is_closed {
            drop(state);
            drop(errand);
            return;
        }
        state.errands.push_back(errand);
        self.changed.notify_all();
    }

    /// Sends what is queued, as the one who sends. Without waiting it ends where the socket is full, and the clerk goes on.
    fn drain<'a>(&'a self, mut state: MutexGuard<'a, State>, may_wait: bool) {
        while let Some(mut answer) = state.queue.pop_front() {
            drop(state);
            let sent = self.transmit(&mut answer, may_wait);
            state = self.lock();
            match sent {
                Ok(true) => {
                    if answer.payload.capacity() <= SPARE_BYTES_MAX
                        && answer.payload.capacity() > state.spare.capacity()
                    {
                        state.spare = answer.payload;
                    }
                    state.under_way -= 1;
                    // The reader waits for less, or for the end.
                    if state.under_way == 0 || state.under_way == UNDER_WAY_MAX - 1 {
                        self.changed.notify_all();
                    }
                }
                Ok(false) => {
                    state.queue.push_front(answer);
                    break;
                }
                Err(err) => {
                    if err.kind() == io::ErrorKind::WouldBlock {
                        tracing::warn!("cut off a lane whose client takes nothing of what is sent to it");
                    }
                    state.is_closed = true;
                    state.queue.clear();
                    let _ = self.stream.shutdown(Shutdown::Both);
                    break;
                }
            }
        }
        state.is_sending = false;
        self.changed.notify_all();
    }

    /// Sends one; `false` where the socket takes no more and this thread may not wait. A wait ends with the socket's own deadline.
    fn transmit(&self, answer: &mut Answer, may_wait: bool) -> io::Result<bool> {
        let flags = MsgFlags::MSG_NOSIGNAL | if may_wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        loop {
            let head = answer.head.get(answer.sent..).unwrap_or_default();
            let payload = answer.payload.get(answer.sent.saturating_sub(HEAD_BYTES)..).unwrap_or_default();
            if head.is_empty() && payload.is_empty() {
                return Ok(true);
            }
            let parts = [IoSlice::new(head), IoSlice::new(payload)];
            match sendmsg::<()>(self.stream.as_raw_fd(), &parts, &[], flags, None) {
                Ok(sent) => answer.sent += sent,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !may_wait => return Ok(false),
                Err(err) => return Err(err.into()),
            }
        }
    }

    /// What the second thread of a lane does, until it is over.
    pub(super) fn clerk(&self) {
        let mut state = self.lock();
        loop {
            if let Some(errand) = state.errands.pop_front() {
                drop(state);
                errand();
                state = self.lock();
            } else if state.is_closed {
                return;
            } else if !state.queue.is_empty() && !state.is_sending {
                state.is_sending = true;
                self.drain(state, true);
                state = self.lock();
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Waits until everything that was asked is answered, or the lane is over.
    pub(super) fn settle(&self) {
        let waits = |state: &mut State| state.under_way > 0 && !state.is_closed;
        drop(self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner));
    }

    /// Nothing more is sent, and nobody waits.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.queue.clear();
        let errands = std::mem::take(&mut state.errands);
        drop(state);
        self.changed.notify_all();
        // They have something to say as they go, which asks for the lock.
        drop(errands);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends there")]
mod tests {
    use std::{io::Read, thread, time::Duration};

    use super::*;

    fn lane() -> (Arc<Answers>, UnixStream) {
        let (node, client) = UnixStream::pair().unwrap();
        (Answers::new(node), client)
    }

    fn receive(client: &mut UnixStream) -> (u64, Vec<u8>) {
        let mut head = [0; HEAD_BYTES];
        client.read_exact(&mut head).unwrap();
        let head = Head::decode(&head);
        let mut payload = vec![0; head.bytes as usize];
        client.read_exact(&mut payload).unwrap();
        (head.number, payload)
    }

    #[test]
    fn what_the_socket_does_not_take_the_clerk_sends() {
        let (answers, mut client) = lane();
        let clerk = thread::spawn({
            let answers = answers.clone();
            move || answers.clerk()
        });
        for number in 1..=8 {
            assert!(answers.begin());
            answers.send(Answer::new(number, Ok(vec![number as u8; 1 << 20]), None), false);
        }
        for number in 1..=8 {
            assert_eq!(receive(&mut client), (number, vec![number as u8; 1 << 20]));
        }
        answers.settle();
        answers.close();
        clerk.join().unwrap();
    }

    #[test]
    fn who_may_wait_queues_nothing_behind_what_the_clerk_sends() {
        let (answers, mut client) = lane();
        let clerk = thread::spawn({
            let answers = answers.clone();
            move || answers.clerk()
        });
        let value = || Ok(vec![7; 4 << 20]);
        assert!(answers.begin());
        answers.send(Answer::new(1, value(), None), false);
        let reader = thread::spawn({
            let answers = answers.clone();
            move || {
                for number in 2..=4 {
                    assert!(answers.begin());
                    answers.send(Answer::new(number, value(), None), true);
                }
            }
        });
        thread::sleep(Duration::from_millis(50));
        assert!(answers.lock().queue.is_empty() && !reader.is_finished(), "it waits with its own answer in hand");
        for number in 1..=4 {
            assert_eq!(receive(&mut client).0, number);
        }
        reader.join().unwrap();
        answers.settle();
        answers.close();
        clerk.join().unwrap();
    }

    #[test]
    fn a_lane_reads_no_more_than_it_may_have_under_way() {
        let (answers, mut client) = lane();
        for _ in 0..UNDER_WAY_MAX {
            assert!(answers.begin());
        }
        let next = thread::spawn({
            let answers = answers.clone();
            move || answers.begin()
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!next.is_finished());
        answers.send(Answer::new(7, Ok(Vec::new()), None), false);
        assert!(next.join().unwrap());
        assert_eq!(receive(&mut client), (7, Vec::new()));
    }

    #[test]
    fn a_client_that_takes_nothing_ends_its_lane() {
        let (answers, _client) = lane();
        answers.stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        assert!(answers.begin());
        answers.send(Answer::new(1, Ok(vec![0; 4 << 20]), None), true);
        answers.settle();
        assert!(!answers.begin(), "the lane is over");
    }

    #[test]
    fn an_error_is_its_number_and_its_message() {
        let (answers, mut client) = lane();
        answers.begin();
        answers.send(Answer::new(3, Err(Error::new(ErrorKind::NoSpace, "full: é".repeat(2000))), None), true);
        let mut head = [0; HEAD_BYTES];
        client.read_exact(&mut head).unwrap();
        let head = Head::decode(&head);
        assert_eq!((head.what, head.number), (2, 3));
        let mut text = vec![0; head.bytes as usize];
        client.read_exact(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("full: é") && text.len() <= MESSAGE_BYTES_MAX);
    }
}
