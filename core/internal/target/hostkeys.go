package target

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// ErrHostKeyChanged: the target presented another key than the accepted ones
// and must not be used until an administrator accepts it. Errors that carry
// it are *HostKeyError.
var ErrHostKeyChanged = errors.New("host key of the target is not the accepted one")

// HostKeyError refuses a host key. Public is for the user.
type HostKeyError struct {
	Public      string
	Fingerprint string
	// Known is whether the target had an accepted key (so this one is a change).
	Known bool
}

// Error implements error.
func (e *HostKeyError) Error() string { return e.Public }

// Unwrap makes errors.Is(err, ErrHostKeyChanged) true.
func (e *HostKeyError) Unwrap() error { return ErrHostKeyChanged }

// maxUndecided bounds the keys of one target that wait for a decision, so
// that a host with a new key every time cannot fill the table.
const maxUndecided = 16

// NewHostKey describes a key a host presented.
func NewHostKey(targetID string, key ssh.PublicKey) HostKey {
	return HostKey{
		TargetID: targetID, Algorithm: key.Type(), Fingerprint: ssh.FingerprintSHA256(key),
		Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))),
	}
}

// HostKeys returns the accepted host keys of a target.
func (s *Service) HostKeys(ctx context.Context, targetID string) ([]HostKey, error) {
	ks, err := s.AllHostKeys(ctx, s.c.DB, targetID)
	return slices.DeleteFunc(ks, func(k HostKey) bool { return k.State != KeyAccepted }), err
}

// AllHostKeys returns the host keys of a target in every state.
func (s *Service) AllHostKeys(ctx context.Context, q db.Querier, targetID string) ([]HostKey, error) {
	ks, err := db.Collect(ctx, q, scanHostKey, sqlHostKeys, targetID)
	if err != nil {
		return nil, fmt.Errorf("read host keys of %s: %w", targetID, err)
	}
	return ks, nil
}

// SawHostKey judges a key (or host certificate) presented by a target and
// records what is new. With policy TOFU the first key of all is accepted; any
// other unknown key is filed as pending. A key that may not be trusted yields
// a *HostKeyError.
func (s *Service) SawHostKey(ctx context.Context, targetID string, k HostKey) error {
	t, err := s.Get(ctx, s.c.DB, targetID)
	if err != nil {
		return err
	}
	known, err := s.AllHostKeys(ctx, s.c.DB, targetID)
	if err != nil {
		return err
	}
	if done, err := s.judge(t, known, k); done {
		return err
	}
	return s.fileHostKey(ctx, t, k)
}

// CheckHostKey judges like SawHostKey and records nothing; a first key that
// TOFU would accept is fine.
func (s *Service) CheckHostKey(ctx context.Context, t *Target, k HostKey) error {
	known, err := s.AllHostKeys(ctx, s.c.DB, t.ID)
	if err != nil {
		return err
	}
	if done, err := s.judge(t, known, k); done {
		return err
	}
	if t.HostKeyPolicy == HostKeyTOFU && len(known) == 0 {
		return nil
	}
	return refuse(t, known, k)
}

// judge decides without writing; done is false when k is new on file.
func (s *Service) judge(t *Target, known []HostKey, k HostKey) (done bool, err error) {
	if t.HostKeyPolicy == HostKeyCA {
		if err := checkHostCertificate(t, k, s.c.Now()); err != nil {
			return true, &HostKeyError{Fingerprint: k.Fingerprint,
				Public: fmt.Sprintf("The host certificate of %s is not good: %s.", t.Name, err)}
		}
		return true, nil
	}
	for _, have := range known {
		if have.Key == k.Key {
			if have.State == KeyAccepted {
				return true, nil
			}
			return true, refuse(t, known, k)
		}
	}
	return false, nil
}

func refuse(t *Target, known []HostKey, k HostKey) error {
	e := &HostKeyError{Fingerprint: k.Fingerprint}
	e.Known = slices.ContainsFunc(known, func(k HostKey) bool { return k.State == KeyAccepted })
	if e.Known {
		e.Public = fmt.Sprintf("The host key of %s has changed (now %s %s). Somebody may be in the middle, or the host was installed anew. An administrator must accept the new key first.", t.Name, k.Algorithm, k.Fingerprint)
	} else {
		e.Public = fmt.Sprintf("The host key of %s (%s %s) is not accepted yet. An administrator must accept it first.", t.Name, k.Algorithm, k.Fingerprint)
	}
	return e
}

