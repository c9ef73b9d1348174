package bastion

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/recording"
	"caponier/core/internal/sshca"
	"caponier/core/internal/user"
	"caponier/core/internal/vault"
)

// rooms are the real rooms the bastion stands on, on a database of their own.
type rooms struct {
	t     testing.TB
	store *recording.Store
	dir   string
	ca    *sshca.CA
	users *user.Service
	web   *httptest.Server
	meta  *ids

	mu     sync.Mutex
	limits recording.Limits // guarded by mu
}

func (r *rooms) setLimits(f func(*recording.Limits)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.limits)
}

func (r *rooms) fileMax(n int64) { r.setLimits(func(l *recording.Limits) { l.FileMax = n }) }

// ids remembers the recordings made.
type ids struct {
	Recordings
	mu   sync.Mutex
	made []string // guarded by mu
}

func (i *ids) list() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.made)
}

func (i *ids) Create(ctx context.Context, m recording.Meta) (string, Recorder, error) {
	id, r, err := i.Recordings.Create(ctx, m)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.made = append(i.made, id)
	return id, r, err
}

// auditor may see every recording.
type auditor struct{}

func (auditor) Authenticate(_ *http.Request, source netip.Addr) (*api.Principal, error) {
	return &api.Principal{UserID: "usr_auditor", UserName: "auditor", Source: source, Via: "api",
		Permissions: map[api.Permission]bool{api.RecordingsView: true}}, nil
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func newRooms(t testing.TB) *rooms {
	t.Helper()
	d := dbtest.SQLite(t)
	log := audit.New(d, time.Now)
	v, err := vault.New(t.Context(), vault.Config{DB: d, Audit: log, Log: quiet, KEK: vault.GenerateKEK()})
	must(t, err)
	r := &rooms{t: t, dir: t.TempDir(), limits: recording.DefaultLimits()}
	r.limits.MinFree = 0
	r.store, err = recording.New(recording.Config{
		DB: d, Audit: log, Keys: v, Dir: r.dir, CoreID: "core_test",
		RolesOf: func(context.Context, string) ([]string, error) { return nil, nil },
		Limits: func() recording.Limits {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.limits
		}, Now: time.Now, Log: quiet,
	})
	must(t, err)
	r.ca, err = sshca.New(t.Context(), sshca.Config{DB: d, Vault: v, Audit: log, Log: quiet, Bastion: "core:2222", Separator: func() string { return "%" }})
	must(t, err)
	r.users, err = user.New(user.Config{DB: d, Audit: log, Sealer: v, Now: time.Now, Log: quiet, Authority: r.ca})
	must(t, err)
	r.meta = &ids{Recordings: FromStore(r.store)}
	f, err := api.New(api.Config{Auth: auditor{}, DB: d, Log: quiet})
	must(t, err)
	r.store.Routes(f)
	r.web = httptest.NewServer(f.Handler())
	t.Cleanup(func() {
		f.Close()
		r.web.Close()
		r.web.Client().CloseIdleConnections()
	})
	return r
}

// call asks the REST interface.
func (r *rooms) call(method, path string, status int, out any) []byte {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.web.URL+"/api/v1"+path, nil)
	must(r.t, err)
	req.Header.Set("Authorization", "Bearer x")
	resp, err := r.web.Client().Do(req)
	must(r.t, err)
	body, err := io.ReadAll(resp.Body)
	must(r.t, err, resp.Body.Close())
	if resp.StatusCode != status {
		r.t.Fatalf("%s %s: %s: %s", method, path, resp.Status, body)
	}
	if out != nil {
		must(r.t, json.Unmarshal(body, out))
	}
	return body
}

func (r *rooms) files(recordingID string) map[string]recording.File {
	r.t.Helper()
	var list struct{ Items []recording.File }
	r.call("GET", "/recordings/"+recordingID+"/files", 200, &list)
	m := map[string]recording.File{}
	for _, f := range list.Items {
		m[string(f.Direction)+" "+f.Path] = f
	}
	return m
}

// sum downloads a kept copy and returns its hash.
func (r *rooms) sum(f recording.File) [32]byte {
	r.t.Helper()
	var ticket struct{ Path string }
	r.call("POST", "/recordings/"+f.RecordingID+"/files/"+f.ID+"/ticket", 201, &ticket)
	return sha256.Sum256(r.call("GET", ticket.Path, 200, nil))
}

