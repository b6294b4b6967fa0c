//! One lane: reads requests, answers what it can at once, and has writes answered by whoever learns their outcome.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read},
    os::unix::net::UnixStream,
    sync::Arc,
};

use basalt_datastore::{BatchOp, Error, ErrorKind, Key, Result, Ticket};
use basalt_proto::v1;
use prost::Message;

use super::{
    answers::{Answer, Answers},
    deletes::{self, ClientId, Deletes, Listener},
    frame::{
        Asked, FLAG_COMMIT, FLAG_GIVE_UP, FLAG_TTL, HEAD_BYTES, Head, OPERATION_DELETE, OPERATION_HEAD_BYTES,
        OPERATION_PUT, PREFACE,
    },
};
use crate::{
    arriving::Arriving,
    calls::{Begun, Calls},
    clients::{self, Held, Introduction},
    grpc::message_bytes_max,
    node::Node,
    query::parse_key,
};

/// What is read at a time; a value that is larger comes straight to where it stays.
const READ_BYTES: usize = 64 << 10;
/// Largest request that carries no value.
const SMALL_REQUEST_BYTES_MAX: usize = 1 << 20;
/// Payloads below this are not worth counting: there are so many under way at most, of so many lanes.
const COUNTED_BYTES_MIN: usize = 4 << 10;
/// Batches that a lane may be sending at a time.
const BATCHES_MAX: usize = 64;
/// How often a write is submitted that failed only because another's did (STORE 11).
const TRIES: usize = 8;

/// See the module's page.
pub(super) struct Connection {
    node: Arc<Node>,
    stream: BufReader<UnixStream>,
    peer: clients::Connection,
    answers: Arc<Answers>,
    deletes: Arc<Deletes>,
    /// Who the client says it is, so that its Deletes are remembered.
    client: Option<ClientId>,
    batches: HashMap<u64, Batch>,
    message_bytes_max: usize,
}

/// A batch that has not come whole yet.
struct Batch {
    /// What became of it so far: an operation that was refused refuses the whole.
    arriving: Result<Arriving>,
}

/// A write that may have to be submitted again.
struct Write {
    node: Arc<Node>,
    answers: Arc<Answers>,
    change: Change,
    /// Hears of the outcome; taken when it has.
    tell: Option<Listener>,
    _held: Option<Held>,
}

enum Change {
    Put { key: Key, value: Vec<u8>, ttl_ms: Option<u64> },
    Delete { key: Key },
}

/// Why a lane ends.
enum End {
    /// The client has closed it, or is not there any more.
    Gone,
    /// It has sent what makes no sense.
    Broken(String),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Gone
    }
}

fn broken<T>(what: impl Into<String>) -> std::result::Result<T, End> {
    Err(End::Broken(what.into()))
}

impl Connection {
    pub(super) fn new(
        node: Arc<Node>,
        deletes: Arc<Deletes>,
        stream: UnixStream,
        peer: clients::Connection,
    ) -> io::Result<Connection> {
        let answers = Answers::new(stream.try_clone()?);
        let message_bytes_max = message_bytes_max(node.config());
        let stream = BufReader::with_capacity(READ_BYTES, stream);
        Ok(Connection {
            node,
            stream,
            peer,
            answers,
            deletes,
            client: None,
            batches: HashMap::new(),
            message_bytes_max,
        })
    }

    pub(super) fn answers(&self) -> Arc<Answers> {
        self.answers.clone()
    }

    /// Serves until the client goes, or breaks the rules, or the node takes no more; then lets what is under way end.
    pub(super) fn serve(mut self) {
        let _closes = Closes(self.answers.clone());
        if let Err(End::Broken(why)) = self.run() {
            tracing::warn!(pid = self.peer.peer().pid, %why, "closed a fast lane");
            if self.answers.begin() {
                let err = Error::new(ErrorKind::InvalidValue, format!("the lane is closed: {why}"));
                self.answers.send(Answer::new(0, Err(err), None), true);
            }
        }
        self.batches.clear();
        self.answers.settle();
    }

    fn run(&mut self) -> std::result::Result<(), End> {
        let mut preface = [0; PREFACE.len()];
        self.stream.read_exact(&mut preface)?;
        self.hello()?;
        loop {
            if self.stream.fill_buf()?.is_empty() {
                return Ok(());
            }
            let head = self.head()?;
            self.request(head)?;
        }
    }

