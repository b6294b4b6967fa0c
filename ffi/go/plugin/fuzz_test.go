package plugin

import (
	"encoding/json"
	"regexp"
	"testing"
)

// FuzzSpec feeds Datastore.Spec as somebody might write it: a config or an error that says what to write, never a panic.
func FuzzSpec(f *testing.F) {
	id := "0123456789abcdef0123456789abcdef"
	for _, text := range []string{
		`{"type":"basalt","role":"root","node":"` + id + `"}`,
		`{"type":"basalt","role":"blocks","node":"` + id + `","mountpoint":"/blocks","path":"/x","socket":"s","lane":"grpc","autostart":false,"retry_seconds":1.5}`,
		`{"type":"basalt","role":7,"node":null,"retry_seconds":1e300,"autostart":"yes"}`,
		`{"role":"pins","retry_seconds":-1,"mountpoint":"//pins/../blocks"}`,
		`{}`, `null`, `{"type":{"type":{}}}`,
	} {
		f.Add([]byte(text))
	}
	valid := regexp.MustCompile(`^[0-9a-f]{32}$`)
	f.Fuzz(func(t *testing.T, text []byte) {
		var params map[string]any
		if json.Unmarshal(text, &params) != nil {
			return
		}
		config, err := parse(params)
		if (config == nil) == (err == nil) {
			t.Fatalf("%v and %v", config, err)
		}
		if err != nil {
			if err.Error() == "" {
				t.Fatal("an error without words")
			}
			return
		}
		c := config.(*spec)
		if !valid.MatchString(c.node) || roles[c.role] == "" || c.retry < 0 || c.retry.Seconds() > retryMaxSeconds {
			t.Fatalf("%+v", c)
		}
		disk := config.DiskSpec()
		if disk["node"] != c.node || disk.String() == "" {
			t.Fatalf("%v", disk)
		}
	})
}
