package measure

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNoDevice says that the file system has no block device whose counters could be read.
var ErrNoDevice = errors.New("the file system lies on no block device of this kernel")

// Device is what a block device has done since the machine started, for all who use it.
type Device struct {
	// Written in bytes; Flushes are requests to put its cache on stable storage.
	Written, Flushes int64
	// Cache says that it has one that a flush empties; without, the kernel sends no flush, and their number says nothing.
	Cache bool
}

// DeviceOf reads the counters of the block device below a folder.
func DeviceOf(folder string) (Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(folder, &st); err != nil {
		return Device{}, err
	}
	return deviceAt(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
}

// DeviceNamed reads those of a device such as "vda": of a pool's, where the file system names none.
func DeviceNamed(name string) (Device, error) { return deviceAt("/sys/class/block/" + name) }

func deviceAt(path string) (Device, error) {
	dir, err := filepath.EvalSymlinks(path)
	if err != nil {
		return Device{}, ErrNoDevice
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir) // flushes are counted for the whole
	}
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Device{}, err
	}
	// Documentation/block/stat.rst: sectors written are field 7, flush requests field 16.
	fields := strings.Fields(string(text))
	if len(fields) < 17 {
		return Device{}, ErrNoDevice
	}
	sectors, err := strconv.ParseInt(fields[6], 10, 64)
	if err != nil {
		return Device{}, err
	}
	flushes, err := strconv.ParseInt(fields[15], 10, 64)
	cache, _ := os.ReadFile(filepath.Join(dir, "queue", "write_cache"))
	return Device{sectors * 512, flushes, strings.TrimSpace(string(cache)) == "write back"}, err
}

// Space is what a folder takes up.
type Space struct {
	// Bytes on disk, in blocks of the file system; Inodes are files and folders.
	Bytes, Inodes int64
}

// SpaceOf walks a folder. A file that goes while it is looked at counts for nothing.
func SpaceOf(folder string) (Space, error) {
	var s Space
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		s.Inodes++
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			s.Bytes += st.Blocks * 512
		}
		return nil
	})
	return s, err
}

// zfsMagic is what statfs says of OpenZFS.
const zfsMagic = 0x2fc12fc1

// Settle has the file system of a folder write out all that is dirty. On ZFS syncfs only commits the intent log; blocks get their places, and files their
// sizes on disk, with the next transaction group.
func Settle(folder string) error {
	f, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(folder, &st); err != nil {
		return err
	}
	if st.Type == zfsMagic {
		if text, err := exec.Command("zpool", "sync").CombinedOutput(); err != nil {
			return fmt.Errorf("zpool sync: %w: %s", err, text)
		}
	}
	return nil
}

// Forget has the page cache let go of a folder's files, which nobody may have mapped. With all, and where we are root, of everything that
// the kernel caches on this machine: names and inodes as well.
func Forget(folder string, all bool) error {
	if err := Settle(folder); err != nil {
		return err
	}
	if all && os.Geteuid() == 0 {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err == nil {
			return nil
		}
	}
	return filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}
