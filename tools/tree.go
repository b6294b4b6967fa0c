// Makes a directory tree that looks like what people keep, the same bytes on every machine, and compares it with what a gateway serves.
//
//	tree make DIR FILES MIB        writes the tree unless DIR holds just that one
//	tree compare DIR URL           reads every file below URL and compares it byte by byte; prints files, bytes and seconds
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const layout = 1 // raise it when the same arguments make another tree

func main() {
	err := errors.New("usage: tree make DIR FILES MIB | tree compare DIR URL")
	switch {
	case len(os.Args) == 5 && os.Args[1] == "make":
		files, filesErr := strconv.Atoi(os.Args[3])
		mib, mibErr := strconv.Atoi(os.Args[4])
		if err = errors.Join(filesErr, mibErr); err == nil && (files < 20 || mib < 1) {
			err = errors.New("at least 20 files and 1 MiB")
		}
		if err == nil {
			err = makeTree(os.Args[2], files, int64(mib)<<20)
		}
	case len(os.Args) == 4 && os.Args[1] == "compare":
		err = compare(os.Args[2], os.Args[3])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tree:", err)
		os.Exit(1)
	}
}

// Names that have tripped URL, shell or UTF-8 handling somewhere; their files are ordinary.
var oddNames = []string{"a b.txt", "100%.txt", "what?.txt", "#1.txt", "größe.txt", "写真.bin", "plus+and&.txt", "-dash", "empty"}

var words = strings.Fields(`the a node holds blocks of many files and each block has one key which is its digest so nobody can change it
without being seen while segments fill up in order until they are sealed then an index finds what a reader wants on first try`)

func makeTree(dir string, files int, total int64) error {
	marker := dir + ".made"
	want := fmt.Sprintf("%d %d %d\n", layout, files, total)
	if have, err := os.ReadFile(marker); err == nil && string(have) == want {
		return nil
	}
	if err := errors.Join(os.RemoveAll(marker), os.RemoveAll(dir)); err != nil {
		return err
	}

	random := rand.New(rand.NewPCG(layout, uint64(files)))
	large := files/100 + 1
	left := total
	for i := range files {
		name := fmt.Sprintf("%c%02d/%02d/file-%05d.%s", 'a'+rune(i%7), i%13, i%5, i, []string{"bin", "txt"}[i%2])
		var size int64
		switch {
		case i < len(oddNames):
			name, size = oddNames[i], random.Int64N(5000)
			if name == "empty" {
				size = 0
			}
		case i >= files-large: // a few large files take what the many small ones leave
			size = left / int64(files-i)
		case random.IntN(4) > 0:
			size = random.Int64N(32 << 10)
		default:
			size = random.Int64N(256 << 10)
		}
		if i < files-large {
			size = min(size, total/int64(2*files)*4)
		}
		size = min(size, left)
		left -= size
		if err := writeFile(filepath.Join(dir, name), size, i%2 == 1, random); err != nil {
			return err
		}
	}
	return os.WriteFile(marker, []byte(want), 0o644)
}

func writeFile(path string, size int64, text bool, random *rand.Rand) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	seed := [32]byte{}
	for i := range seed {
		seed[i] = byte(random.Uint32())
	}
	source := io.Reader(rand.NewChaCha8(seed))
	if text {
		source = &prose{random: rand.New(rand.NewChaCha8(seed))}
	}
	if _, err := io.CopyN(w, source, size); err != nil {
		return err
	}
	return errors.Join(w.Flush(), f.Close())
}

// prose is an endless text.
type prose struct {
	random *rand.Rand
	rest   []byte
}

func (p *prose) Read(to []byte) (int, error) {
	for len(p.rest) < len(to) {
		p.rest = append(p.rest, words[p.random.IntN(len(words))]...)
		p.rest = append(p.rest, " \n"[p.random.IntN(16)/15])
	}
	n := copy(to, p.rest)
	p.rest = append(p.rest[:0], p.rest[n:]...)
	return n, nil
}

func compare(dir, base string) error {
	var paths []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return fmt.Errorf("%s holds no file to compare", dir)
	}
	began := time.Now()
	queue := make(chan string)
	var (
		wait  sync.WaitGroup
		lock  sync.Mutex
		total int64
		first error
	)
	for range 8 {
		wait.Go(func() {
			for path := range queue {
				n, err := compareFile(dir, path, base)
				lock.Lock()
				total += n
				if first == nil {
					first = err
				}
				lock.Unlock()
			}
		})
	}
	for _, path := range paths {
		queue <- path
	}
	close(queue)
	wait.Wait()
	if first != nil {
		return first
	}
	fmt.Printf("%d %d %.3f\n", len(paths), total, time.Since(began).Seconds())
	return nil
}

var client = &http.Client{
	Timeout:   2 * time.Minute,
	Transport: &http.Transport{MaxIdleConnsPerHost: 8}, // and no proxy: the gateway is on this machine
}

func compareFile(dir, path, base string) (int64, error) {
	relative, err := filepath.Rel(dir, path)
	if err != nil {
		return 0, err
	}
	parts := strings.Split(filepath.ToSlash(relative), "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	address := base + "/" + strings.Join(parts, "/")
	local, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer local.Close()
	answer, err := client.Get(address)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(answer.Body, 500))
		return 0, fmt.Errorf("%s: %s: %s", address, answer.Status, bytes.TrimSpace(why))
	}
	return sameBytes(path, address, local, answer.Body)
}

func sameBytes(path, address string, local, served io.Reader) (int64, error) {
	var done int64
	a, b := make([]byte, 128<<10), make([]byte, 128<<10)
	for {
		n, errA := io.ReadFull(local, a)
		m, errB := io.ReadFull(served, b)
		if errB != nil && errB != io.EOF && errB != io.ErrUnexpectedEOF {
			return done, fmt.Errorf("%s after %d bytes: %w", address, done+int64(m), errB)
		}
		if !bytes.Equal(a[:n], b[:m]) {
			at := 0
			for at < n && at < m && a[at] == b[at] {
				at++
			}
			return done, fmt.Errorf("%s differs from %s at byte %d", address, path, done+int64(at))
		}
		done += int64(n)
		if errA != nil {
			if errA == io.EOF || errA == io.ErrUnexpectedEOF {
				errA = nil
			}
			return done, errA
		}
	}
}
