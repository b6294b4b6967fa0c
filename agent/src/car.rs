//! CAR files, version 1 and 2, read with limits and written plainly. Source: the CARv1 and CARv2 specifications of IPLD.
//!
//! A CARv1 is a header (varint length, DAG-CBOR `{roots, version}`) and sections (varint length, CID, bytes). A CARv2 wraps one: an
//! 11-byte pragma, 40 bytes of offsets, the CARv1, and an index that is not needed here. Every error names the byte where it begins.

use std::{
    fmt,
    io::{self, BufRead, Read, Seek, SeekFrom, Write},
};

use crate::cid::{Cid, read_varint, write_varint};

/// Longest header that is read, in bytes (the default of go-car v2).
const HEADER_BYTES_MAX: u64 = 32 << 20;
/// Longest section that is read, in bytes: above every block that a node takes.
const SECTION_BYTES_MAX: u64 = 64 << 20;
/// Bytes of the fixed header that follows a CARv2's pragma.
const V2_HEADER_BYTES: usize = 40;

/// What is wrong with a CAR file, and where.
#[derive(Debug)]
pub struct CarError {
    /// Offset in the file of what can't be read.
    pub offset: u64,
    /// What was found there, and what to do.
    pub what: String,
    /// Whether the file ended too early.
    is_cut: bool,
}

impl CarError {
    fn new(offset: u64, what: impl Into<String>) -> CarError {
        CarError { offset, what: what.into(), is_cut: false }
    }
}

impl fmt::Display for CarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.offset, self.what)
    }
}

impl std::error::Error for CarError {}

/// One block of a CAR file, not yet verified.
#[derive(Debug)]
pub struct Section {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its CID.
    pub cid: Cid,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// Reads a CAR file section by section. Never needs more memory than one section.
#[derive(Debug)]
pub struct CarReader<R> {
    input: R,
    /// Offset in the file of what is read next.
    position: u64,
    /// Where the sections end; `None`: at the end of the file.
    end: Option<u64>,
    roots: Vec<Cid>,
    version: u64,
}

impl<R: BufRead> CarReader<R> {
    /// Reads the header, and that of the CARv1 within a CARv2.
    pub fn open(input: R) -> Result<CarReader<R>, CarError> {
        let mut reader = CarReader { input, position: 0, end: None, roots: Vec::new(), version: 1 };
        let (version, roots) = reader.header()?;
        reader.version = version;
        match version {
            1 => reader.roots = roots,
            2 => reader.enter_v2()?,
            other => {
                return Err(CarError::new(0, format!("CAR version {other} is not known; 1 and 2 are")));
            }
        }
        Ok(reader)
    }

    /// Its roots; may be none.
    pub fn roots(&self) -> &[Cid] {
        &self.roots
    }

    /// 1 or 2.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Offset in the file after what was read: a place to resume at.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next section; `None` at the end.
    pub fn next_section(&mut self) -> Result<Option<Section>, CarError> {
        let offset = self.position;
        if self.end.is_some_and(|end| offset >= end) {
            return match self.end {
                Some(end) if offset > end => {
                    Err(CarError::new(end, "the last block reaches beyond the data size that the CARv2 header gives"))
                }
                _ => Ok(None),
            };
        }
        let Some(len) = self.length(offset, "block")? else {
            return match self.end {
                None => Ok(None),
                Some(end) => Err(cut(offset, format!("the CARv2 header promises blocks up to byte {end}"))),
            };
        };
        if len == 0 {
            let what = "a section of length 0 (zero padding?): remove the padding, or the file is damaged from here on";
            return Err(CarError::new(offset, what));
        }
        if len > SECTION_BYTES_MAX {
            let what =
                format!("a section of {len} bytes is above the limit of {SECTION_BYTES_MAX}: the file is damaged here");
            return Err(CarError::new(offset, what));
        }
        let mut data = self.take(len, offset, "block")?;
        let (cid, cid_len) = Cid::read(&data).map_err(|why| CarError::new(offset, format!("no CID: {why}")))?;
        data.drain(..cid_len);
        Ok(Some(Section { offset, cid, data }))
    }

