package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// What may be revoked.
const (
	RevokeClient  = "client"
	RevokeSubject = "subject"
	RevokeToken   = "token"
)

// maxRevocations bounds the file and the memory.
const maxRevocations = 100_000

// Revocation takes back what was issued before At: all that a client id or a subject has, or one token.
type Revocation struct {
	Kind  string    `json:"kind"` // client, subject or token
	Value string    `json:"value"`
	At    time.Time `json:"at"`
	// Until is when what is revoked has expired anyhow; zero: that is not known, so it stays.
	Until time.Time `json:"until,omitzero"`
}

func (r *Revocation) over(now time.Time) bool { return !r.Until.IsZero() && !now.Before(r.Until) }

func (r *Revocation) key() revoked { return revoked{r.Kind, r.Value} }

type revoked struct{ kind, value string }

// Revocations are kept in a file, or shared with others who keep them, so that they outlive the process.
type Revocations struct {
	path  string // empty: they are shared
	share func(r Revocation, lifted bool) error

	mu  sync.RWMutex
	all map[revoked]Revocation
}

// ShareRevocations returns Revocations that share keeps, for this process and others: it stores one, or that it was lifted, and returns once
// that outlives the process. What any of them has stored must come to Learn, in one order for all.
func ShareRevocations(share func(r Revocation, lifted bool) error) *Revocations {
	return &Revocations{share: share, all: map[revoked]Revocation{}}
}

// Learn takes in what was stored.
func (r *Revocations) Learn(one Revocation, lifted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case lifted:
		delete(r.all, one.key())
	case one.check() == nil && !one.over(time.Now()):
		r.all[one.key()] = one
	}
}

// OpenRevocations reads the file at path, if there is one. A damaged file is an error: to go on without it would let back in who was
// thrown out.
func OpenRevocations(path string) (*Revocations, error) {
	r := &Revocations{path: path, all: map[revoked]Revocation{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("revocations cannot be read: %w", err)
	}
	var list []Revocation
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%s is damaged; without it revoked clients would come back: restore it, or remove it if that is acceptable", path)
	}
	now := time.Now()
	for _, one := range list {
		if !one.over(now) {
			r.all[one.key()] = one
		}
	}
	return r, nil
}

func (r *Revocation) check() error {
	switch {
	case r.Kind != RevokeClient && r.Kind != RevokeSubject && r.Kind != RevokeToken:
		return fmt.Errorf("%q is not one of client, subject, token", r.Kind)
	case !Printable(r.Value):
		return fmt.Errorf("it is not 1 to %d printable ASCII characters without spaces", maxIdentity)
	}
	return nil
}

// Add revokes, and returns once that is on disk.
func (r *Revocations) Add(one Revocation) error {
	if err := one.check(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old, had := r.all[one.key()]
	if !had && len(r.all) >= maxRevocations {
		r.expireLocked()
		if len(r.all) >= maxRevocations {
			return fmt.Errorf("there are %d revocations; give those that are to come an end, or lift old ones", maxRevocations)
		}
	}
	if r.share != nil {
		if err := r.shareLocked(one, false); err != nil {
			return fmt.Errorf("the revocation cannot be stored: %w", err)
		}
		r.all[one.key()] = one
		return nil
	}
	r.all[one.key()] = one
	if err := r.writeLocked(); err != nil {
		delete(r.all, one.key())
		if had {
			r.all[one.key()] = old
		}
		return fmt.Errorf("the revocation cannot be stored: %w", err)
	}
	return nil
}

// Lift takes a revocation back; false if there is none.
func (r *Revocations) Lift(kind, value string) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, had := r.all[revoked{kind, value}]
	if !had {
		return false, nil
	}
	if r.share != nil {
		if err := r.shareLocked(old, true); err != nil {
			return true, err
		}
		delete(r.all, old.key())
		return true, nil
	}
	delete(r.all, old.key())
	if err := r.writeLocked(); err != nil {
		r.all[old.key()] = old
		return true, err
	}
	return true, nil
}

// List returns all that are in force, in order.
func (r *Revocations) List() []Revocation {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expireLocked()
	list := r.listLocked()
	return list
}

// Revoked reports whether an identity, as a client, was taken back: what it shows was issued before the revocation, or nobody knows
// when.
func (r *Revocations) Revoked(id *Identity, client string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.all) == 0 {
		return false
	}
	now := time.Now()
	for _, k := range []revoked{{RevokeToken, id.TokenID}, {RevokeSubject, id.Subject}, {RevokeClient, client}} {
		one, ok := r.all[k]
		if !ok || k.value == "" || one.over(now) {
			continue
		}
		// Times in tokens are whole seconds: one issued in the second of the revocation may be an old one.
		if k.kind == RevokeToken || id.Issued.IsZero() || !id.Issued.After(one.At) {
			return true
		}
	}
	return false
}

func (r *Revocations) expireLocked() {
	now := time.Now()
	for k, one := range r.all {
		if one.over(now) {
			delete(r.all, k)
		}
	}
}

func (r *Revocations) listLocked() []Revocation {
	list := make([]Revocation, 0, len(r.all))
	for _, one := range r.all {
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b Revocation) int {
		if c := a.At.Compare(b.At); c != 0 {
			return c
		}
		return strings.Compare(a.Kind+" "+a.Value, b.Kind+" "+b.Value)
	})
	return list
}

// shareLocked shares, without the lock: nobody waits for a revocation that is on its way.
func (r *Revocations) shareLocked(one Revocation, lifted bool) error {
	r.mu.Unlock()
	defer r.mu.Lock()
	return r.share(one, lifted)
}

// writeLocked replaces the file as a whole, and is over when that would survive a power failure.
func (r *Revocations) writeLocked() error {
	b, err := json.MarshalIndent(r.listLocked(), "", "\t")
	if err != nil {
		return err
	}
	dir := filepath.Dir(r.path)
	f, err := os.CreateTemp(dir, ".revocations-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it was renamed
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), r.path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
