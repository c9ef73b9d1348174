package bastion

import (
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/conn"
)

func TestExec(t *testing.T) {
	b := newBench(t)
	d := b.startSSHD()
	b.add("db-1", d)
	r := b.ssh(b.to("db-1"), "id -un; echo problem >&2; exit 42")
	if r.code != 42 || strings.TrimSpace(r.out) != b.me || r.err != "problem\n" {
		t.Fatalf("got %v, want %s, problem, 42", r, b.me)
	}
	l := b.last()
	if _, reason := l.ended(); reason != conn.EndedByTarget || l.spec.Kind != "exec" || l.spec.TargetName != "db-1" || l.spec.Account != b.me {
		t.Errorf("got connection %+v ended %s", l.spec, reason)
	}
	if !l.saw("exec id -un") || !l.saw("exit 42") || l.out == 0 {
		t.Errorf("events %q, %d bytes out", l.events, l.out)
	}
	tp := b.tapes.list()[0]
	if !tp.closed || !strings.Contains(tp.output(), "problem") || !tp.saw("exec command=id -un; echo problem >&2; exit 42") || !tp.saw("exit status=42") {
		t.Errorf("recording: closed %v, output %q, events %q", tp.closed, tp.output(), tp.events)
	}
	if l.recording != "rec_1" {
		t.Errorf("got recording %q", l.recording)
	}
}

// A command longer than a field of a recording is kept to its end.
func TestLongCommandIsRecordedWhole(t *testing.T) {
	b := newBench(t)
	b.vault.put("sec_1", "x")
	b.add("db-1", &sshd{addr: goTarget(t, &ssh.ServerConfig{NoClientAuth: true})}, func(r *right) { r.account.Auth, r.account.SecretID = "password", "sec_1" })
	tail := "; rm -rf /srv/données"
	if _, err := b.exec(b.mustDial(b.to("db-1")), ": "+strings.Repeat("é", 5000)+tail); err != nil {
		t.Fatal(err)
	}
	tp := b.tapes.list()[0]
	if !tp.saw(tail) || !tp.saw(" command_3=") {
		t.Error("the end of the command is not in the recording")
	}
	for _, p := range pieces(strings.Repeat("é", 5000)+"x", maxEventText) {
		if len(p) > maxEventText || !utf8.ValidString(p) {
			t.Errorf("a piece of %d bytes, valid: %t", len(p), utf8.ValidString(p))
		}
	}
}
