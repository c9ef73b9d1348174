package icap

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/e2e/harness"
	"caponier/shared/dial"
	"caponier/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// virus is the test file of the European Institute for Computer Antivirus
// Research, put together here so that this source is not one.
var virus = []byte(`X5O!P%@AP[4\PZX54(P^)7CC)7}` + `$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*`)

// near dials scanners on loopback, where tests have theirs.
func near(ctx context.Context, addr string) (net.Conn, error) {
	loopback, err := dial.ParsePrefixes("exempt", []string{"127.0.0.0/8"})
	if err != nil {
		return nil, err
	}
	return Through(dial.New(dial.Config{Rules: dial.Rules{Exempt: loopback}}))(ctx, addr)
}

// A scanner's address is dialled by the same rules as every other: nothing near
// the asker unless it is named.
func TestAddresses(t *testing.T) {
	asked := make(chan struct{}, 10)
	c := scanner(t, func(*bufio.Reader, io.Writer) { asked <- struct{}{} })
	for _, addr := range []string{c.addr, "localhost:1344", "169.254.169.254:80", "[fe80::1%25lo]:1344", "0.0.0.0:1344"} {
		by, err := New(Config{URL: "icap://" + addr + "/avscan", Timeout: time.Minute, Dial: Through(dial.New(dial.Config{}))})
		if err != nil {
			t.Fatal(err)
		}
		err = by.Scan(t.Context(), File{Size: 3, Body: strings.NewReader("abc")}, io.Discard)
		if we, ok := errors.AsType[*wire.Error](err); !ok || we.Code != wire.CodeRefused {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if len(asked) > 0 {
		t.Error("the scanner on loopback was asked")
	}
	if err := c.Scan(t.Context(), File{Size: 3, Body: strings.NewReader("abc")}, io.Discard); err == nil || len(asked) != 1 {
		t.Errorf("with loopback permitted: asked %d times, %v", len(asked), err)
	}
	if _, err := New(Config{URL: "icap://scan.example/x"}); err == nil {
		t.Error("a client without rules")
	}
}

// scanner answers one question after another as its script says.
func scanner(t *testing.T, f func(r *bufio.Reader, w io.Writer)) *Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f(bufio.NewReader(c), c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	c, err := New(Config{URL: "icap://" + l.Addr().String() + "/avscan", Timeout: time.Minute, Dial: near})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// until reads up to and with a text.
func until(r *bufio.Reader, text string) string {
	var b strings.Builder
	for !strings.HasSuffix(b.String(), text) {
		c, err := r.ReadByte()
		if err != nil {
			return b.String()
		}
		b.WriteByte(c)
	}
	return b.String()
}

func scan(c *Client, size int) (string, error) {
	var out bytes.Buffer
	err := c.Scan(context.Background(), File{Name: "a b.txt", Size: int64(size), Body: strings.NewReader(strings.Repeat("x", size))}, &out)
	return out.String(), err
}

func TestProtocol(t *testing.T) {
	const small, large = 100, 100_000
	ok := "ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
	for _, c := range []struct {
		name  string
		size  int
		say   func(r *bufio.Reader, w io.Writer)
		want  int // bytes that pass; -1: an error, -2: blocked
		error string
	}{
		{"nothing found in a small one", small, func(r *bufio.Reader, w io.Writer) {
			if got := until(r, "0; ieof\r\n\r\n"); !strings.Contains(got, "RESPMOD icap://") || !strings.Contains(got, "Preview: 4096") || !strings.Contains(got, "GET /a%20b.txt HTTP/1.1") {
				t.Errorf("it is asked: %q", got)
			}
			fmt.Fprint(w, "ICAP/1.0 204 No Content\r\n\r\n")
		}, small, ""},
		{"not interested in a large one", large, func(r *bufio.Reader, w io.Writer) {
			until(r, "\r\n0\r\n\r\n")
			fmt.Fprint(w, "ICAP/1.0 204 No Content\r\n\r\n")
		}, large, ""},
		{"all of a large one", large, func(r *bufio.Reader, w io.Writer) {
			until(r, "\r\n0\r\n\r\n")
			fmt.Fprint(w, "ICAP/1.0 100 Continue\r\n\r\n")
			until(r, "\r\n0\r\n\r\n")
			fmt.Fprintf(w, "%s%x\r\n%s\r\n0\r\n\r\n", ok, large, strings.Repeat("x", large))
		}, large, ""},
		{"changed", small, func(r *bufio.Reader, w io.Writer) {
			until(r, "ieof\r\n\r\n")
			fmt.Fprint(w, ok+"3;ext=1\r\nabc\r\n0\r\n\r\n")
		}, 3, ""},
		{"found, in a header", small, func(r *bufio.Reader, w io.Writer) {
			until(r, "ieof\r\n\r\n")
			fmt.Fprint(w, "ICAP/1.0 200 OK\r\nX-Infection-Found: Type=0; Resolution=2; Threat=Eicar;\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\nHTTP/1.1 200 OK\r\n\r\n3\r\nno!\r\n0\r\n\r\n")
		}, -2, "Eicar"},
		{"found, by status", small, func(r *bufio.Reader, w io.Writer) {
			until(r, "ieof\r\n\r\n")
			fmt.Fprint(w, "ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, null-body=26\r\n\r\nHTTP/1.1 403 Forbidden\r\n\r\n")
		}, -2, ""},
		{"led elsewhere", small, func(r *bufio.Reader, w io.Writer) {
			until(r, "ieof\r\n\r\n")
			fmt.Fprint(w, "ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, null-body=59\r\n\r\nHTTP/1.1 302 Found\r\nLocation: http://scan.example/page\r\n\r\n")
		}, -2, ""},
		{"no status", small, func(r *bufio.Reader, w io.Writer) {
			until(r, "ieof\r\n\r\n")
			fmt.Fprint(w, "ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=12\r\n\r\nHTTP/1.1\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
		}, -1, "no status"},
		{"cut answer", small, func(r *bufio.Reader, w io.Writer) {
			until(r, "ieof\r\n\r\n")
			fmt.Fprint(w, ok+"64\r\nxxx")
		}, -1, "unexpected EOF"},
		{"shorter than promised", small, func(r *bufio.Reader, w io.Writer) {
			until(r, "ieof\r\n\r\n")
			fmt.Fprint(w, "ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=39\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
		}, -1, "unexpected EOF"},
		{"an error", small, func(r *bufio.Reader, w io.Writer) {
			until(r, "ieof\r\n\r\n")
			fmt.Fprint(w, "ICAP/1.0 500 Server error\r\n\r\n")
		}, -1, "status 500"},
		{"silence", small, func(r *bufio.Reader, w io.Writer) { until(r, "ieof\r\n\r\n") }, -1, "EOF"},
		{"another protocol", small, func(r *bufio.Reader, w io.Writer) { fmt.Fprint(w, "HTTP/1.1 200 OK\r\n\r\n") }, -1, "does not speak ICAP"},
		{"endless line", small, func(r *bufio.Reader, w io.Writer) {
			until(r, "ieof\r\n\r\n")
			fmt.Fprint(w, "ICAP/1.0 200 OK\r\nX: "+strings.Repeat("x", 1<<20)+"\r\n\r\n")
		}, -1, "too long"},
		{"keeps it", large, func(r *bufio.Reader, w io.Writer) {
			until(r, "\r\n0\r\n\r\n")
			fmt.Fprint(w, "ICAP/1.0 100 Continue\r\n\r\n")
			until(r, "\r\n0\r\n\r\n")
			fmt.Fprint(w, "ICAP/1.0 204 No Content\r\n\r\n")
		}, -1, "keeps"},
	} {
		got, err := scan(scanner(t, c.say), c.size)
		switch {
		case c.want >= 0 && (err != nil || len(got) != c.want):
			t.Errorf("%s: %d bytes, %v; want %d", c.name, len(got), err, c.want)
		case c.want == -1 && (err == nil || errors.Is(err, ErrBlocked) || !strings.Contains(err.Error(), c.error)):
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.error)
		case c.want == -2 && (!errors.Is(err, ErrBlocked) || !strings.Contains(err.Error(), c.error)):
			t.Errorf("%s: %v, want blocked by %q", c.name, err, c.error)
		}
	}
	c, err := New(Config{URL: "icap://127.0.0.1:1/x", Timeout: time.Second, Dial: near})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := scan(c, small); err == nil || errors.Is(err, ErrBlocked) {
		t.Errorf("a scanner that is away: %v", err)
	}
	for _, bad := range []string{"", "http://a/b", "icap://", "icap://host", "icap://u:p@host/x", "icap://host/x y"} {
		if _, err := New(Config{URL: bad, Dial: near}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// A server that wants all of an answer says it again when it may pass (RFC 3507
// §4.9): with the status that it had, and that alone refuses nothing.
func TestAnswersOfAnyStatus(t *testing.T) {
	for _, x := range []struct {
		name         string
		status, says int
		head         string // of its answer
		blocked      bool
	}{
		{"a page that is not there", 404, 404, "", false},
		{"a broken server", 500, 500, "Content-Type: text/html\r\n", false},
		{"a redirection with a body", 302, 302, "", false},
		{"refused", 200, 403, "", true},
		{"refused otherwise", 404, 403, "", true},
		{"led elsewhere", 200, 307, "Location: http://scan.example/\r\n", true},
		{"found something in what is not there", 404, 404, "X-Virus-ID: Eicar\r\n", true},
	} {
		body := strings.Repeat("a page of many words ", 1000)
		c := scanner(t, func(r *bufio.Reader, w io.Writer) {
			if asked := until(r, "\r\n0\r\n\r\n"); strings.Contains(asked, "X-Blocked") || !strings.Contains(asked, fmt.Sprintf("HTTP/1.1 %d ", x.status)) {
				t.Errorf("%s: asked %.500q", x.name, asked)
			}
			fmt.Fprint(w, "ICAP/1.0 100 Continue\r\n\r\n")
			until(r, "\r\n0\r\n\r\n")
			head := fmt.Sprintf("HTTP/1.1 %d %s\r\n%s\r\n", x.says, http.StatusText(x.says), x.head)
			fmt.Fprintf(w, "ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=%d\r\n\r\n%s%x\r\n%s\r\n0\r\n\r\n", len(head), head, len(body), body)
		})
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://app.test/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp := &http.Response{StatusCode: x.status, Header: http.Header{"X-Blocked": {"by the application"}}, ContentLength: int64(len(body)), Body: io.NopCloser(strings.NewReader(body))}
		blocked, err := c.Response(req, resp)
		if err != nil || (blocked != nil) != x.blocked {
			t.Errorf("%s: blocked %+v, %v", x.name, blocked, err)
			continue
		}
		if blocked == nil {
			if b, err := io.ReadAll(resp.Body); string(b) != body || err != nil || resp.StatusCode != x.status {
				t.Errorf("%s: %d, %d bytes pass, %v", x.name, resp.StatusCode, len(b), err)
			}
		}
		resp.Body.Close()
	}
}

// realScanner runs c-icap with the engine of ClamAV, which knows one virus.
func realScanner(t *testing.T) *Client {
	t.Helper()
	for _, tool := range []string{"c-icap", "clamscan", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil || os.Getuid() != 0 {
			harness.Lacks(t, "%s, as root: %v: run make setup", tool, err)
		}
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(harness.FreePort(t)))
	dir := t.TempDir()
	modules, err := filepath.Glob("/usr/lib/*/c_icap")
	if err != nil || len(modules) != 1 {
		t.Fatalf("modules of c-icap: %v %v", modules, err)
	}
	conf := strings.Join([]string{
		"PidFile " + filepath.Join(dir, "pid"), "CommandsSocket " + filepath.Join(dir, "ctl"), "Port " + addr, "StartServers 1", "MaxServers 1",
		"MinSpareThreads 2", "MaxSpareThreads 4", "ThreadsPerChild 4", "Timeout 30", "ServerAdmin nobody", "ServerName icap", "TmpDir " + dir,
		"LoadMagicFile /etc/c-icap/c-icap.magic", "TemplateDir /usr/share/c_icap/templates/", "TemplateDefaultLanguage en",
		"ModulesDir " + modules[0], "ServicesDir " + modules[0], "ServerLog " + filepath.Join(dir, "server.log"),
		"Service antivirus_module virus_scan.so", "ServiceAlias avscan virus_scan?allow204=on&sizelimit=off&mode=simple",
		"virus_scan.ScanFileTypes TEXT DATA EXECUTABLE ARCHIVE", "virus_scan.MaxObjectSize 64M", "virus_scan.StartSendPercentDataAfter 64M",
		"virus_scan.DefaultEngine clamav", "Module common clamav_mod.so", "clamav_mod.TmpDir " + dir}, "\n") + "\n"
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o755); err != nil {
		t.Fatal(err)
	}
	signature := fmt.Sprintf("%x:%d:Eicar-Test-Signature\n", md5.Sum(virus), len(virus))
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644), os.WriteFile(filepath.Join(dir, "db", "test.hdb"), []byte(signature), 0o644)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$1/db" /var/lib/clamav && exec c-icap -N -f "$1/conf"`, "sh", dir)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { cmd.Wait(); close(gone) }()
	t.Cleanup(func() { cmd.Process.Signal(os.Interrupt); <-gone })
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(2 * time.Minute); ; {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		}
		select {
		case <-tick.C:
		case <-gone:
			t.Fatalf("c-icap ended: %s", out.String())
		case <-deadline:
			t.Fatal("c-icap does not listen")
		}
	}
	c, err := New(Config{URL: "icap://" + addr + "/avscan", Dial: near})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRealScanner(t *testing.T) {
	c := realScanner(t)
	for _, up := range []bool{false, true} {
		clean := bytes.Repeat([]byte("an ordinary file\n"), 200_000)
		for _, n := range []int{10, 4096, 4097, len(clean)} {
			var out bytes.Buffer
			if err := c.Scan(t.Context(), File{Upload: up, Name: "x", Size: int64(n), Body: bytes.NewReader(clean[:n])}, &out); err != nil || !bytes.Equal(out.Bytes(), clean[:n]) {
				t.Errorf("upload %v, %d clean bytes: %d pass, %v", up, n, out.Len(), err)
			}
		}
		var out bytes.Buffer
		if err := c.Scan(t.Context(), File{Upload: up, Name: "eicar.com", Size: int64(len(virus)), Body: bytes.NewReader(virus)}, &out); !errors.Is(err, ErrBlocked) || !strings.Contains(err.Error(), "Eicar") || bytes.Contains(out.Bytes(), virus[:20]) {
			t.Errorf("upload %v, a virus: %v, %q passes", up, err, out.String())
		}
	}
	// As the proxy asks.
	req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://app.test/up?x=1", io.NopCloser(bytes.NewReader(virus)))
	if blocked, err := c.Request(req); err != nil || blocked == nil || !strings.Contains(blocked.Header.Get("X-Infection-Found"), "Eicar") {
		t.Errorf("a request with a virus: %+v, %v", blocked, err)
	}
	resp := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/plain"}}, ContentLength: 5, Body: io.NopCloser(strings.NewReader("clean"))}
	if blocked, err := c.Response(req, resp); err != nil || blocked != nil {
		t.Errorf("a clean answer: %+v, %v", blocked, err)
	} else if b, err := io.ReadAll(resp.Body); string(b) != "clean" || err != nil {
		t.Errorf("a clean answer reads %q, %v", b, err)
	}
	resp.Body.Close()
	// A page that is not there passes as well, and is looked at as well.
	for _, x := range []struct {
		body    []byte
		blocked bool
	}{{bytes.Repeat([]byte("<p>There is nothing here.\n"), 1000), false}, {virus, true}} {
		resp := &http.Response{StatusCode: 404, Header: http.Header{"Content-Type": {"text/plain"}}, ContentLength: int64(len(x.body)), Body: io.NopCloser(bytes.NewReader(x.body))}
		blocked, err := c.Response(req, resp)
		if err != nil || (blocked != nil) != x.blocked {
			t.Errorf("%.10q: %+v, %v", x.body, blocked, err)
		} else if blocked == nil {
			if b, err := io.ReadAll(resp.Body); !bytes.Equal(b, x.body) || err != nil {
				t.Errorf("%d of %d bytes pass, %v", len(b), len(x.body), err)
			}
		}
		resp.Body.Close()
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("ICAP/1.0 204 No Content\r\n\r\n"))
	f.Add([]byte("ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\nHTTP/1.1 200 OK\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		c, err := New(Config{URL: "icap://scanner/x", Timeout: time.Second, Dial: func(context.Context, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				go io.Copy(io.Discard, theirs)
				theirs.Write(answer)
			}()
			return ours, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		// Whatever it says: no panic, no more than it sent or we had.
		if err := c.Scan(t.Context(), File{Size: 3, Body: strings.NewReader("abc")}, &out); err == nil && out.Len() > len(answer)+3 {
			t.Errorf("%d bytes came out of an answer of %d", out.Len(), len(answer))
		}
	})
}
