package auth

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func open(t *testing.T, path string) *Revocations {
	t.Helper()
	r, err := OpenRevocations(path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func add(t *testing.T, r *Revocations, one Revocation) {
	t.Helper()
	if err := r.Add(one); err != nil {
		t.Fatal(err)
	}
}

// What was issued before is taken back, also after a restart; what was issued later is good; and an end is an end.
func TestRevocations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "revocations.json")
		r := open(t, path)
		now := time.Now()
		old := Identity{Subject: "alice", Issuer: "i", TokenID: "t1", Issued: now.Add(-time.Minute)}
		undated, later, other := old, old, old
		undated.Issued, undated.TokenID = time.Time{}, ""
		later.Issued, later.TokenID = now.Add(time.Second), "t2"
		other.Subject, other.TokenID = "bob", "t3"
		add(t, r, Revocation{Kind: RevokeSubject, Value: "alice", At: now})
		add(t, r, Revocation{Kind: RevokeToken, Value: "t9", At: now, Until: now.Add(time.Hour)})
		add(t, r, Revocation{Kind: RevokeClient, Value: "pad", At: now})
		for _, r := range []*Revocations{r, open(t, path)} {
			nine := later
			nine.TokenID = "t9"
			for name, c := range map[string]struct {
				id     Identity
				client string
				want   bool
			}{
				"old":               {old, "alice", true},
				"of an unknown age": {undated, "alice", true},
				"later":             {later, "alice", false},
				"another subject":   {other, "bob", false},
				"the client":        {other, "pad", true},
				"the token":         {nine, "alice", true},
				"nobody":            {Identity{}, "anon-1", false},
			} {
				if got := r.Revoked(&c.id, c.client); got != c.want {
					t.Errorf("%s: %v", name, got)
				}
			}
		}
		if ok, err := r.Lift(RevokeSubject, "alice"); !ok || err != nil {
			t.Error(ok, err)
		}
		if ok, err := r.Lift(RevokeSubject, "alice"); ok || err != nil {
			t.Error(ok, err)
		}
		if r.Revoked(&old, "alice") {
			t.Error("revoked, although that was taken back")
		}
		if n := len(open(t, path).List()); n != 2 {
			t.Errorf("%d stored", n)
		}
		time.Sleep(time.Hour)
		if list := open(t, path).List(); len(list) != 1 || list[0].Kind != RevokeClient {
			t.Errorf("after its end: %+v", list)
		}
	})
}

func TestRevocationsThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "revocations.json")
	r := open(t, path)
	for _, one := range []Revocation{{Kind: "role", Value: "x"}, {Kind: RevokeToken}, {Kind: RevokeSubject, Value: "a\nb"}} {
		if err := r.Add(one); err == nil {
			t.Errorf("%+v was taken", one)
		}
	}
	if err := os.WriteFile(path, []byte(`[{"kind":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRevocations(path); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Error(err)
	}
	gone := open(t, filepath.Join(dir, "no", "such", "dir"))
	if err := gone.Add(Revocation{Kind: RevokeSubject, Value: "alice", At: time.Now()}); err == nil || len(gone.List()) != 0 {
		t.Errorf("what could not be stored counts: %v", err)
	}
}