    fn head(&mut self) -> std::result::Result<Head, End> {
        let mut head = [0; HEAD_BYTES];
        self.stream.read_exact(&mut head)?;
        let head = Head::decode(&head);
        if usize::from(head.key_bytes) > head.bytes as usize {
            return broken(format!("a frame of {} bytes has a key of {}", head.bytes, head.key_bytes));
        }
        if head.number == 0 {
            return broken("a request has the number 0");
        }
        Ok(head)
    }

    fn hello(&mut self) -> std::result::Result<(), End> {
        let head = self.head()?;
        if Asked::from_number(head.what) != Some(Asked::Hello) || head.bytes as usize > SMALL_REQUEST_BYTES_MAX {
            return broken("its first frame is no Hello");
        }
        let begun = Calls::begin_method("Datastore", Asked::Hello.method());
        let said = self.payload(head.bytes as usize)?;
        let Ok(said) = v1::HandshakeRequest::decode(said.as_slice()) else {
            return broken("its Hello is no HandshakeRequest");
        };
        let answer = self.node.shake_hands(&said);
        let is_welcome = answer.is_ok();
        if is_welcome {
            self.client = deletes::client_id(&said.client_id);
            self.peer.introduce(Introduction::of(said));
        }
        self.answers.begin();
        self.answer(head.number, begun, answer.map(|answer| answer.encode_to_vec()), None);
        if is_welcome { Ok(()) } else { Err(End::Gone) }
    }

    fn request(&mut self, head: Head) -> std::result::Result<(), End> {
        let Some(asked) = Asked::from_number(head.what) else {
            return broken(format!("it asks for {}, which this node does not know", head.what));
        };
        let bytes = head.bytes as usize;
        let limit = match asked {
            Asked::Put | Asked::Batch => self.message_bytes_max,
            _ => SMALL_REQUEST_BYTES_MAX,
        };
        if bytes > limit {
            return broken(format!("a frame of {bytes} bytes is larger than the {limit} that {asked:?} may have"));
        }
        if asked == Asked::Batch {
            return self.batch(head);
        }
        if !self.answers.begin() {
            return Err(End::Gone);
        }
        let done = self.single(asked, head);
        if done.is_err() {
            self.answers.forget();
        }
        done
    }

    /// A request of one frame. An error: it has no answer.
    fn single(&mut self, asked: Asked, head: Head) -> std::result::Result<(), End> {
        let begun = Calls::begin_method("Datastore", asked.method());
        let key = self.key(usize::from(head.key_bytes))?;
        let rest = head.bytes as usize - usize::from(head.key_bytes);
        let number = head.number;
        if rest > 0 && !matches!(asked, Asked::Put | Asked::GetSizes) {
            return broken(format!("{asked:?} comes with {rest} bytes that it has no use for"));
        }
        match asked {
            Asked::Get => {
                let mut value = self.answers.spare();
                let outcome = key.and_then(|key| self.node.datastore().get(&key, &mut value)).map(|()| value);
                let held = outcome.as_ref().ok().and_then(|value| self.hold(value.len()));
                self.answer(number, begun, outcome, held);
            }
            Asked::Has => {
                let size = key.and_then(|key| self.node.datastore().size(&key));
                self.answer(number, begun, size.map(|size| vec![u8::from(size.is_some())]), None);
            }
            Asked::GetSize => {
                let size = key.and_then(|key| self.node.datastore().size(&key)?.ok_or_else(Error::not_found));
                self.answer(number, begun, size.map(|size| size.to_le_bytes().to_vec()), None);
            }
            Asked::GetSizes => {
                let keys = self.payload(rest)?;
                let sizes = self.sizes(&keys)?;
                self.answer(number, begun, sizes, None);
            }
            Asked::Put => {
                let held = self.hold(rest);
                let ttl_ms = match head.flags & FLAG_TTL != 0 {
                    true if rest < 8 => return broken("a Put has no room for its time to live"),
                    true => Some(self.number()?).filter(|ttl_ms| *ttl_ms != 0),
                    false => None,
                };
                let value = self.payload(rest - if head.flags & FLAG_TTL != 0 { 8 } else { 0 })?;
                let change = key.map(|key| Change::Put { key, value, ttl_ms });
                self.write(change, self.teller(number, begun), held);
            }
            Asked::Delete => self.delete(number, key, self.teller(number, begun)),
            Asked::Hello | Asked::Batch => return broken("it says Hello again"),
        }
        Ok(())
    }

