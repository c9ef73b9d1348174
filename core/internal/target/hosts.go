package target

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Host is what a host says of itself when it registers through its site's
// extender (FEATURES E13).
type Host struct {
	Site      string
	Name      string
	Address   string // as the extender sees it
	Port      int    // of its sshd
	MachineID string
	HostKeys  []string // authorized_keys form
	Accounts  []string // logins that accept our certificates
	Token     string   // ID of the deployment token
}

// Limits of a registration.
const (
	maxMachineID    = 128
	maxHostKeys     = 8
	maxHostAccounts = 32
)

// RegisterHost creates or updates the SSH target of a host, found again by
// site and machine ID: accounts with certificate login, host keys accepted
// and pinned. The same data twice changes nothing. Accounts an administrator
// made are left alone, and a registered host cannot replace its keys: another
// key waits for an administrator like any changed key.
func (s *Service) RegisterHost(ctx context.Context, tx *db.Tx, h Host) (targetID string, changed bool, err error) {
	keys, accounts, err := s.readHost(&h)
	if err != nil {
		return "", false, err
	}
	if err := tx.Lock(ctx, "register-host:"+h.Site); err != nil {
		return "", false, err
	}
	by := audit.Actor{Kind: "token", ID: h.Token, Via: "tunnel"}
	if _, err := s.Site(ctx, tx, h.Site); h.Site != "" && errors.Is(err, db.ErrNotFound) {
		if err := s.insertSite(ctx, tx, &Site{Name: h.Site, Group: access.DefaultGroup}); err != nil {
			return "", false, err
		}
	} else if h.Site != "" && err != nil {
		return "", false, err
	}
	t, err := s.registered(ctx, tx, &h)
	if errors.Is(err, db.ErrNotFound) {
		id, err := s.registerNew(ctx, tx, h, keys, accounts, by)
		return id, err == nil, err
	}
	if err != nil {
		return "", false, err
	}
	changed, err = s.registerAgain(ctx, tx, t, h, keys, accounts, by)
	return t.ID, changed, err
}

// readHost validates and normalises.
func (s *Service) readHost(h *Host) ([]HostKey, []Account, error) {
	var p problems
	if h.MachineID == "" || len(h.MachineID) > maxMachineID {
		p.add("machine_id", "is needed, at most %d bytes", maxMachineID)
	}
	if h.Site != "" && !siteName.MatchString(h.Site) {
		p.add("site", "is not a site name")
	}
	if a, err := NormalHost(h.Address); err != nil {
		p.add("address", "%s", err)
	} else {
		h.Address = a
	}
	if h.Port == 0 {
		h.Port = 22
	}
	if h.Port < 1 || h.Port > 65535 {
		p.add("port", "must be 1 to 65535")
	}
	if len(h.HostKeys) == 0 || len(h.HostKeys) > maxHostKeys {
		p.add("host_keys", "1 to %d keys", maxHostKeys)
	}
	if len(h.Accounts) > maxHostAccounts {
		p.add("accounts", "at most %d accounts", maxHostAccounts)
	}
	if err := p.err(); err != nil {
		return nil, nil, err
	}
	var keys []HostKey
	for i, line := range h.HostKeys {
		_, key, err := parseKey(line)
		if err != nil {
			p.add(fmt.Sprintf("host_keys[%d]", i), "%s", err)
			continue
		}
		k := NewHostKey("", key)
		if slices.ContainsFunc(keys, func(have HostKey) bool { return have.Algorithm == k.Algorithm }) {
			p.add(fmt.Sprintf("host_keys[%d]", i), "a second key of the same algorithm")
		}
		keys = append(keys, k)
	}
	var accounts []Account
	for i, name := range slices.Compact(slices.Sorted(slices.Values(h.Accounts))) {
		a := Account{Name: name, Auth: AuthCertificate, Features: SSH.Features()}
		a.validate(&p, fmt.Sprintf("accounts[%d].", i))
		accounts = append(accounts, a)
	}
	return keys, accounts, p.err()
}

// registered finds the host's target: by machine, or one made by hand for the
// same address that no machine has claimed yet.
func (s *Service) registered(ctx context.Context, tx *db.Tx, h *Host) (*Target, error) {
	t, err := scanTarget(tx.QueryRowContext(ctx, sqlTargetByMachine, h.Site, h.MachineID))
	if errors.Is(err, db.ErrNotFound) {
		t, err = scanTarget(tx.QueryRowContext(ctx, sqlTargetAdoptable, h.Site, h.Address, h.Port))
	}
	if err != nil {
		return nil, err
	}
	return &t, nil
}