// Copies of what real clients transfer are whole and equal, whichever
// protocol and direction; a limit, or storage that fails, changes no transfer.
func TestFileCopies(t *testing.T) {
	r := newRooms(t)
	b := newBench(t, func(c *Config) { c.Recordings = r.meta })
	b.add("db-1", b.startSSHD())
	src, want := b.bigFile("src", 3<<20+17)
	up, down := filepath.Join(b.dir, "up"), filepath.Join(b.dir, "down")
	scp := func(mode, from, to string) {
		t.Helper()
		args := append([]string{mode, "-q", "-P", b.port, "-o", "BatchMode=yes", "-o", "User=" + b.to("db-1")}, b.options()...)
		if x := b.run("", "scp", append(args, from, to)...); x.code != 0 {
			t.Fatalf("scp %s %s %s: %v", mode, from, to, x)
		}
	}
	round := func(mode string) []recording.File {
		t.Helper()
		n := len(r.meta.list())
		scp(mode, src, "127.0.0.1:"+up)
		b.last()
		scp(mode, "127.0.0.1:"+up, down)
		b.last()
		b.same(up, want)
		b.same(down, want)
		must(t, os.Remove(up), os.Remove(down))
		var out []recording.File
		for i, name := range []string{"upload " + up, "download " + up} {
			f, ok := r.files(r.meta.list()[n+i])[name]
			if !ok || f.Size != 3<<20+17 || f.SHA256 != hex.EncodeToString(want[:]) {
				t.Errorf("scp %s: %s is listed as %+v", mode, name, f)
			}
			out = append(out, f)
		}
		return out
	}
	expect := func(what, status string, files []recording.File) {
		t.Helper()
		for _, f := range files {
			if f.Status != status {
				t.Errorf("%s: %s %s is %s, want %s", what, f.Direction, f.Path, f.Status, status)
			}
		}
	}
	for _, mode := range []string{"-O", "-s"} {
		r.fileMax(16 << 20)
		kept := round(mode)
		expect("with a limit", "stored", kept)
		for _, f := range kept {
			if r.sum(f) != want {
				t.Errorf("scp %s: the copy of the %s differs", mode, f.Direction)
			}
		}
		r.fileMax(1 << 20)
		expect("beyond the limit", "too_large", round(mode))
		r.fileMax(0)
		expect("without a limit", "not_stored", round(mode))
	}

	// Many small files in one session, and a download cut in the middle and
	// taken up again: the copy holds what was transferred.
	r.fileMax(16 << 20)
	var batch strings.Builder
	sums := map[string][32]byte{}
	for i := range 60 {
		f, sum := b.bigFile(fmt.Sprintf("small%d", i), 100+i)
		sums[fmt.Sprintf("upload %s/s%d", b.dir, i)] = sum
		fmt.Fprintf(&batch, "put %s %s/s%d\n", f, b.dir, i)
	}
	whole, err := os.ReadFile(src)
	must(t, err, os.WriteFile(down, whole[:1<<20], 0o600))
	fmt.Fprintf(&batch, "reget %s %s\n", src, down)
	sums["download "+src] = sha256.Sum256(whole[1<<20:])
	args := append([]string{"-q", "-P", b.port, "-b", "-", "-o", "User=" + b.to("db-1")}, b.options()...)
	if x := b.run(batch.String(), "sftp", append(args, "127.0.0.1")...); x.code != 0 {
		t.Fatalf("sftp: %v", x)
	}
	b.same(down, want)
	b.last()
	files := r.files(r.meta.list()[len(r.meta.list())-1])
	for name, sum := range sums {
		f := files[name]
		if f.Status != "stored" || f.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%s is listed as %+v", name, f)
		}
	}
	if f := files["download "+src]; r.sum(f) != sums["download "+src] {
		t.Error("the copy of the resumed download differs")
	}
}

// Storage that takes no copies stops no transfer; the list says so.
func TestFileCopyNotTaken(t *testing.T) {
	r := newRooms(t)
	r.fileMax(16 << 20)
	// From the moment the recording has begun, no room is left for copies.
	r.meta.Recordings = fills{r.meta.Recordings, func() { r.setLimits(func(l *recording.Limits) { l.MinFree = 1 << 62 }) }}
	b := newBench(t, func(c *Config) { c.Recordings = r.meta })
	b.add("db-1", b.startSSHD())
	src, want := b.bigFile("src", 1<<20)
	up := filepath.Join(b.dir, "up")
	args := append([]string{"-q", "-P", b.port, "-o", "BatchMode=yes", "-o", "User=" + b.to("db-1")}, b.options()...)
	if x := b.run("", "scp", append(args, src, "127.0.0.1:"+up)...); x.code != 0 {
		t.Fatalf("scp: %v", x)
	}
	b.same(up, want)
	b.last()
	f := r.files(r.meta.list()[0])["upload "+up]
	if f.Status != "not_stored" || f.SHA256 != hex.EncodeToString(want[:]) || f.Size != 1<<20 {
		t.Errorf("listed as %+v", f)
	}
}

// fills lets the storage run full after each recording began.
type fills struct {
	Recordings
	full func()
}

