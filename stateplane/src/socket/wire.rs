//! What goes over the socket.

use minicbor::{Decode, Encode, bytes::ByteVec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::FRAME_BYTES_MAX;
use crate::{
    Change, Class, Cursor, Error, Expiry, Generation, Peer, Pin, Placement, Registration, Result,
    codec::{self, Key, KeyReader, StoredRegistration},
};

/// What is asked.
#[derive(Debug, Encode, Decode)]
pub(super) enum Request {
    #[n(0)]
    Standing,
    #[n(1)]
    Apply(#[n(0)] Vec<ByteVec>),
    #[n(2)]
    ApplyIf(#[n(0)] Option<i64>, #[n(1)] ByteVec),
    #[n(3)]
    Pin(#[n(0)] ByteVec),
    #[n(4)]
    Key,
    #[n(5)]
    Placement(#[n(0)] ByteVec, #[n(1)] String),
    #[n(6)]
    List(#[n(0)] List, #[n(1)] Option<ByteVec>, #[n(2)] u64),
    #[n(7)]
    CloseSlot(#[n(0)] u64, #[n(1)] u16),
    #[n(8)]
    ClosedSlot(#[n(0)] u16),
    #[n(9)]
    Register(#[n(0)] String, #[n(1)] ByteVec),
    #[n(10)]
    StrikeOff(#[n(0)] String, #[n(1)] i64),
    #[n(11)]
    Claim(#[n(0)] String, #[n(1)] ByteVec),
    #[n(12)]
    Finish(#[n(0)] String, #[n(1)] ByteVec, #[n(2)] String),
    #[n(13)]
    Tell(#[n(0)] String),
}

/// Which list.
#[derive(Debug, Encode, Decode)]
pub(super) enum List {
    #[n(0)]
    Pins,
    #[n(1)]
    PinsOf(#[n(0)] ByteVec),
    #[n(2)]
    PinsOfOwner(#[n(0)] String),
    #[n(3)]
    PinsWithTag(#[n(0)] String, #[n(1)] String),
    #[n(4)]
    Placements(#[n(0)] ByteVec),
    #[n(5)]
    PlacementsOfPeer(#[n(0)] String, #[n(1)] Option<u16>),
    #[n(6)]
    Expiries(#[n(0)] u64, #[n(1)] u16),
    #[n(7)]
    Registrations,
    #[n(8)]
    Peers,
}

/// What is answered.
#[derive(Debug, Encode, Decode)]
pub(super) enum Answer {
    #[n(0)]
    Done,
    #[n(1)]
    Failed(#[n(0)] u8, #[n(1)] String, #[n(2)] String),
    #[n(2)]
    Record(#[n(0)] Option<ByteVec>),
    #[n(3)]
    Page(#[n(0)] Vec<ByteVec>, #[n(1)] Option<ByteVec>),
    /// A conditional change that was made.
    #[n(9)]
    Applied,
    /// One that was not, and what the pin is.
    #[n(4)]
    Differs(#[n(0)] Option<ByteVec>),
    #[n(5)]
    Slot(#[n(0)] Option<u64>),
    /// `None`: ours.
    #[n(6)]
    Taken(#[n(0)] Option<(ByteVec, Option<String>)>),
    #[n(7)]
    Noted(#[n(0)] bool),
    #[n(8)]
    Text(#[n(0)] String),
}

const CLASSES: [Class; 7] =
    [Class::Unavailable, Class::Timeout, Class::Denied, Class::Schema, Class::Argument, Class::Config, Class::Corrupt];

impl Answer {
    pub(super) fn failed(err: &Error) -> Answer {
        let class = CLASSES.iter().position(|class| *class == err.class()).unwrap_or(0) as u8;
        let (tried, why) = err.parts();
        Answer::Failed(class, tried.to_owned(), why.to_owned())
    }

    /// The error, if it is one.
    pub(super) fn done(self) -> Result<Answer> {
        match self {
            Answer::Failed(class, tried, why) => {
                let class = CLASSES.get(usize::from(class)).copied().unwrap_or(Class::Unavailable);
                Err(Error::new(tried, class, why))
            }
            other => Ok(other),
        }
    }
}

/// A record that travels.
pub(super) trait Item: Sized {
    fn encode(&self) -> ByteVec;
    fn decode(bytes: &[u8]) -> Result<Self>;
}

pub(super) fn broken(why: impl std::fmt::Display) -> Error {
    Error::new("use the agent's ledger", Class::Corrupt, format!("what came over its socket can't be read: {why}"))
}

impl Item for Pin {
    fn encode(&self) -> ByteVec {
        Change::Put(self.clone()).to_bytes().into()
    }

    fn decode(bytes: &[u8]) -> Result<Pin> {
        match Change::from_bytes(bytes)? {
            Change::Put(pin) => Ok(pin),
            _ => Err(broken("it is no pin")),
        }
    }
}

impl Item for Placement {
    fn encode(&self) -> ByteVec {
        codec::placement_to_bytes(self).into()
    }

    fn decode(bytes: &[u8]) -> Result<Placement> {
        codec::placement_from_bytes(bytes).map_err(|err| broken(err.0))
    }
}

impl Item for Expiry {
    fn encode(&self) -> ByteVec {
        Key(Vec::new()).u64(self.expires).u64(self.generation.get().unsigned_abs()).pin(&self.key).0.into()
    }

    fn decode(bytes: &[u8]) -> Result<Expiry> {
        let read = || {
            let mut rest = KeyReader(bytes);
            let (expires, number) = (rest.u64()?, rest.u64()?);
            let generation = i64::try_from(number).ok().and_then(Generation::new);
            let generation = generation.ok_or_else(|| codec::Malformed("no generation".to_owned()))?;
            Ok::<_, codec::Malformed>(Expiry { expires, key: rest.pin()?, generation })
        };
        read().map_err(|err| broken(err.0))
    }
}

impl Item for Peer {
    fn encode(&self) -> ByteVec {
        self.as_str().as_bytes().to_vec().into()
    }

    fn decode(bytes: &[u8]) -> Result<Peer> {
        str::from_utf8(bytes).map_err(broken)?.parse().map_err(broken)
    }
}

impl Item for Registration {
    fn encode(&self) -> ByteVec {
        Key(Vec::new())
            .part(self.peer.as_str().as_bytes())
            .0
            .into_iter()
            .chain(self.to_bytes())
            .collect::<Vec<_>>()
            .into()
    }

    fn decode(bytes: &[u8]) -> Result<Registration> {
        let read = || {
            let mut rest = KeyReader(bytes);
            let peer = rest.text()?.parse()?;
            codec::from_bytes::<StoredRegistration>(rest.0)?.registration(peer)
        };
        read().map_err(|err| broken(err.0))?.ok_or_else(|| broken("it is no registration"))
    }
}

pub(super) fn cursor(bytes: ByteVec) -> Cursor {
    Cursor(bytes.into())
}

/// Writes a frame.
pub(super) async fn write<T: Encode<()>>(stream: &mut (impl AsyncWriteExt + Unpin), value: &T) -> std::io::Result<()> {
    let mut frame = vec![0; 4];
    minicbor::encode(value, &mut frame).map_err(std::io::Error::other)?;
    let length = u32::try_from(frame.len() - 4).ok().filter(|length| *length <= FRAME_BYTES_MAX);
    let length = length.ok_or_else(|| std::io::Error::other("a frame is too long; ask for less at a time"))?;
    frame.splice(..4, length.to_be_bytes());
    stream.write_all(&frame).await
}

/// Reads a frame; `None`: the other side has gone.
pub(super) async fn read<T: for<'b> Decode<'b, ()>>(
    stream: &mut (impl AsyncReadExt + Unpin),
) -> std::io::Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(err) if err.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(err) => return Err(err),
    }
    let length = u32::from_be_bytes(length);
    if length > FRAME_BYTES_MAX {
        return Err(std::io::Error::other(format!("a frame of {length} bytes; at most {FRAME_BYTES_MAX} are taken")));
    }
    // It grows with what comes, not with what was said.
    let mut frame = Vec::new();
    let got = stream.take(u64::from(length)).read_to_end(&mut frame).await?;
    if got < length as usize {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    minicbor::decode(&frame).map(Some).map_err(std::io::Error::other)
}
