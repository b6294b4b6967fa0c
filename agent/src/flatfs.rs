//! The folder of Kubo's flatfs: one file a block, named by the base32 of its multihash, in sub-folders by part of that name.
//!
//! Reading needs no sharding function: every sub-folder is walked. Writing uses the one that the folder's SHARDING file names, and
//! `next-to-last/2`, Kubo's default, in a new folder. Source: go-ds-flatfs v0.6.1, `shard.go` and `readme.go`.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use basalt_blockstore::Multihash;

use crate::exit::{Failure, Outcome};

/// Name of the file that says how a flatfs is sharded.
const SHARDING: &str = "SHARDING";
/// What Kubo's default is, and what a new export gets.
const SHARDING_DEFAULT: &str = "/repo/flatfs/shard/v1/next-to-last/2";
/// Ending of a block's file.
const EXTENSION: &str = ".data";

/// How flatfs finds the sub-folder of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharding {
    Prefix(usize),
    Suffix(usize),
    NextToLast(usize),
}

/// Longest SHARDING file that is read, in bytes.
const SHARDING_BYTES_MAX: u64 = 4096;
/// Largest block that is read from a file: above every block that a node takes by default, and below what would fill the memory.
pub const BLOCK_BYTES_MAX: u64 = 64 << 20;

