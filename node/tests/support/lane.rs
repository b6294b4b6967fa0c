//! A client of the fast lane that sends just what a test tells it to.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use basalt_node::lane::frame::{Asked, HEAD_BYTES, Head, PREFACE};
use basalt_proto::v1;
use prost::Message;

/// See the module's page.
pub struct Lane {
    pub stream: UnixStream,
}

/// An answer as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub number: u64,
    /// 0, or the number of an error.
    pub outcome: u8,
    pub payload: Vec<u8>,
}

impl Lane {
    /// Connected; it has said nothing.
    pub fn connect(socket: &Path) -> Lane {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Lane { stream }
    }

    /// Connected, and it has shaken hands.
    pub fn open(socket: &Path) -> Lane {
        let mut lane = Lane::connect(socket);
        lane.stream.write_all(&PREFACE).unwrap();
        lane.hello(v1::HandshakeRequest { role: "root".into(), client: "lane test".into(), ..Default::default() });
        let answer = lane.receive().unwrap();
        assert_eq!((answer.number, answer.outcome), (u64::MAX, 0), "{answer:?}");
        v1::HandshakeResponse::decode(answer.payload.as_slice()).unwrap();
        lane
    }

    pub fn hello(&mut self, said: v1::HandshakeRequest) {
        self.send(Asked::Hello, 0, u64::MAX, "", &said.encode_to_vec());
    }

    pub fn send(&mut self, asked: Asked, flags: u8, number: u64, key: &str, payload: &[u8]) {
        self.stream.write_all(&frame(asked, flags, number, key, payload)).unwrap();
    }

    /// The next answer; `None` at the lane's end.
    pub fn receive(&mut self) -> Option<Answer> {
        let mut head = [0; HEAD_BYTES];
        self.stream.read_exact(&mut head).ok()?;
        let head = Head::decode(&head);
        let mut payload = vec![0; head.bytes as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some(Answer { number: head.number, outcome: head.what, payload })
    }

    /// Asks, and returns what the answer holds, or the number of its error.
    pub fn ask(&mut self, asked: Asked, key: &str, payload: &[u8]) -> Result<Vec<u8>, u8> {
        self.send(asked, 0, 7, key, payload);
        let answer = self.receive().unwrap();
        assert_eq!(answer.number, 7, "{answer:?}");
        if answer.outcome == 0 { Ok(answer.payload) } else { Err(answer.outcome) }
    }
}

/// A frame as it is sent.
pub fn frame(asked: Asked, flags: u8, number: u64, key: &str, payload: &[u8]) -> Vec<u8> {
    let bytes = (key.len() + payload.len()) as u32;
    let head = Head { bytes, what: asked.number(), flags, key_bytes: key.len() as u16, number };
    [&head.encode()[..], key.as_bytes(), payload].concat()
}

/// An operation of a batch as it is sent: of a put with a value, else of a delete.
pub fn operation(key: &str, value: Option<&[u8]>) -> Vec<u8> {
    let what = if value.is_some() { 1 } else { 2 };
    let value = value.unwrap_or_default();
    let head = [&[what, 0][..], &(key.len() as u16).to_le_bytes(), &(value.len() as u32).to_le_bytes()].concat();
    [&head, key.as_bytes(), value].concat()
}
