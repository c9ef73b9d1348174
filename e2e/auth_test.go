package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"caponier/e2e/harness"
)

// Each way to prove oneself to a target: a certificate made for this
// connection, a stored password, a stored key.
func TestTargetAuthentication(t *testing.T) {
	w := common(t)
	for who, want := range map[string]string{"demo%root%db-a": "root", "demo%alice%pw-a": "alice", "demo%bob%key-a": "bob"} {
		if got := strings.TrimSpace(w.mustSSH(t, who, "id -un")); got != want {
			t.Errorf("%s is %q on the target, want %q", who, got, want)
		}
	}
	// The target's own log names the certificate and who is behind it.
	log := w.sshd["db-a"].Proc.Output()
	if !strings.Contains(log, "Accepted certificate ID \"demo@") || !strings.Contains(log, "serial") {
		t.Errorf("the log of sshd shows no certificate of demo:\n%s", log)
	}
}

// The user's own password for the target is asked for when the account says so.
func TestAskedPassword(t *testing.T) {
	w := common(t)
	id, err := w.core.Admin.Open(t.Context(), w.role, harness.Target{Name: "ask-a", Kind: "ssh", Site: "vpc-a", Host: harness.Hosts[1],
		Accounts: []harness.Account{{Name: "alice", Auth: "ask"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.core.Admin.Delete(t.Context(), "/targets/"+id)
	askpass := filepath.Join(t.TempDir(), "askpass")
	if err := os.WriteFile(askpass, []byte("#!/bin/sh\nprintf '%s\\n' '"+w.password+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	env := []string{"SSH_ASKPASS=" + askpass, "SSH_ASKPASS_REQUIRE=force"}
	args := append(w.sshOpts(), "-o", "BatchMode=no", "-l", "demo%alice%ask-a", harness.CoreAddr, "id -un")
	args[3] = "BatchMode=no" // the first mention wins
	r := w.runIn(t, "user", "", env, "ssh", args...)
	if r.code != 0 || strings.TrimSpace(r.out) != "alice" {
		t.Fatal(r)
	}
}

// A password login of the user, and its limits: after a burst of wrong ones
// even the right one has to wait, and another user does not.
func TestBastionPasswordLoginIsLimited(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	login := func(user, password string) result {
		askpass := filepath.Join(t.TempDir(), "askpass")
		if err := os.WriteFile(askpass, []byte("#!/bin/sh\nprintf '%s\\n' '"+password+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return w.runIn(t, "user", "", []string{"SSH_ASKPASS=" + askpass, "SSH_ASKPASS_REQUIRE=force"}, "ssh", "-F", "none", "-p", "2222",
			"-o", "UserKnownHostsFile="+w.known, "-o", "StrictHostKeyChecking=yes", "-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1",
			"-l", user+"%root%db-a", harness.CoreAddr, "true")
	}
	if _, role, err := w.core.Admin.User(t.Context(), "other", "correct-horse-battery"); err != nil {
		t.Fatal(err)
	} else if _, err := w.core.Admin.Create(t.Context(), "/grants", harness.Grant{Role: role, Target: w.targets["db-a"], Accounts: []string{"*"}, Features: []string{"all"}}); err != nil {
		t.Fatal(err)
	}
	if r := login("demo", w.demo); r.code != 0 {
		t.Fatalf("the right password: %v", r)
	}
	for range 8 {
		if r := login("demo", "wrong"); r.code == 0 {
			t.Fatal("a wrong password was accepted")
		}
	}
	if r := login("demo", w.demo); r.code == 0 {
		t.Errorf("no limit after 8 wrong passwords: %v", r)
	}
	w.audited(t, "type=login.limited", "the limit", func(e harness.Event) bool { return e.Outcome == "denied" && e.Actor.Source == harness.UserAddr })
	// The console's way in is told how long to wait.
	r := w.runIn(t, "user", "", nil, "curl", "-sS", "-i", "-m", "50", "--cacert", w.core.Ready.CAFile, "-H", "Content-Type: application/json",
		"-d", `{"username":"demo","password":"`+w.demo+`"}`, w.core.Ready.URL+"/api/v1/login")
	if !strings.Contains(r.out, " 429 ") || !regexp.MustCompile(`(?mi)^retry-after: [1-9]`).MatchString(r.out) || !strings.Contains(r.out, "Too many failed logins. Wait and try again.") {
		t.Errorf("the API: %v", r)
	}
	if r := login("other", "correct-horse-battery"); r.code != 0 {
		t.Errorf("another user is limited too: %v", r)
	}
}

// A host that shows another key than before is not connected to, until an
// administrator accepts the new one.
func TestChangedHostKeyBlocks(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	w.mustSSH(t, "demo%root%db-a", "true")
	s := w.sshd["db-a"]
	if err := s.NewHostKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := w.ssh(t, "demo%root%db-a", "true")
	if r.code == 0 {
		t.Fatal("connected to a host with another key")
	}
	if !strings.Contains(r.err, "The host key of db-a has CHANGED to SHA256:") {
		t.Errorf("the user is not told about the host key: %v", r)
	}
	w.audited(t, "type=hostkey.changed", "the changed key", func(e harness.Event) bool { return e.Outcome == "denied" && e.Object.Name == "db-a" })
	var keys struct {
		Items []struct{ Fingerprint, State string } `json:"items"`
	}
	path := "/targets/" + w.targets["db-a"] + "/host-keys"
	if err := w.core.Admin.Do(t.Context(), http.MethodGet, path, nil, &keys); err != nil {
		t.Fatal(err)
	}
	pending := 0
	for _, k := range keys.Items {
		if k.State == "pending" {
			pending++
			if err := w.core.Admin.Do(t.Context(), http.MethodPost, path+"/accept", map[string]string{"fingerprint": k.Fingerprint}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if pending != 1 {
		t.Fatalf("%d keys wait to be accepted: %+v", pending, keys.Items)
	}
	w.audited(t, "type=hostkey.accepted", "the accepted key", func(e harness.Event) bool { return e.Outcome == "ok" && e.Actor.Name == "admin" })
	until(t, patience, "the accepted key is used", func() error {
		if r := w.ssh(t, "demo%root%db-a", "true"); r.code != 0 {
			return &harness.Status{Code: r.code, Body: r.err}
		}
		return nil
	})
}
