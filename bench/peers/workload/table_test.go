package workload

import "testing"

func TestNoTwoSessionsShareAFolderThatIsNotKept(t *testing.T) {
	for _, scale := range []Scale{Default, Full, Tiny} {
		seen := map[string]bool{}
		fills := map[string]Fill{}
		for _, w := range Table(scale) {
			cases := map[string]bool{}
			for _, s := range w.Sessions {
				if seen[s.ID] {
					t.Errorf("%s: two sessions are called %s", scale.Name, s.ID)
				}
				seen[s.ID] = true
				if fill, there := fills[s.Keep]; there && s.Keep != "" && fill != s.Fill {
					t.Errorf("%s: the kept store %q has two fills", scale.Name, s.Keep)
				}
				fills[s.Keep] = s.Fill
				for _, c := range s.Cases {
					if id := s.ID + c.Name; cases[id] || c.Name == "" || c.Unit == "" {
						t.Errorf("%s: case %q of %s", scale.Name, c.Name, s.ID)
					} else {
						cases[id] = true
					}
				}
			}
		}
	}
}

func TestWorkloadsAreChosenByTheirNames(t *testing.T) {
	chosen, err := Choose(Tiny, "w1, W12")
	if err != nil || len(chosen) != 2 || chosen[0].ID != "W1" || chosen[1].ID != "W12" {
		t.Errorf("%v %v", chosen, err)
	}
	if part, err := Choose(Tiny, "W4,W1-256-16"); err != nil || len(part) != 2 || len(part[0].Sessions) != 1 || len(part[1].Sessions) != 3 {
		t.Errorf("%v %v", part, err)
	}
	if _, err := Choose(Tiny, "W99"); err == nil {
		t.Error("there is no W99")
	}
}