// checkHostCertificate checks a host certificate against the target's CA key.
func checkHostCertificate(t *Target, k HostKey, now time.Time) error {
	_, key, err := parseKey(k.Key)
	if err != nil {
		return err
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok {
		return errors.New("the host presented a plain key, no certificate")
	}
	_, ca, err := parseKey(t.HostKeyCA)
	if err != nil {
		return fmt.Errorf("CA key of the target: %w", err)
	}
	checker := ssh.CertChecker{
		Clock: func() time.Time { return now },
		IsHostAuthority: func(auth ssh.PublicKey, _ string) bool {
			return string(auth.Marshal()) == string(ca.Marshal())
		},
	}
	address := net.JoinHostPort(t.Host, "22") // the port plays no part in a certificate
	return checker.CheckHostKey(address, &net.TCPAddr{}, cert)
}

// fileHostKey writes a new key down: accepted on first use, else pending.
func (s *Service) fileHostKey(ctx context.Context, t *Target, k HostKey) error {
	var verdict error
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		verdict = nil
		if err := tx.Lock(ctx, "host-keys:"+t.ID); err != nil {
			return err
		}
		known, err := s.AllHostKeys(ctx, tx, t.ID)
		if err != nil {
			return err
		}
		if done, err := s.judge(t, known, k); done { // another session was first
			verdict = err
			return nil
		}
		k.TargetID, k.SeenAt = t.ID, s.now()
		if t.HostKeyPolicy == HostKeyTOFU && len(known) == 0 {
			k.State, k.DecidedBy = KeyAccepted, "first use"
			return s.writeHostKey(ctx, tx, t, k, audit.HostKeyAccepted, audit.OK, audit.System)
		}
		verdict = refuse(t, known, k)
		undecided := 0
		for _, have := range known {
			if have.State != KeyAccepted {
				undecided++
			}
		}
		if undecided >= maxUndecided {
			return nil
		}
		k.State, k.DecidedBy = KeyPending, ""
		return s.writeHostKey(ctx, tx, t, k, audit.HostKeyChanged, audit.Denied, audit.System)
	})
	if err != nil {
		return err
	}
	return verdict
}

func (s *Service) writeHostKey(ctx context.Context, tx *db.Tx, t *Target, k HostKey, event audit.Type, o audit.Outcome, by audit.Actor) error {
	_, err := tx.ExecContext(ctx, sqlHostKeyInsert, t.ID, k.Fingerprint, k.Algorithm, k.Key, string(k.State), micros(k.SeenAt), k.DecidedBy)
	if err != nil {
		return fmt.Errorf("write host key of %s: %w", t.ID, db.Classify(err))
	}
	return s.hostKeyEvent(ctx, tx, t, k, event, o, by)
}

func (s *Service) hostKeyEvent(ctx context.Context, tx *db.Tx, t *Target, k HostKey, event audit.Type, o audit.Outcome, by audit.Actor) error {
	return s.wrote(ctx, tx, audit.Event{
		Type: event, Outcome: o, Actor: by, Object: t.object(),
		Fields: map[string]string{"algorithm": k.Algorithm, "fingerprint": k.Fingerprint, "state": string(k.State), "decided_by": k.DecidedBy},
	}, TopicTarget, t.ID, t.Group)
}

// AddHostKey accepts a key given by an administrator.
func (s *Service) AddHostKey(ctx context.Context, targetID, line string) (*HostKey, error) {
	_, key, err := parseKey(line)
	if err == nil {
		if _, cert := key.(*ssh.Certificate); cert {
			err = errors.New("a certificate is not a host key; set host_key_policy ca")
		}
	}
	if err != nil {
		return nil, api.Invalid(api.FieldError{Field: "key", Message: err.Error()})
	}
	k := NewHostKey(targetID, key)
	return s.decide(ctx, targetID, k.Fingerprint, KeyAccepted, &k)
}