    /// Reads a header: its version and roots.
    fn header(&mut self) -> Result<(u64, Vec<Cid>), CarError> {
        let offset = self.position;
        let no_car = |why: String| CarError::new(offset, format!("not a CAR header: {why}"));
        let len = self.length(offset, "header")?.ok_or_else(|| no_car("the file is empty".into()))?;
        if len == 0 || len > HEADER_BYTES_MAX {
            return Err(no_car(format!("its length would be {len} bytes")));
        }
        let bytes = self.take(len, offset, "header").map_err(|err| match err.is_cut {
            true => no_car(format!("the file ends at byte {}, within what would be the header", err.offset)),
            false => err,
        })?;
        parse_header(&bytes).map_err(no_car)
    }

    /// Goes on to the CARv1 within a CARv2.
    fn enter_v2(&mut self) -> Result<(), CarError> {
        let offset = self.position;
        let fixed = self.take(V2_HEADER_BYTES as u64, offset, "CARv2 header")?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&fixed[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let (data_offset, data_size) = (word(16), word(24));
        if data_size == 0 {
            let what = "the CARv2 header gives no data size: the program that wrote it did not finish";
            return Err(CarError::new(offset, what));
        }
        let gap = data_offset.checked_sub(self.position);
        let (Some(gap), Some(end)) = (gap, data_offset.checked_add(data_size)) else {
            return Err(CarError::new(
                offset,
                format!("the CARv2 header gives an impossible data offset {data_offset}"),
            ));
        };
        let skipped = io::copy(&mut self.input.by_ref().take(gap), &mut io::sink())
            .map_err(|err| CarError::new(self.position, err.to_string()))?;
        if skipped < gap {
            return Err(cut(self.position + skipped, format!("the CARv2 header promises data at byte {data_offset}")));
        }
        self.position = data_offset;
        self.end = Some(end);
        let (version, roots) = self.header()?;
        if version != 1 {
            return Err(CarError::new(data_offset, format!("a CARv2 holds a CAR of version {version}")));
        }
        self.roots = roots;
        Ok(())
    }

    /// Reads a varint; `None` where the file ends before it.
    fn length(&mut self, begins: u64, what: &str) -> Result<Option<u64>, CarError> {
        let mut bytes = Vec::with_capacity(9);
        loop {
            let mut byte = [0];
            let read = loop {
                match self.input.read(&mut byte) {
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            match read.map_err(|err| CarError::new(self.position, err.to_string()))? {
                0 if bytes.is_empty() => return Ok(None),
                0 => return Err(cut(self.position, format!("a {what} begins at byte {begins}"))),
                _ => {}
            }
            self.position += 1;
            bytes.push(byte[0]);
            if byte[0] & 0x80 == 0 || bytes.len() == 9 {
                let value = read_varint(&bytes).ok_or_else(|| {
                    CarError::new(begins, format!("the length of a {what} is no varint: the file is damaged here"))
                })?;
                return Ok(Some(value.0));
            }
        }
    }

    /// Reads `len` bytes. Grows with what is there, so a false length costs no memory.
    fn take(&mut self, len: u64, begins: u64, what: &str) -> Result<Vec<u8>, CarError> {
        let mut bytes = Vec::with_capacity(len.min(1 << 20) as usize);
        self.input
            .by_ref()
            .take(len)
            .read_to_end(&mut bytes)
            .map_err(|err| CarError::new(self.position, err.to_string()))?;
        self.position += bytes.len() as u64;
        if (bytes.len() as u64) < len {
            return Err(cut(self.position, format!("a {what} of {len} bytes begins at byte {begins}")));
        }
        Ok(bytes)
    }
}

impl<R: BufRead + Seek> CarReader<R> {
    /// Goes on at `position`, which an earlier reader of the same file gave.
    pub fn resume_at(&mut self, position: u64) -> io::Result<()> {
        self.input.seek(SeekFrom::Start(position))?;
        self.position = position;
        Ok(())
    }
}

fn cut(offset: u64, promise: String) -> CarError {
    CarError {
        offset,
        what: format!("the file ends here, though {promise}: it is cut; get the whole file and run again"),
        is_cut: true,
    }
}

/// Version and roots of a header's DAG-CBOR.
fn parse_header(bytes: &[u8]) -> Result<(u64, Vec<Cid>), String> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let mut version = None;
    let mut roots = Vec::new();
    let fields = decoder.map().map_err(|err| err.to_string())?.ok_or("a map of indefinite length")?;
    for _ in 0..fields {
        match decoder.str().map_err(|err| err.to_string())? {
            "version" => version = Some(decoder.u64().map_err(|err| err.to_string())?),
            "roots" => {
                let count = decoder.array().map_err(|err| err.to_string())?.ok_or("an array of indefinite length")?;
                for _ in 0..count {
                    let tag = decoder.tag().map_err(|err| format!("a root is no CID: {err}"))?;
                    let link = decoder.bytes().map_err(|err| format!("a root is no CID: {err}"))?;
                    match link {
                        [0, cid @ ..] if tag.as_u64() == 42 => roots.push(Cid::parse(cid)?),
                        _ => return Err("a root is no CID".into()),
                    }
                }
            }
            _ => decoder.skip().map_err(|err| err.to_string())?,
        }
    }
    if decoder.position() != bytes.len() {
        return Err("bytes follow its map".into());
    }
    Ok((version.ok_or("it has no version")?, roots))
}

/// Writes a CARv1.
#[derive(Debug)]
pub struct CarWriter<W> {
    output: W,
}

impl<W: Write> CarWriter<W> {
    /// Writes the header.
    pub fn create(mut output: W, roots: &[Cid]) -> io::Result<CarWriter<W>> {
        output.write_all(&header_bytes(roots))?;
        Ok(CarWriter { output })
    }

    /// Goes on with a CAR whose header and first sections are there.
    pub fn append(output: W) -> CarWriter<W> {
        CarWriter { output }
    }

    /// Writes one block.
    pub fn block(&mut self, cid: &Cid, data: &[u8]) -> io::Result<()> {
        let cid = cid.to_bytes();
        let mut head = Vec::with_capacity(9 + cid.len());
        write_varint((cid.len() + data.len()) as u64, &mut head);
        head.extend_from_slice(&cid);
        self.output.write_all(&head)?;
        self.output.write_all(data)
    }

    /// What was written to.
    pub fn into_inner(self) -> W {
        self.output
    }
}

/// The header of a CARv1 with its length in front.
fn header_bytes(roots: &[Cid]) -> Vec<u8> {
    let mut encoder = minicbor::Encoder::new(Vec::new());
    // Writing into a Vec cannot fail; a header cut short would be refused by every reader.
    let _: Result<(), minicbor::encode::Error<std::convert::Infallible>> = (|| {
        encoder.map(2)?.str("roots")?.array(roots.len() as u64)?;
        for root in roots {
            let mut link = vec![0];
            link.extend(root.to_bytes());
            encoder.tag(minicbor::data::Tag::new(42))?.bytes(&link)?;
        }
        encoder.str("version")?.u8(1)?;
        Ok(())
    })();
    let body = encoder.into_writer();
    let mut bytes = Vec::new();
    write_varint(body.len() as u64, &mut bytes);
    bytes.extend(body);
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use basalt_blockstore::Multihash;

    use super::*;

    fn cid(n: u8) -> Cid {
        let mut bytes = vec![0x12, 32];
        bytes.extend([n; 32]);
        Cid::raw(Multihash::parse(&bytes).unwrap())
    }

    fn car(roots: &[Cid], blocks: &[(Cid, Vec<u8>)]) -> Vec<u8> {
        let mut writer = CarWriter::create(Vec::new(), roots).unwrap();
        for (cid, data) in blocks {
            writer.block(cid, data).unwrap();
        }
        writer.into_inner()
    }

    fn blocks() -> Vec<(Cid, Vec<u8>)> {
        vec![(cid(1), vec![7; 300]), (cid(2), Vec::new()), (cid(3), b"end".to_vec())]
    }

    /// Wraps a CARv1 with a gap before it and an index after it.
    fn v2(inner: &[u8], size: u64) -> Vec<u8> {
        let mut bytes = vec![0x0a, 0xa1, 0x67];
        bytes.extend(b"version");
        bytes.push(2);
        bytes.extend([0; 16]);
        bytes.extend(60u64.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend((60 + inner.len() as u64).to_le_bytes());
        bytes.extend([0; 9]);
        bytes.extend(inner);
        bytes.extend(b"an index of some kind");
        bytes
    }

    type Content = (Vec<Cid>, Vec<(Cid, Vec<u8>)>);

    fn read(bytes: &[u8]) -> Result<Content, CarError> {
        let mut reader = CarReader::open(Cursor::new(bytes))?;
        let mut found = Vec::new();
        while let Some(section) = reader.next_section()? {
            found.push((section.cid, section.data));
        }
        Ok((reader.roots().to_vec(), found))
    }

    #[test]
    fn what_is_written_reads_back() {
        for roots in [vec![], vec![cid(1)], vec![cid(1), cid(3)]] {
            assert_eq!(read(&car(&roots, &blocks())).unwrap(), (roots, blocks()));
        }
    }

    #[test]
    fn the_header_is_the_one_of_the_specification() {
        let mut expected = vec![0x11, 0xa2, 0x65];
        expected.extend(b"roots");
        expected.extend([0x80, 0x67]);
        expected.extend(b"version");
        expected.push(1);
        assert_eq!(header_bytes(&[]), expected);
    }

    #[test]
    fn version_2_is_read_without_its_index() {
        let inner = car(&[cid(2)], &blocks());
        assert_eq!(read(&v2(&inner, inner.len() as u64)).unwrap(), (vec![cid(2)], blocks()));
    }

    #[test]
    fn an_unfinished_version_2_is_refused() {
        let err = read(&v2(&car(&[], &blocks()), 0)).unwrap_err();
        assert!(err.what.contains("did not finish"), "{err}");
    }

    #[test]
    fn a_car_that_is_cut_anywhere_is_never_read_as_whole() {
        let whole = car(&[cid(1)], &blocks());
        let mut ends = Vec::new();
        let mut reader = CarReader::open(Cursor::new(&whole)).unwrap();
        ends.push(reader.position());
        while reader.next_section().unwrap().is_some() {
            ends.push(reader.position());
        }
        for len in 0..whole.len() {
            let outcome = read(&whole[..len]);
            assert_eq!(outcome.is_ok(), ends.contains(&(len as u64)), "cut at {len}: {outcome:?}");
        }
        // A CARv2 says how long it is, so no cut goes unnoticed.
        let inner = car(&[cid(1)], &blocks());
        let wrapped = v2(&inner, inner.len() as u64);
        for len in 0..60 + inner.len() {
            assert!(read(&wrapped[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn reading_resumes_at_a_position() {
        let bytes = car(&[], &blocks());
        let mut first = CarReader::open(Cursor::new(&bytes)).unwrap();
        first.next_section().unwrap().unwrap();
        let mut second = CarReader::open(Cursor::new(&bytes)).unwrap();
        second.resume_at(first.position()).unwrap();
        assert_eq!(second.next_section().unwrap().unwrap().cid, cid(2));
    }

    #[test]
    fn a_false_length_is_an_error_and_no_allocation() {
        let mut bytes = car(&[], &[]);
        let at = bytes.len() as u64;
        write_varint(1 << 50, &mut bytes);
        let err = read(&bytes).unwrap_err();
        assert_eq!(err.offset, at);
        assert!(err.what.contains("above the limit"), "{err}");
        let mut padded = car(&[], &blocks());
        padded.extend([0; 64]);
        assert!(read(&padded).unwrap_err().what.contains("padding"));
    }

    #[test]
    fn other_files_are_refused_as_no_car() {
        for bytes in [&b""[..], b"hello world, this is no archive", &[0x01, 0xff], &[0x02, 0xbf, 0xff]] {
            let err = read(bytes).unwrap_err();
            assert!(err.what.contains("not a CAR"), "{err}");
        }
    }
}