func (f fills) Create(ctx context.Context, m recording.Meta) (string, Recorder, error) {
	id, r, err := f.Recordings.Create(ctx, m)
	f.full()
	return id, r, err
}

// People log in with certificates of the real authority, and no others; a
// target accepts the certificate the real authority makes for it.
func TestUserCertificates(t *testing.T) {
	r := newRooms(t)
	b := newBench(t, func(c *Config) { c.Users, c.CA = r.users, r.ca })
	targets, err := r.ca.PublicKey(t.Context(), access.DefaultGroup)
	must(t, err)
	file := filepath.Join(b.dir, "targets_ca.pub")
	must(t, os.WriteFile(file, []byte(targets), 0o600))
	b.add("db-1", b.startSSHD("TrustedUserCAKeys "+file))
	demo, err := r.users.Create(t.Context(), audit.System, user.Draft{Name: "demo", Password: "correct horse battery"})
	must(t, err)
	other, err := r.users.Create(t.Context(), audit.System, user.Draft{Name: "other", Password: "correct horse battery"})
	must(t, err)

	sign := func(p *api.Principal, key ssh.PublicKey) *ssh.Certificate {
		t.Helper()
		c, err := r.ca.SignClient(t.Context(), p, key, time.Hour)
		must(t, err)
		return c
	}
	present := func(c *ssh.Certificate) result {
		t.Helper()
		must(t, os.WriteFile(b.key+"-cert.pub", ssh.MarshalAuthorizedKey(c), 0o600))
		return b.ssh(b.to("db-1"), "-o", "CertificateFile="+b.key+"-cert.pub", "--", "id", "-un")
	}
	good := sign(&api.Principal{UserID: demo.ID, UserName: "demo"}, b.keyPub)
	if x := present(good); x.code != 0 || x.out != b.me+"\n" {
		t.Fatalf("certificate of ours: %v", x)
	}
	if p := b.last().spec.Principal; p.UserID != demo.ID || p.UserName != "demo" {
		t.Errorf("logged in as %+v", p)
	}
	refused := map[string]*ssh.Certificate{
		"of somebody else": sign(&api.Principal{UserID: other.ID, UserName: "other"}, b.keyPub),
		"of another key":   sign(&api.Principal{UserID: demo.ID, UserName: "demo"}, newKey(t).PublicKey()),
	}
	foreign := *good
	must(t, foreign.SignCert(rand.Reader, newKey(t)))
	refused["of another authority"] = &foreign
	longer := *good
	longer.ValidBefore += 3600 // the signature does not cover it
	refused["that was changed"] = &longer
	must(t, r.ca.Revoke(t.Context(), good.Serial, audit.System))
	refused["that is revoked"] = good
	n := len(b.conns.list())
	for name, c := range refused {
		if x := present(c); x.code != 255 || !strings.Contains(x.err, "ermission denied") {
			t.Errorf("certificate %s: %v", name, x)
		}
	}
	if got := len(b.conns.list()); got != n {
		t.Errorf("%d connections were opened by refused certificates", got-n)
	}
}

// What is typed into a password prompt of the target is not in the recording,
// though its prompt and the command before it are.
func TestMaskedInput(t *testing.T) {
	r := newRooms(t)
	b := newBench(t, func(c *Config) { c.Recordings = r.meta })
	b.add("db-1", b.startSSHD())
	x := b.onTerminal(t, "xterm", 80, 24, "ssh", b.sshArgs(b.to("db-1"), "-tt", "--", "sh")...)
	x.want(`[#$] $`)
	x.send("echo marker-$((6*7))\r")
	x.want(`marker-42.*[#$] $`)
	x.send("stty -echo; printf 'Secret: '; read s; stty echo; echo \"got ${#s}\"\r")
	x.want(`[\n\r]+Secret: $`)
	x.send("hunter2-canary\r")
	x.want(`got 14.*[#$] $`)
	x.send("exit 3\r")
	if code := x.end(); code != 3 {
		t.Errorf("exit %d, want 3", code)
	}
	b.last()
	cast := string(r.call("GET", "/recordings/"+r.meta.list()[0]+"/asciicast", 200, nil))
	if strings.Contains(cast, "hunter2") || strings.Contains(cast, "canary") {
		t.Errorf("the secret is in the recording:\n%s", cast)
	}
	var typed strings.Builder
	for line := range strings.SplitSeq(cast, "\n") {
		var e []any
		if json.Unmarshal([]byte(line), &e) == nil && len(e) == 3 && e[1] == "i" {
			typed.WriteString(e[2].(string))
		}
	}
	if got := typed.String(); !strings.Contains(got, "echo marker-$((6*7))") || !strings.Contains(got, "****") || !strings.Contains(cast, "Secret: ") {
		t.Errorf("typed %q in\n%s", got, cast)
	}
}
