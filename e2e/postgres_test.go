package e2e

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"caponier/e2e/harness"
)

// A core on PostgreSQL, over TLS with the server's certificate verified and a
// password: the main job works, the records say so; a session outlives the
// database, a new one does not begin without it; a server with another
// certificate is not spoken to.
func TestCoreOnPostgreSQL(t *testing.T) {
	needRig(t)
	dir := t.TempDir()
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	cert, key := selfSigned(t, dir, "localhost", "127.0.0.1")
	password := rand.Text()
	urlFile := filepath.Join(dir, "database-url")
	url := func(root string) error {
		return os.WriteFile(urlFile, []byte("postgres://postgres:"+password+"@127.0.0.1:5432/postgres?sslmode=verify-full&sslrootcert="+root+"\n"), 0o600)
	}
	if err := url(cert); err != nil {
		t.Fatal(err)
	}
	var pg *harness.Postgres
	w := newWorld(t, options{vpcs: []string{"a"}, tables: "[database]\nengine = \"postgres\"\nurl_file = \"" + urlFile + "\"\n", before: func(n *harness.Net) (err error) {
		pg, err = harness.StartPostgres(t.Context(), n, "core", filepath.Join(dir, "pg"), cert, key, password)
		return err
	}})
	if got := strings.TrimSpace(w.mustSSH(t, dbA, "hostname")); got != "db-a" {
		t.Errorf("the host calls itself %q", got)
	}
	if _, err := os.Stat(filepath.Join(w.core.Dir, "state", "core.db")); err == nil {
		t.Error("there is an SQLite database too")
	}
	s := w.shell(t, dbA)
	if err := pg.Stop(); err != nil {
		t.Fatal(err)
	}
	s.say(t, "echo alive-with''out-database")
	if err := s.proc.WaitOutput(t.Context(), patience, "alive-without-database"); err != nil {
		t.Fatal(err)
	}
	if r := w.ssh(t, dbA, "true"); r.code == 0 {
		t.Error("a session began that nobody can have decided or written down")
	}
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "new sessions work again", func() error {
		if r := w.ssh(t, dbA, "true"); r.code != 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	s.say(t, "echo one-session; exit")
	if shown := s.ended(t, patience); !strings.Contains(shown, "one-session") {
		t.Errorf("the session did not outlive the database: %q", shown)
	}
	// The recording of that session is whole: nothing was lost meanwhile.
	until(t, patience, "the recording is complete and has it all", func() error {
		for _, r := range w.recordings(t) {
			if text := w.cast(t, r.ID); r.Status == "complete" && strings.Contains(text, "alive-without-database") && strings.Contains(text, "one-session") {
				return nil
			}
		}
		return fmt.Errorf("%+v", w.recordings(t))
	})
	w.audited(t, "type=connection.closed", "the end of a connection", func(e harness.Event) bool { return e.Outcome == "ok" })

	// Somebody else's certificate.
	other := filepath.Join(dir, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	wrong, _ := selfSigned(t, other, "localhost", "127.0.0.1")
	if err := url(wrong); err != nil {
		t.Fatal(err)
	}
	r := w.runIn(t, "core", "", nil, w.bin.Core, "--config", w.core.File, "audit", "verify")
	if r.code == 0 || !strings.Contains(r.err, "certificate") {
		t.Errorf("a server with another certificate: %v", r)
	}
	if strings.Contains(r.out+r.err, password) {
		t.Error("the error shows the database's password")
	}
	if err := url(cert); err != nil {
		t.Fatal(err)
	}
}