    fn sizes(&self, mut keys: &[u8]) -> std::result::Result<Result<Vec<u8>>, End> {
        let mut sizes = Vec::new();
        while !keys.is_empty() {
            let key = keys
                .split_first_chunk::<2>()
                .and_then(|(length, rest)| rest.split_at_checked(usize::from(u16::from_le_bytes(*length))));
            let Some((key, rest)) = key else { return broken("the keys of a GetSizes end in the middle of one") };
            keys = rest;
            match parse(key).and_then(|key| self.node.datastore().size(&key)) {
                Ok(size) => sizes.extend_from_slice(&size.unwrap_or(u64::MAX).to_le_bytes()),
                Err(err) => return Ok(Err(err)),
            }
        }
        Ok(Ok(sizes))
    }

    fn batch(&mut self, head: Head) -> std::result::Result<(), End> {
        if head.key_bytes != 0 {
            return broken("a part of a batch has a key of its own");
        }
        if !self.batches.contains_key(&head.number) && self.batches.len() >= BATCHES_MAX {
            return broken(format!("it sends more than {BATCHES_MAX} batches at a time"));
        }
        let mut batch = self
            .batches
            .remove(&head.number)
            .unwrap_or_else(|| Batch { arriving: Ok(Arriving::new(self.node.clone())) });
        let mut left = head.bytes as usize;
        let _held = self.hold(left);
        while left > 0 {
            let Some(rest) = left.checked_sub(OPERATION_HEAD_BYTES) else {
                return broken("a part of a batch ends in the middle of an operation");
            };
            let [what, zero, k0, k1, v0, v1, v2, v3] = self.number()?.to_le_bytes();
            let (key_bytes, value_bytes) =
                (usize::from(u16::from_le_bytes([k0, k1])), u32::from_le_bytes([v0, v1, v2, v3]) as usize);
            let Some(rest) = rest.checked_sub(key_bytes + value_bytes) else {
                return broken("an operation of a batch is longer than its frame");
            };
            left = rest;
            let key = self.key(key_bytes)?;
            let value = self.payload(value_bytes)?;
            if zero != 0 || !(what == OPERATION_PUT || what == OPERATION_DELETE && value.is_empty()) {
                return broken(format!("an operation of a batch is neither put nor delete: {what}"));
            }
            let op = key.map(|key| if what == OPERATION_PUT { BatchOp::Put(key, value) } else { BatchOp::Delete(key) });
            let added = match &mut batch.arriving {
                Ok(arriving) => op.and_then(|op| arriving.add(op)),
                Err(_) => Ok(()),
            };
            if let Err(err) = added {
                batch.arriving = Err(err);
            }
        }
        if head.flags & (FLAG_COMMIT | FLAG_GIVE_UP) == 0 {
            self.batches.insert(head.number, batch);
            return Ok(());
        }
        if !self.answers.begin() {
            return Err(End::Gone);
        }
        let begun = Calls::begin_method("Datastore", Asked::Batch.method());
        if head.flags & FLAG_GIVE_UP != 0 {
            self.answer(head.number, begun, Ok(Vec::new()), None);
            return Ok(());
        }
        // It may wait for the barrier between blocks and metadata.
        let submitted = batch.arriving.and_then(|mut arriving| {
            let ticket = self.node.datastore().submit_batch(arriving.take())?;
            Ok((ticket, arriving))
        });
        match submitted {
            Err(err) => self.answer(head.number, begun, Err(err), None),
            Ok((ticket, arriving)) => {
                let (node, answers, number) = (self.node.clone(), self.answers.clone(), head.number);
                ticket.then(move |outcome| {
                    drop(arriving);
                    node.calls().end(begun, outcome.as_ref().copied().map_err(|err| Some(err.kind())));
                    answers.send(Answer::new(number, outcome.map(|()| Vec::new()), None), false);
                });
            }
        }
        Ok(())
    }

