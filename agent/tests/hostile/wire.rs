//! HTTP/2 by hand: what a library would never send.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use basalt_proto::v1::HandshakeRequest;
use prost::Message;

use crate::sandbox::DEADLINE;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A window before anybody has changed it.
const CONNECTION_WINDOW: i64 = 65_535;

pub const SETTING_INITIAL_WINDOW_SIZE: u16 = 4;

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub fn setting(name: u16, value: u32) -> Vec<u8> {
    [&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat()
}

fn text(text: &[u8], out: &mut Vec<u8>) {
    let mut len = text.len();
    if len < 127 {
        out.push(len as u8);
    } else {
        out.push(127);
        len -= 127;
        while len >= 128 {
            out.push(len as u8 | 128);
            len >>= 7;
        }
        out.push(len as u8);
    }
    out.extend(text);
}

/// A header in HPACK, neither indexed nor compressed.
pub fn header(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.push(0);
    text(name.as_bytes(), out);
    text(value, out);
}

/// The headers of a gRPC call.
pub fn call_headers(path: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        header(name, value.as_bytes(), &mut out);
    }
    out
}

/// A message with gRPC's prefix.
pub fn message(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend(bytes);
    out
}

/// A connection by hand.
pub struct Wire {
    pub socket: UnixStream,
    next: u32,
    /// What the node's windows have room for; 0 is the connection's.
    room: BTreeMap<u32, i64>,
    stream_window: i64,
}

impl Wire {
    /// Connected, nothing said.
    pub fn dial(path: &Path) -> Wire {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        // A node that does not read must not hang the test.
        socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        Wire { socket, next: 1, room: BTreeMap::new(), stream_window: CONNECTION_WINDOW }
    }

    /// HTTP/2 begun with these settings.
    pub fn open(path: &Path, settings: &[u8]) -> Wire {
        let mut wire = Wire::dial(path);
        wire.send(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).unwrap();
        wire
    }

    /// Hands shaken, as any client of the data socket does.
    pub fn greeted(path: &Path, settings: &[u8]) -> Wire {
        let mut wire = Wire::open(path, settings);
        // Room for the answer, whatever window the settings give.
        let request = HandshakeRequest { client: "hostile".into(), ..HandshakeRequest::default() };
        let stream = wire.call("/basalt.v1.Datastore/Handshake", &request.encode_to_vec()).unwrap();
        wire.send(&frame(WINDOW_UPDATE, 0, stream, &65_535u32.to_be_bytes())).unwrap();
        wire.until_answered(stream).unwrap();
        wire
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Begins a call; its stream.
    pub fn begin(&mut self, path: &str, flags: u8) -> io::Result<u32> {
        let stream = self.next;
        self.next += 2;
        self.send(&frame(HEADERS, END_HEADERS | flags, stream, &call_headers(path)))?;
        Ok(stream)
    }

    /// A whole call with one message.
    pub fn call(&mut self, path: &str, bytes: &[u8]) -> io::Result<u32> {
        let stream = self.begin(path, 0)?;
        self.send(&frame(DATA, END_STREAM, stream, &message(bytes)))?;
        Ok(stream)
    }

    /// A part of a call's body, once the node's windows have room for it.
    pub fn data(&mut self, stream: u32, part: &[u8]) -> io::Result<()> {
        let need = part.len() as i64;
        while self.room.get(&0).copied().unwrap_or(CONNECTION_WINDOW) < need
            || self.room.get(&stream).copied().unwrap_or(self.stream_window) < need
        {
            self.frame()?;
        }
        *self.room.entry(0).or_insert(CONNECTION_WINDOW) -= need;
        *self.room.entry(stream).or_insert(self.stream_window) -= need;
        self.send(&frame(DATA, 0, stream, part))
    }

    /// The next frame: kind, flags, stream, payload.
    pub fn frame(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.socket.read_exact(&mut head)?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; len];
        self.socket.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if head[3] == WINDOW_UPDATE {
            let more = i64::from(u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]]));
            let window = if stream == 0 { CONNECTION_WINDOW } else { self.stream_window };
            *self.room.entry(stream).or_insert(window) += more;
        }
        if head[3] == RST_STREAM && stream != 0 {
            return Err(io::Error::other(format!("stream {stream} was reset: {payload:?}")));
        }
        if head[3] == SETTINGS && head[4] & ACK == 0 {
            for setting in payload.chunks_exact(6).filter(|setting| setting[..2] == [0, 4]) {
                let window = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
                self.stream_window = i64::from(window);
            }
            // The node's windows hold once they are acknowledged.
            self.send(&frame(SETTINGS, ACK, 0, &[]))?;
        }
        Ok((head[3], head[4], stream, payload))
    }

    pub fn until_answered(&mut self, stream: u32) -> io::Result<()> {
        loop {
            let (kind, flags, of, _) = self.frame()?;
            if of == stream && matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                return Ok(());
            }
        }
    }

    /// Whether the node has closed the connection, once it has; reads and drops what it sends until then.
    pub fn is_closed_within(&mut self, deadline: Duration) -> bool {
        let begin = Instant::now();
        let mut buffer = vec![0; 1 << 16];
        while let Some(left) = deadline.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left)).unwrap();
            match self.socket.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(_) => return true,
            }
        }
        false
    }
}