func (s *Service) registerNew(ctx context.Context, tx *db.Tx, h Host, keys []HostKey, accounts []Account, by audit.Actor) (string, error) {
	name, err := s.freeName(ctx, tx, &h)
	if err != nil {
		return "", err
	}
	group, err := s.siteGroup(ctx, tx, h.Site)
	if err != nil {
		return "", err
	}
	t := Target{
		Name: name, Kind: SSH, Group: group, Site: h.Site, Host: h.Address, Port: h.Port, MachineID: h.MachineID,
		Origin: "host " + h.Token, HostKeyPolicy: HostKeyPinned,
	}
	var p problems
	t.validate(&p)
	if err := p.err(); err != nil {
		return "", err
	}
	if err := s.insert(ctx, tx, &t, accounts, audit.TargetHostJoin, by); err != nil {
		return "", err
	}
	for _, k := range keys {
		k.SeenAt, k.State, k.DecidedBy = s.now(), KeyAccepted, "registration"
		if err := s.writeHostKey(ctx, tx, &t, k, audit.HostKeyAccepted, audit.OK, by); err != nil {
			return "", err
		}
	}
	return t.ID, nil
}

// freeName makes a target name of the host's: as it is, else with its site,
// else numbered.
func (s *Service) freeName(ctx context.Context, q db.Querier, h *Host) (string, error) {
	base := cleanName(h.Name)
	if base == "" || strings.HasPrefix(base, idPrefix) {
		base = "host-" + cleanName(h.Address)
	}
	tries := []string{base}
	if h.Site != "" {
		tries = append(tries, cut(base, 63-len(cut(h.Site, 30)))+"."+cut(h.Site, 30))
	}
	for i := 2; i < 1000; i++ {
		tries = append(tries, fmt.Sprintf("%s-%d", cut(base, 59), i))
	}
	for _, name := range tries {
		_, err := scanTarget(q.QueryRowContext(ctx, sqlTargetByName, name))
		if errors.Is(err, db.ErrNotFound) {
			return name, nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", api.Conflict("name_taken", "There are too many targets called "+base+".")
}

func cut(s string, n int) string { return s[:min(len(s), n)] }

// cleanName turns a host name into the form of a target name.
func cleanName(name string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' {
			return r
		}
		return '-'
	}, strings.ToLower(name))
	return cut(strings.TrimLeft(clean, "._-"), 64)
}

func (s *Service) registerAgain(ctx context.Context, tx *db.Tx, t *Target, h Host, keys []HostKey, accounts []Account, by audit.Actor) (changed bool, err error) {
	if t.MachineID != h.MachineID || t.Host != h.Address || t.Port != h.Port {
		old := *t
		t.MachineID, t.Host, t.Port = h.MachineID, h.Address, h.Port
		if err := s.update(ctx, tx, &old, t, audit.TargetHostJoin, by); err != nil {
			return false, err
		}
		changed = true
	}
	have, err := s.Accounts(ctx, tx, t.ID)
	if err != nil {
		return false, err
	}
	for _, a := range accounts {
		if slices.ContainsFunc(have, func(x Account) bool { return x.Name == a.Name }) {
			continue
		}
		a.ID, a.TargetID = db.NewID("acc_"), t.ID
		if err := insertRows(ctx, tx, sqlAccountInsert, [][]any{a.row(s.now())}); err != nil {
			return false, fmt.Errorf("create account of %s: %w", t.ID, db.Classify(err))
		}
		e := a.event(t, audit.AccountCreated)
		e.Actor = by
		if err := s.wrote(ctx, tx, e, TopicTarget, t.ID, t.Group); err != nil {
			return false, err
		}
		changed = true
	}
	filed, err := s.registerKeys(ctx, tx, t, keys, by)
	return changed || filed, err
}

// registerKeys files the keys of a host that has a target already: accepted
// when the target has none at all, else pending.
func (s *Service) registerKeys(ctx context.Context, tx *db.Tx, t *Target, keys []HostKey, by audit.Actor) (changed bool, err error) {
	if err := tx.Lock(ctx, "host-keys:"+t.ID); err != nil {
		return false, err
	}
	known, err := s.AllHostKeys(ctx, tx, t.ID)
	if err != nil {
		return false, err
	}
	for _, k := range keys {
		if slices.ContainsFunc(known, func(x HostKey) bool { return x.Key == k.Key }) {
			continue
		}
		k.SeenAt, k.State, k.DecidedBy = s.now(), KeyAccepted, "registration"
		event, outcome := audit.HostKeyAccepted, audit.OK
		if len(known) > 0 {
			if len(known) >= maxUndecided+maxHostKeys {
				continue
			}
			k.State, k.DecidedBy = KeyPending, ""
			event, outcome = audit.HostKeyChanged, audit.Denied
		}
		if err := s.writeHostKey(ctx, tx, t, k, event, outcome, by); err != nil {
			return false, err
		}
		changed = true
	}
	return changed, nil
}