// AcceptHostKey trusts a key on file; other accepted keys of the same
// algorithm are forgotten, since a host has one key of each.
func (s *Service) AcceptHostKey(ctx context.Context, targetID, fingerprint string) (*HostKey, error) {
	return s.decide(ctx, targetID, fingerprint, KeyAccepted, nil)
}

// RejectHostKey refuses a key on file for good.
func (s *Service) RejectHostKey(ctx context.Context, targetID, fingerprint string) (*HostKey, error) {
	return s.decide(ctx, targetID, fingerprint, KeyRejected, nil)
}

// decide sets the state of a key; add is filed when it is not on file.
func (s *Service) decide(ctx context.Context, targetID, fingerprint string, state HostKeyState, add *HostKey) (*HostKey, error) {
	by := actor(ctx)
	var k HostKey
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		t, err := s.Get(ctx, tx, targetID)
		if err != nil {
			return err
		}
		if err := t.change(ctx); err != nil {
			return err
		}
		if t.Kind != SSH {
			return api.Conflict("no_host_keys", "Only SSH targets have host keys.")
		}
		if state == KeyAccepted {
			if err := s.mayRedirect(ctx, tx, t.ID); err != nil {
				return err
			}
		}
		if err := tx.Lock(ctx, "host-keys:"+t.ID); err != nil {
			return err
		}
		known, err := s.AllHostKeys(ctx, tx, t.ID)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(known, func(k HostKey) bool { return k.Fingerprint == fingerprint })
		if i < 0 && add == nil {
			return api.Missing("host key", fingerprint)
		}
		if i < 0 {
			k = *add
			k.SeenAt = s.now()
		} else {
			k = known[i]
		}
		if i >= 0 && k.State == state {
			return nil
		}
		k.State, k.DecidedBy = state, by.Name
		if state == KeyAccepted {
			if err := s.forgetOthers(ctx, tx, t, known, k); err != nil {
				return err
			}
		}
		event := audit.HostKeyAccepted
		if state == KeyRejected {
			event = audit.HostKeyRejected
		}
		if i < 0 {
			return s.writeHostKey(ctx, tx, t, k, event, audit.OK, by)
		}
		if _, err := tx.ExecContext(ctx, sqlHostKeyState, string(state), k.DecidedBy, t.ID, fingerprint); err != nil {
			return fmt.Errorf("decide host key of %s: %w", t.ID, err)
		}
		return s.hostKeyEvent(ctx, tx, t, k, event, audit.OK, by)
	})
	if err != nil {
		return nil, err
	}
	return &k, nil
}

// forgetOthers removes accepted keys of k's algorithm other than k.
func (s *Service) forgetOthers(ctx context.Context, tx *db.Tx, t *Target, known []HostKey, k HostKey) error {
	for _, old := range known {
		if old.State != KeyAccepted || old.Algorithm != k.Algorithm || old.Fingerprint == k.Fingerprint {
			continue
		}
		if err := s.dropHostKey(ctx, tx, t, old); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) dropHostKey(ctx context.Context, tx *db.Tx, t *Target, k HostKey) error {
	if _, err := tx.ExecContext(ctx, sqlHostKeyDelete, t.ID, k.Fingerprint); err != nil {
		return fmt.Errorf("forget host key of %s: %w", t.ID, err)
	}
	return s.hostKeyEvent(ctx, tx, t, k, audit.HostKeyRemoved, audit.OK, actor(ctx))
}

// ForgetHostKeys removes one key by fingerprint, or all of a target; with
// policy TOFU the next key is accepted once none is left.
func (s *Service) ForgetHostKeys(ctx context.Context, targetID, fingerprint string) error {
	return s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		t, err := s.Get(ctx, tx, targetID)
		if err != nil {
			return err
		}
		if err := t.change(ctx); err != nil {
			return err
		}
		if err := s.mayRedirect(ctx, tx, t.ID); err != nil {
			return err
		}
		known, err := s.AllHostKeys(ctx, tx, t.ID)
		if err != nil {
			return err
		}
		found := false
		for _, k := range known {
			if fingerprint != "" && k.Fingerprint != fingerprint {
				continue
			}
			found = true
			if err := s.dropHostKey(ctx, tx, t, k); err != nil {
				return err
			}
		}
		if !found && fingerprint != "" {
			return api.Missing("host key", fingerprint)
		}
		return nil
	})
}
