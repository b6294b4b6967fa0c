package stores

import "testing"

func TestEveryFamilyIsReadAndDeletedOnce(t *testing.T) {
	reads, deletes, names := map[string]int{}, map[string]int{}, map[string]bool{}
	for _, s := range All() {
		if names[s.Name] {
			t.Errorf("two stores are called %s", s.Name)
		}
		names[s.Name] = true
		reads[s.Family] += count(s.Reads)
		deletes[s.Family] += count(s.Deletes)
	}
	for family := range reads {
		if reads[family] != 1 || deletes[family] != 1 {
			t.Errorf("%s is measured reading %d times and deleting %d times", family, reads[family], deletes[family])
		}
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestStoresAreChosenByTheBeginningsOfTheirNames(t *testing.T) {
	chosen, err := Choose("flatfs sync, badger")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range chosen {
		names = append(names, s.Name)
	}
	if len(names) != 5 { // flatfs sync, and both classes of badger and of badger4
		t.Errorf("%v", names)
	}
	if _, err := Choose("bolt"); err == nil {
		t.Error("there is no bolt")
	}
}