fn read_sharding(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(SHARDING_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

impl BlockFile {
    /// Its bytes. A file that is larger than a block can be is an error, found before it is read.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let file = File::open(&self.path)?;
        let len = file.metadata()?.len();
        if len > BLOCK_BYTES_MAX {
            let what = format!(
                "its {len} bytes are more than the {BLOCK_BYTES_MAX} that a block can have: it is none, move it away"
            );
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        file.take(BLOCK_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Sharding {
    pub(crate) fn parse(text: &str) -> Option<Sharding> {
        let (function, width) = text.trim().strip_prefix("/repo/flatfs/shard/v1/")?.split_once('/')?;
        let width = width.parse().ok().filter(|width| (1..=32).contains(width))?;
        match function {
            "prefix" => Some(Sharding::Prefix(width)),
            "suffix" => Some(Sharding::Suffix(width)),
            "next-to-last" => Some(Sharding::NextToLast(width)),
            _ => None,
        }
    }

    /// The sub-folder of a key; flatfs pads short keys with underscores.
    pub(crate) fn folder(self, key: &str) -> String {
        let padded = |width: usize| format!("{}{key}", "_".repeat(width));
        match self {
            Sharding::Prefix(width) => format!("{key}{}", "_".repeat(width)).chars().take(width).collect(),
            Sharding::Suffix(width) => padded(width).chars().skip(key.chars().count()).collect(),
            Sharding::NextToLast(width) => padded(width + 1).chars().skip(key.chars().count()).take(width).collect(),
        }
    }
}

/// One file of a flatfs.
#[derive(Debug)]
pub struct BlockFile {
    /// Where it is.
    pub path: PathBuf,
    /// The multihash that its name says.
    pub multihash: Multihash,
}

/// Reads a flatfs folder; changes nothing in it.
#[derive(Debug)]
pub struct FlatfsReader {
    root: PathBuf,
    folders: Vec<String>,
}

impl FlatfsReader {
    /// Opens the folder `dir`, or the `blocks` folder of the Kubo repo `dir`.
    pub fn open(dir: &Path) -> Outcome<FlatfsReader> {
        let root = [dir.to_path_buf(), dir.join("blocks")].into_iter().find(|root| root.join(SHARDING).is_file());
        let Some(root) = root else {
            let why = if dir.is_dir() { "it has no SHARDING file" } else { "there is no such folder" };
            return Err(Failure::absent(format!(
                "{} is not a flatfs folder: {why}. Name the folder `blocks` of a Kubo repo whose blocks are in flatfs",
                dir.display()
            )));
        };
        let path = root.join(SHARDING);
        let text = read_sharding(&path).map_err(|err| Failure::io(format!("read {}", path.display()), err))?;
        if Sharding::parse(&text).is_none() {
            return Err(Failure::new(format!(
                "{} says '{}', which is no sharding of flatfs v1: this is not a flatfs folder, or a newer one",
                path.display(),
                text.trim()
            )));
        }
        let mut folders = Vec::new();
        for entry in read_dir(&root)? {
            let name = entry.file_name();
            // `.temp` holds what flatfs has not committed.
            if let Some(name) = name.to_str().filter(|name| !name.starts_with('.'))
                && entry.path().is_dir()
            {
                folders.push(name.to_string());
            }
        }
        folders.sort();
        Ok(FlatfsReader { root, folders })
    }

    /// Its sub-folders in order.
    pub fn folders(&self) -> &[String] {
        &self.folders
    }

    /// The folder with the SHARDING file.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The blocks of a sub-folder in order of their names, and the files that are none.
    pub fn blocks(&self, folder: &str) -> Outcome<(Vec<BlockFile>, Vec<PathBuf>)> {
        let (mut blocks, mut strangers) = (Vec::new(), Vec::new());
        for entry in read_dir(&self.root.join(folder))? {
            let path = entry.path();
            let name = entry.file_name();
            let multihash = name
                .to_str()
                .and_then(|name| name.strip_suffix(EXTENSION))
                .and_then(|key| Multihash::parse_base32(key).ok());
            match multihash {
                Some(multihash) => blocks.push(BlockFile { path, multihash }),
                None => strangers.push(path),
            }
        }
        blocks.sort_by(|a, b| a.path.cmp(&b.path));
        strangers.sort();
        Ok((blocks, strangers))
    }
}

fn read_dir(dir: &Path) -> Outcome<Vec<fs::DirEntry>> {
    let failed = |err| Failure::io(format!("read the folder {}", dir.display()), err);
    fs::read_dir(dir).map_err(failed)?.map(|entry| entry.map_err(failed)).collect()
}

/// Writes blocks into a flatfs folder. A file has its name only once it is whole; [`FlatfsWriter::sync`] makes all of them durable.
#[derive(Debug)]
pub struct FlatfsWriter {
    root: PathBuf,
    sharding: Sharding,
}

impl FlatfsWriter {
    /// Opens a flatfs folder, or makes one where there is none or an empty one.
    pub fn open(dir: &Path) -> Outcome<FlatfsWriter> {
        let failed = |err| Failure::io(format!("make the flatfs folder {}", dir.display()), err);
        fs::create_dir_all(dir).map_err(failed)?;
        let path = dir.join(SHARDING);
        let text = match read_sharding(&path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                if fs::read_dir(dir).map_err(failed)?.next().is_some() {
                    return Err(Failure::new(format!(
                        "{} is neither empty nor a flatfs folder (no SHARDING file): nothing was written; name a new folder",
                        dir.display()
                    )));
                }
                write_whole(&path, format!("{SHARDING_DEFAULT}\n").as_bytes()).map_err(failed)?;
                SHARDING_DEFAULT.into()
            }
            Err(err) => return Err(failed(err)),
        };
        let Some(sharding) = Sharding::parse(&text) else {
            return Err(Failure::new(format!(
                "{} says '{}', which is no sharding of flatfs v1: nothing was written; name a new folder",
                path.display(),
                text.trim()
            )));
        };
        Ok(FlatfsWriter { root: dir.to_path_buf(), sharding })
    }

    /// The bytes of a block that is there already, where they have that size.
    pub fn existing(&self, multihash: &Multihash, size: u64) -> io::Result<Option<Vec<u8>>> {
        let mut file = match File::open(self.path(multihash)) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if file.metadata()?.len() != size {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Writes a block, whole or not at all.
    pub fn write(&self, multihash: &Multihash, data: &[u8]) -> io::Result<()> {
        let path = self.path(multihash);
        match write_whole(&path, data) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                if let Some(folder) = path.parent() {
                    fs::create_dir_all(folder)?;
                }
                write_whole(&path, data)
            }
            other => other,
        }
    }

    /// Makes everything written so far durable: one flush of the file system instead of one a file.
    pub fn sync(&self) -> io::Result<()> {
        nix::unistd::syncfs(File::open(&self.root)?).map_err(io::Error::from)
    }

    fn path(&self, multihash: &Multihash) -> PathBuf {
        let key = multihash.to_base32();
        self.root.join(self.sharding.folder(&key)).join(format!("{key}{EXTENSION}"))
    }
}

/// Writes a file under another name and renames it.
fn write_whole(path: &Path, data: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("writing");
    let mut file = File::create(&temporary)?;
    file.write_all(data)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn multihash(n: u8) -> Multihash {
        let mut bytes = vec![0x12, 32];
        bytes.extend([n; 32]);
        Multihash::parse(&bytes).unwrap()
    }

    #[test]
    fn sub_folders_are_those_of_flatfs() {
        let key = "CIQA4XPYKWLKG7HVLNMLLSBOKTJVR3BXCFPG5WNFZAS5Q3WZ2CTWDOQ";
        let folder = |text: &str| Sharding::parse(text).unwrap().folder(key);
        assert_eq!(folder(SHARDING_DEFAULT), "DO");
        assert_eq!(folder("/repo/flatfs/shard/v1/next-to-last/3\n"), "WDO");
        assert_eq!(folder("/repo/flatfs/shard/v1/prefix/4"), "CIQA");
        assert_eq!(folder("/repo/flatfs/shard/v1/suffix/2"), "OQ");
        assert_eq!(Sharding::NextToLast(2).folder("A"), "__");
        assert_eq!(Sharding::Suffix(3).folder("AB"), "_AB");
        assert_eq!(Sharding::Prefix(3).folder("AB"), "AB_");
        for bad in ["", "next-to-last/2", "/repo/flatfs/shard/v2/prefix/2", "/repo/flatfs/shard/v1/prefix/0"] {
            assert_eq!(Sharding::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("blocks");
        let writer = FlatfsWriter::open(&root).unwrap();
        for n in 0..20 {
            writer.write(&multihash(n), &[n; 100]).unwrap();
        }
        writer.sync().unwrap();
        assert_eq!(writer.existing(&multihash(3), 100).unwrap(), Some(vec![3; 100]));
        assert_eq!(writer.existing(&multihash(3), 99).unwrap(), None);
        assert_eq!(writer.existing(&multihash(30), 100).unwrap(), None);

        fs::write(root.join("diskUsage.cache"), "{}").unwrap();
        // A repo is as good as its folder of blocks.
        for dir in [dir.path(), &root] {
            let reader = FlatfsReader::open(dir).unwrap();
            let mut found = Vec::new();
            for folder in reader.folders() {
                let (blocks, strangers) = reader.blocks(folder).unwrap();
                assert!(strangers.is_empty());
                found.extend(blocks.into_iter().map(|block| (block.multihash, fs::read(block.path).unwrap())));
            }
            found.sort();
            let all: Vec<_> = (0..20).map(|n| (multihash(n), vec![n; 100])).collect();
            assert_eq!(found, all);
        }
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("letter.txt"), "dear").unwrap();
        assert!(FlatfsReader::open(dir.path()).unwrap_err().message.contains("no SHARDING file"));
        assert!(FlatfsWriter::open(dir.path()).unwrap_err().message.contains("neither empty nor a flatfs"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(dir.path().join(SHARDING), "/repo/flatfs/shard/v9/moon/2").unwrap();
        assert!(FlatfsReader::open(dir.path()).unwrap_err().message.contains("v9/moon"));
        assert!(FlatfsWriter::open(dir.path()).unwrap_err().message.contains("v9/moon"));
    }
}
