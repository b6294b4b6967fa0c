// Package conformance holds what a datastore of ours promises whatever the way to its node: the same tests run over gRPC and in process.
package conformance

import (
	"testing"

	"basalt.dev/go/datastore"
	"basalt.dev/go/internal/basaltv1"
)

// Node is a node that a test made for itself.
type Node interface {
	// Open opens a view, which ends with the test.
	Open(role string) *datastore.Datastore
	// Status asks the node's admin socket; a view is open.
	Status() *basaltv1.StatusResponse
}

// Way makes a node in a folder, with the flags of `basalt init`, and says how it is reached.
type Way func(t testing.TB, dir string, flags ...string) Node

// promise is one test of a way to a node.
type promise struct {
	name string
	test func(*testing.T, Way)
}

// Run runs all promises over a way. Promises run beside one another: one caller waits for one answer most of the time. The suite's size
// is one variable of the process, so what runs it in full and what runs it in small are two groups.
func Run(t *testing.T, way Way) {
	group := func(name string, promises []promise) {
		t.Run(name, func(t *testing.T) {
			for _, p := range promises {
				t.Run(p.name, func(t *testing.T) {
					t.Parallel()
					p.test(t, way)
				})
			}
		})
	}
	group("InFull", []promise{
		{"SuiteOnTheWholeNode", suiteOnTheWholeNode},
		{"BlocksReachTheShardsAndNothingElse", blocksReachTheShardsAndNothingElse},
		{"TheNodeAnswersAsTheMapStoreDoes", theNodeAnswersAsTheMapStoreDoes},
		{"TheViewsOfANodeAnswerAsTheMapStoreDoes", theViewsOfANodeAnswerAsTheMapStoreDoes},
		{"BlocksAnswerAsTheMapStoreDoes", blocksAnswerAsTheMapStoreDoes},
		{"ManyCallersEachFindTheirOwn", manyCallersEachFindTheirOwn},
		{"AKeyWithATTLExpires", aKeyWithATTLExpires},
		{"ABlockTakesNoTTLAndIsNotStored", aBlockTakesNoTTLAndIsNotStored},
		{"DiskUsageFallsAtOnceOnDelete", diskUsageFallsAtOnceOnDelete},
		{"CheckScrubAndCollectGarbagePassOnASoundNode", checkScrubAndCollectGarbagePassOnASoundNode},
		{"BadKeysAreRefusedByName", badKeysAreRefusedByName},
		{"AnOversizeValueIsRefusedAndTheNodeGoesOn", anOversizeValueIsRefusedAndTheNodeGoesOn},
	})
	elements(t, few)
	group("InSmall", []promise{
		{"SuiteMountedAtRoot", suiteMountedAtRoot},
		{"SuiteMountedAtBlocksBesideAMap", suiteMountedAtBlocksBesideAMap},
		{"SuiteOnTheShardsLogs", suiteOnTheShardsLogs},
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
