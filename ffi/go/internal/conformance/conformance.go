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

// Run runs all promises over a way.
func Run(t *testing.T, way Way) {
	for _, p := range []struct {
		name string
		test func(*testing.T, Way)
	}{
		{"SuiteOnTheWholeNode", suiteOnTheWholeNode},
		{"SuiteMountedAtRoot", suiteMountedAtRoot},
		{"SuiteMountedAtBlocksBesideAMap", suiteMountedAtBlocksBesideAMap},
		{"SuiteOnTheShardsLogs", suiteOnTheShardsLogs},
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
	} {
		t.Run(p.name, func(t *testing.T) { p.test(t, way) })
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
