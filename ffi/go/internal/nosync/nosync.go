// Package nosync runs a program whose flushes do nothing: the control of a power-cut test. The program stays the very same file; the
// kernel answers its fsync, fdatasync and their kin with success at once, by a seccomp filter.
package nosync

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// architectures maps Go's name to the kernel's, for the filter's first question.
var architectures = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// Filtered are the system calls that do nothing.
var Filtered = []uint32{unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC_FILE_RANGE, unix.SYS_MSYNC, unix.SYS_SYNC, unix.SYS_SYNCFS}

// Exec replaces this process by the program argv[0] and all it starts, without flushes. It returns only an error.
func Exec(argv []string) error {
	arch, known := architectures[runtime.GOARCH]
	if !known {
		return fmt.Errorf("no filter of system calls for %s is written", runtime.GOARCH)
	}
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		give  = unix.BPF_RET | unix.BPF_K
		// struct seccomp_data
		offsetNumber, offsetArch = 0, 4
	)
	n := len(Filtered)
	filter := []unix.SockFilter{
		{Code: load, K: offsetArch},
		{Code: equal, K: arch, Jf: uint8(n + 1)}, // another architecture's numbers: all are let through
		{Code: load, K: offsetNumber},
	}
	for i, number := range Filtered {
		filter = append(filter, unix.SockFilter{Code: equal, K: number, Jt: uint8(n - i)})
	}
	filter = append(filter,
		unix.SockFilter{Code: give, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: give, K: unix.SECCOMP_RET_ERRNO | 0}, // an error number of 0 is success
	)
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}

	// The filter is this thread's, and exec leaves only this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("the filter of system calls: %w", errno)
	}
	return fmt.Errorf("%s: %w", argv[0], syscall.Exec(argv[0], argv, os.Environ()))
}
