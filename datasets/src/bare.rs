//! The bare folder below a mount. Where its dataset isn't mounted, what is written there is hidden by the next mount and fills the wrong dataset.
//!
//! So it is sealed before something is mounted on it: nobody but root may write, and where the file system has the flag (ZFS, ext4, xfs, btrfs), it
//! is immutable, for root too. To remove such a folder: `chattr -i`, then `rmdir`.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

/// Makes the folder if there is none, and sees that nothing can be written into it; `true` where that holds for root too. A folder that holds
/// something is refused: a mount would hide that.
pub fn seal(folder: &Path) -> io::Result<bool> {
    if !folder.is_dir() {
        // What lies above is an ordinary folder that others may use; the last one is only a place.
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    if let Some(entry) = fs::read_dir(folder)?.next() {
        let name = entry?.file_name();
        return Err(io::Error::new(
            ErrorKind::DirectoryNotEmpty,
            format!("it holds '{}', which a mount would hide: move that away first", name.to_string_lossy()),
        ));
    }
    let dir = fs::File::open(folder)?;
    let flags = ioctl_getflags(&dir);
    if matches!(flags, Ok(flags) if flags.contains(IFlags::IMMUTABLE)) {
        return Ok(true);
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o555))?;
    // tmpfs and network file systems have no such flag, and only root may set it: the mode has to do there.
    Ok(flags.is_ok_and(|flags| ioctl_setflags(&dir, flags | IFlags::IMMUTABLE).is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_folder_takes_nothing_and_a_full_one_is_not_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let bare = dir.path().join("shards/00");
        let for_root = seal(&bare).unwrap();
        assert_eq!(seal(&bare).unwrap(), for_root, "again is nothing");
        let is_root = nix::unistd::geteuid().is_root();
        assert_eq!(fs::write(bare.join("x"), "").is_err(), for_root || !is_root);
        if for_root {
            let handle = fs::File::open(&bare).unwrap();
            ioctl_setflags(&handle, ioctl_getflags(&handle).unwrap() - IFlags::IMMUTABLE).unwrap();
        }
        let full = dir.path().join("full");
        fs::create_dir(&full).unwrap();
        fs::write(full.join("thesis.tex"), "").unwrap();
        assert!(seal(&full).unwrap_err().to_string().contains("thesis.tex"));
        assert_eq!(fs::metadata(&full).unwrap().permissions().mode() & 0o200, 0o200);
    }
}
