package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestAWrongCommandLineSaysWhatIsWrongAndDoesNothing(t *testing.T) {
	for line, want := range map[string]string{
		"":                              "name one repo, not 0",
		"a b":                           "name one repo, not 2",
		"a --profile flatfs":            `unknown profile "flatfs"`,
		"--yes a":                       "--yes goes with --rollback only",
		"a --rollback --skip-corrupt":   "--rollback goes with",
		"a --rollback --profile basalt": "--rollback goes with",
		"a --colour":                    "colour",
	} {
		var out, errs bytes.Buffer
		if code := run(strings.Fields(line), &out, &errs); code != 2 || !strings.Contains(errs.String(), want) || out.Len() > 0 {
			t.Errorf("%q: exit code %d: %s%s", line, code, out.String(), errs.String())
		}
	}
}

func TestHelpIsNoError(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"--help"}, &out, &errs); code != 0 || !strings.Contains(out.String(), "--skip-corrupt") {
		t.Errorf("exit code %d: %s%s", code, out.String(), errs.String())
	}
}

func TestAFailureIsAnObjectWhereObjectsWereAskedFor(t *testing.T) {
	var out, errs bytes.Buffer
	code := run([]string{t.TempDir(), "--json"}, &out, &errs)
	var line struct{ Event, Message string }
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || code != 1 || line.Event != "error" || !strings.Contains(line.Message, "no Kubo repo") {
		t.Errorf("exit code %d, %v: %s%s", code, err, out.String(), errs.String())
	}
}

func TestProgressSaysHowFarAndHowFast(t *testing.T) {
	var out bytes.Buffer
	report := reporter(true, &out, &out)
	report.Begin("copy", 10)
	report.At(10, 1<<20)
	report.End()
	var line struct {
		Step               string
		Done, Total, Bytes int64
		Ended              bool
	}
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line.Step != "copy" || line.Done != 10 || line.Total != 10 || line.Bytes != 1<<20 || !line.Ended {
		t.Errorf("%v: %s", err, out.String())
	}
	out.Reset()
	report = reporter(false, &out, &out)
	report.Begin("copy", 10)
	report.At(10, 1<<20)
	report.End()
	if !strings.Contains(out.String(), "copy: 10 of 10 keys, 1.0 MiB, ") {
		t.Errorf("%s", out.String())
	}
}
