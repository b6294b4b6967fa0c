package nosync

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// The test program is started again as one of these.
func TestMain(m *testing.M) {
	switch os.Getenv("NOSYNC_TEST") {
	case "exec":
		os.Setenv("NOSYNC_TEST", "probe")
		_ = Exec([]string{"/proc/self/exe"})
		os.Exit(99)
	case "probe":
		// No file has this number: a kernel that looks says EBADF.
		if errors.Is(unix.Fdatasync(1<<20), unix.EBADF) || errors.Is(unix.Fsync(1<<20), unix.EBADF) {
			os.Exit(1)
		}
		if _, err := unix.Write(1<<20, []byte("x")); !errors.Is(err, unix.EBADF) {
			os.Exit(2) // more is filtered than should be
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func probe(t *testing.T, how string) int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "NOSYNC_TEST="+how)
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %s", err, out)
	}
	return cmd.ProcessState.ExitCode()
}

func TestFlushesDoNothingAndTheRestIsAsEver(t *testing.T) {
	if code := probe(t, "probe"); code != 1 {
		t.Fatalf("unfiltered the probe ends with %d, want 1: it would not see the difference", code)
	}
	if code := probe(t, "exec"); code != 0 {
		t.Fatalf("filtered the probe ends with %d", code)
	}
}
