package soak

// What is measured, all of it from outside: /proc, the folder, and what an operator is told.

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"basalt.dev/go/internal/kuboload"
)

// Process is what a process has.
type Process struct {
	Pid     int
	RSS     uint64 // bytes; with file pages, which the kernel takes back at will
	Anon    uint64 // bytes; without
	Files   int    // descriptors
	Threads int

	// Of Kubo, at rest only.
	Goroutines int    `json:",omitempty"`
	Heap       uint64 `json:",omitempty"` // bytes that live after a collection
}

// Sample is how one lane is at one moment.
type Sample struct {
	At    float64 // seconds since the run began
	Cycle int
	Rest  bool // after the load, gc and reclaim: the same phase of each cycle

	Agent *Process `json:",omitempty"` // nil: it is not there just now, or Kubo has the node
	Kubo  *Process `json:",omitempty"`
	Node  *Node    `json:",omitempty"` // nil: nobody serves it just now
}

// Node is what the node has.
type Node struct {
	Live      uint64 // bytes of blocks and other keys
	Blocks    uint64
	Allocated uint64 // bytes on disk of its folder, as the file system counts them
	Index     uint64 // of them the indexes'
	Segments  uint64
	Stores    uint64 // shards, and the keyspace
	Dead      uint64 // bytes of deleted blocks that are not given back yet
}

func processOf(pid int) *Process {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || pid == 0 {
		return nil
	}
	p := &Process{Pid: pid}
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		number, _ := strconv.ParseUint(fields[0], 10, 64)
		switch name {
		case "VmRSS":
			p.RSS = number << 10
		case "RssAnon":
			p.Anon = number << 10
		case "Threads":
			p.Threads = int(number)
		}
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil || p.RSS == 0 {
		return nil // it is just ending
	}
	p.Files = len(files)
	return p
}

// nodeOf asks whoever serves the node, and the file system.
func nodeOf(k *kuboload.Kubo) *Node {
	st, err := k.Status()
	if err != nil {
		return nil
	}
	n := &Node{Live: st.DiskUsageBytes, Blocks: st.Blocks, Segments: st.Keyspace.GetSegments(), Stores: uint64(len(st.Shards)) + 1, Dead: st.Keyspace.GetDeadBytes()}
	for _, shard := range st.Shards {
		n.Segments += shard.Segments
		n.Dead += shard.DeadBytes
	}
	_ = filepath.WalkDir(k.Node(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went while we looked
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			n.Allocated += uint64(st.Blocks) * 512
			if filepath.Base(filepath.Dir(path)) == indexFolder {
				n.Index += uint64(st.Blocks) * 512
			}
		}
		return nil
	})
	return n
}

// indexFolder is where a store has its RocksDB.
const indexFolder = "index"

var heapAlloc = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)$`)

// insideOf asks Kubo how much of it is alive, after a collection.
func insideOf(k *kuboload.Kubo, p *Process) error {
	if p == nil {
		return nil
	}
	text, err := k.Debug("pprof/heap?gc=1&debug=1")
	if err != nil {
		return err
	}
	if found := heapAlloc.FindSubmatch(text); found != nil {
		p.Heap, _ = strconv.ParseUint(string(found[1]), 10, 64)
	}
	text, err = k.Debug("pprof/goroutine?debug=1")
	if err != nil {
		return err
	}
	line, _, _ := bufio.NewReader(strings.NewReader(string(text))).ReadLine()
	_, err = fmt.Sscanf(string(line), "goroutine profile: total %d", &p.Goroutines)
	return err
}