    /// What answers a write, from whichever thread.
    fn teller(&self, number: u64, begun: Begun) -> Listener {
        let (node, answers) = (self.node.clone(), self.answers.clone());
        Box::new(move |outcome| {
            node.calls().end(begun, outcome.as_ref().copied().map_err(|err| Some(err.kind())));
            answers.send(Answer::new(number, outcome.map(|()| Vec::new()), None), false);
        })
    }

    fn write(&self, change: Result<Change>, tell: Listener, held: Option<Held>) {
        match change {
            Err(err) => tell(Err(err)),
            Ok(change) => {
                let (node, answers) = (self.node.clone(), self.answers.clone());
                Write { node, answers, change, tell: Some(tell), _held: held }.submit(TRIES);
            }
        }
    }

    /// A Delete of a client that has a name is done once, however often it comes.
    fn delete(&self, number: u64, key: Result<Key>, tell: Listener) {
        let change = key.map(|key| Change::Delete { key });
        let Some(client) = self.client else { return self.write(change, tell, None) };
        if let Some(tell) = self.deletes.begin(client, number, tell) {
            let deletes = self.deletes.clone();
            let tell = move |outcome: Result<()>| {
                deletes.end(client, number, &outcome);
                tell(outcome);
            };
            self.write(change, Box::new(tell), None);
        }
    }

    /// Answers from the thread that reads: it may wait for the client.
    fn answer(&self, number: u64, begun: Begun, outcome: Result<Vec<u8>>, held: Option<Held>) {
        self.node.calls().end(begun, outcome.as_ref().map(|_| ()).map_err(|err| Some(err.kind())));
        self.answers.send(Answer::new(number, outcome, held), true);
    }

    fn hold(&self, bytes: usize) -> Option<Held> {
        (bytes >= COUNTED_BYTES_MIN).then(|| self.peer.hold(bytes))
    }

    fn key(&mut self, bytes: usize) -> std::result::Result<Result<Key>, End> {
        let key = self.payload(bytes)?;
        Ok(parse(&key))
    }

    fn number(&mut self) -> std::result::Result<u64, End> {
        let mut number = [0; 8];
        self.stream.read_exact(&mut number)?;
        Ok(u64::from_le_bytes(number))
    }

    fn payload(&mut self, bytes: usize) -> std::result::Result<Vec<u8>, End> {
        let mut payload = Vec::with_capacity(bytes);
        let read = self.stream.by_ref().take(bytes as u64).read_to_end(&mut payload)?;
        if read < bytes { Err(End::Gone) } else { Ok(payload) }
    }
}

fn parse(key: &[u8]) -> Result<Key> {
    match std::str::from_utf8(key) {
        Ok(text) => parse_key(text),
        Err(_) => Err(Error::new(ErrorKind::InvalidKey, format!("key '{}' is no text in UTF-8", key.escape_ascii()))),
    }
}

impl Write {
    fn submit(mut self, tries: usize) {
        let datastore = self.node.datastore();
        let ticket: Result<Ticket> = match &self.change {
            Change::Put { key, value, ttl_ms } => datastore.submit_put(key, value, *ttl_ms),
            Change::Delete { key } => datastore.submit_delete(key),
        };
        match ticket {
            Err(err) => self.end(Err(err)),
            Ok(ticket) => ticket.then(move |outcome| match outcome {
                Err(err) if err.is_superseded() && tries > 1 => {
                    // Submitting may wait for a flush, which this thread may have to make.
                    let answers = self.answers.clone();
                    answers.give(Box::new(move || self.submit(tries - 1)));
                }
                outcome => self.end(outcome),
            }),
        }
    }

    fn end(&mut self, outcome: Result<()>) {
        if let Some(tell) = self.tell.take() {
            tell(outcome);
        }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        // Its lane ended before it was submitted again.
        self.end(Err(Error::new(
            ErrorKind::Unavailable,
            "the lane ended before the write was tried again; nothing of it was written",
        )));
    }
}

/// However the reader ends, the clerk ends too.
struct Closes(Arc<Answers>);

impl Drop for Closes {
    fn drop(&mut self) {
        self.0.close();
    }
}
