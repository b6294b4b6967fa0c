// Reads the events of `go test -json` from stdin, keeps them in the file named by the first argument, and prints what a person wants to
// see: go test's own closing line for each package, the whole output of each test that failed, and the counts.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Output     string
}

func main() {
	events, err := os.Create(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "go-test-report:", err)
		os.Exit(2)
	}
	defer events.Close()

	type name struct{ pkg, test string }
	output := map[name][]string{}
	outcome := map[name]string{}
	parents := map[name]bool{}
	failed := false

	lines := bufio.NewReader(os.Stdin)
	for {
		line, readErr := lines.ReadString('\n')
		if readErr != nil {
			break
		}
		fmt.Fprint(events, line)
		var e event
		if json.Unmarshal([]byte(line), &e) != nil {
			fmt.Print(line) // not an event: a build error of an older go
			continue
		}
		n := name{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			fmt.Print(e.Output)
		case "build-fail":
			failed = true
		case "output":
			output[n] = append(output[n], e.Output)
			if e.Test == "" && (strings.HasPrefix(e.Output, "ok ") || strings.HasPrefix(e.Output, "FAIL\t") || strings.HasPrefix(e.Output, "panic:")) {
				fmt.Print(e.Output)
			}
		case "run":
			for i, c := range e.Test {
				if c == '/' {
					parents[name{e.Package, e.Test[:i]}] = true
				}
			}
		case "pass", "skip":
			outcome[n] = e.Action
			delete(output, n)
		case "fail":
			failed = true
			outcome[n] = e.Action
			for _, text := range output[n] {
				if e.Test != "" || !strings.HasPrefix(text, "FAIL") {
					fmt.Print(text)
				}
			}
			delete(output, n)
		}
	}

	// A test that only holds subtests is no test of its own, unless it alone failed.
	counts := map[string]int{}
	for n, action := range outcome {
		if n.test != "" && !parents[n] {
			counts[action]++
		}
	}
	if failed && counts["fail"] == 0 {
		counts["fail"] = 1
	}
	fmt.Printf("go: %d passed; %d failed; %d skipped\n", counts["pass"], counts["fail"], counts["skip"])
	if failed || counts["pass"] == 0 {
		os.Exit(1)
	}
}
