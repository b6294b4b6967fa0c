package run

// The process of one session and one store.

import (
	"context"
	"encoding/json"
	"os"
	"runtime"
	"strings"

	"basalt.dev/go/bench/measure"
	"basalt.dev/go/bench/stores"
)

// Child reads a Spec from a file, does its session and writes the rows to another.
func Child(ctx context.Context, specFile, rowsFile string) error {
	text, err := os.ReadFile(specFile)
	if err != nil {
		return err
	}
	var spec Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return err
	}
	if err := os.MkdirAll(spec.Folder, 0o755); err != nil {
		return err
	}
	// A live heap as large as a busy Kubo's: with an empty one Go's collector runs every few reads, and all stores look alike. Never
	// touched, so it is no memory.
	ballast := make([]byte, spec.HeapMiB<<20)
	meter := Kernel
	if spec.Device != "" {
		meter.Device = func(string) (measure.Device, error) { return measure.DeviceNamed(spec.Device) }
	}
	var rows []Row
	if strings.HasPrefix(spec.Store, "raw ") {
		rows = Raw(ctx, spec, meter)
	} else {
		store, err := stores.ByName(spec.Store)
		if err != nil {
			return err
		}
		rows = Session(ctx, spec, store, meter)
	}
	runtime.KeepAlive(ballast)
	text, err = json.Marshal(rows)
	if err != nil {
		return err
	}
	return os.WriteFile(rowsFile, text, 0o644)
}
