//! A stream of JSON lines and, what matters most, how it ended.

use std::{collections::VecDeque, fmt, marker::PhantomData};

use bytes::BytesMut;
use serde::de::DeserializeOwned;

use crate::{
    Class, Error, Result,
    client::{Body, Part},
};

/// What a stream brings next.
#[must_use = "the end tells whether the items before it are all there are"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// An item. It says nothing of those to come.
    Item(T),
    /// How the stream ended. Asked again, it says the same.
    End(End),
}

/// How a stream ended.
#[must_use = "a stream that did not end as complete proves nothing"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Kubo ended its answer and reported no failure: the items are all there are.
    Complete,
    /// Kubo says that it failed. The items before are what it got to.
    Failed(Error),
    /// Neither was heard: the connection broke, nothing came for too long, or what came is no answer of Kubo's. What Kubo did is unknown.
    Truncated(Error),
}

impl End {
    /// The error unless the stream is complete.
    pub fn complete(self) -> Result<()> {
        match self {
            End::Complete => Ok(()),
            End::Failed(err) | End::Truncated(err) => Err(err),
        }
    }
}

/// A stream of items, each a JSON value on a line of its own. Dropped before its end, it closes its connection, and Kubo gives the call up.
pub struct Lines<T> {
    source: Source,
    // Values of T are made, never held.
    item: PhantomData<fn() -> T>,
}

enum Source {
    Open(Box<Open>),
    Ended(End),
}

struct Open {
    body: Body,
    /// The line under way.
    part: BytesMut,
    /// Lines that came whole with one frame.
    lines: VecDeque<BytesMut>,
    failure: Option<Error>,
}

impl<T> fmt::Debug for Lines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Open(open) => f.debug_struct("Lines").field("call", &open.body.call).finish_non_exhaustive(),
            Source::Ended(end) => f.debug_tuple("Lines").field(end).finish(),
        }
    }
}

impl<T: DeserializeOwned> Lines<T> {
    pub(crate) fn new(body: Body) -> Lines<T> {
        let open = Open { body, part: BytesMut::new(), lines: VecDeque::new(), failure: None };
        Lines { source: Source::Open(Box::new(open)), item: PhantomData }
    }

    /// The next item, or how the stream ended. Cancel safe: dropped while it waits, it loses nothing.
    pub async fn next(&mut self) -> Step<T> {
        let open = match &mut self.source {
            Source::Open(open) => open,
            Source::Ended(end) => return Step::End(end.clone()),
        };
        let end = match open.line().await {
            Ok(Some(line)) => match item(&open.body, &line) {
                Ok(item) => return Step::Item(item),
                Err(err) if err.class() == Class::Failed => End::Failed(err),
                Err(err) => End::Truncated(err),
            },
            Ok(None) => open.failure.take().map_or(End::Complete, End::Failed),
            // A failure that was told before the cut is what is known best.
            Err(err) => open.failure.take().map_or(End::Truncated(err), End::Failed),
        };
        self.source = Source::Ended(end.clone());
        Step::End(end)
    }

    /// Ends the stream from outside, as truncated: the caller knows that it leads nowhere. Its connection closes.
    pub(crate) fn give_up(&mut self, class: Class, message: impl AsRef<str>) -> End {
        if let Source::Open(open) = &self.source {
            let err = open.body.error(class, message);
            self.source = Source::Ended(End::Truncated(err));
        }
        match &self.source {
            Source::Ended(end) => end.clone(),
            Source::Open(_) => unreachable!("it was ended just now"),
        }
    }
}

impl Open {
    /// The next line, without its newline; `None` at the end of a body whose last line is whole.
    async fn line(&mut self) -> Result<Option<BytesMut>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            match self.body.part().await? {
                Part::Data(data) => {
                    for piece in data.split_inclusive(|byte| *byte == b'\n') {
                        if self.part.len() + piece.len() > self.body.line_bytes_max() {
                            let max = self.body.line_bytes_max();
                            return Err(self.body.error(Class::Protocol, format!("a line is longer than {max} bytes")));
                        }
                        self.part.extend_from_slice(piece);
                        if piece.ends_with(b"\n") {
                            self.part.truncate(self.part.len() - 1);
                            let line = self.part.split();
                            if !line.iter().all(u8::is_ascii_whitespace) {
                                self.lines.push_back(line);
                            }
                        }
                    }
                }
                Part::Trailers(trailers) => {
                    if let Some(err) = self.body.failure(&trailers) {
                        self.failure = Some(err);
                    }
                }
                Part::End if self.part.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                // Kubo ends every line, so HTTP's end came too early: a proxy made one of a cut.
                Part::End => return Err(self.body.error(Class::Truncated, "its last line is not whole")),
            }
        }
    }
}

fn item<T: DeserializeOwned>(body: &Body, line: &[u8]) -> Result<T> {
    /// Kubo before 0.5 told an error after the first item as an item.
    #[derive(serde::Deserialize)]
    struct Told {
        #[serde(rename = "Message")]
        message: String,
        #[serde(rename = "Type")]
        kind: String,
    }
    match serde_json::from_slice::<T>(line) {
        Ok(item) => Ok(item),
        Err(why) => match serde_json::from_slice::<Told>(line) {
            Ok(told) if told.kind == "error" => Err(body.error(Class::Failed, told.message)),
            _ => {
                let shown = String::from_utf8_lossy(line.get(..80).unwrap_or(line));
                Err(body.error(Class::Protocol, format!("'{shown}' is not what the call answers with ({why})")))
            }
        },
    }
}
