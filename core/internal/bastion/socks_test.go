package bastion

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"caponier/core/internal/access"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

func TestSOCKSWithPassword(t *testing.T) {
	b := newBench(t)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "inside "+r.Host)
	}))
	defer web.Close()
	b.add("api-1", &sshd{addr: web.Listener.Addr().String()}, func(r *right) {
		r.target.Kind, r.target.Port, r.account, r.features = target.TCP, 8080, nil, access.Forward
	})
	curl := func(login, url string) result {
		return b.run("", "curl", "-sS", "--max-time", "20", "--noproxy", "", "--proxy", "socks5h://"+login+"@"+b.socks, url)
	}
	const good = "demo:correct%20horse"
	if r := curl(good, "http://api-1:8080/"); r.code != 0 || r.out != "inside api-1:8080" {
		t.Errorf("by name: %v", r)
	}
	l := b.last()
	if l.spec.Kind != "socks" || l.in == 0 || l.out == 0 {
		t.Errorf("got %+v, %d in, %d out", l.spec, l.in, l.out)
	}
	if r := curl(good, "http://10.10.0.5.vpc-a.caponier:8080/"); r.code != 0 {
		t.Errorf("by site and address: %v", r)
	}
	// 2 = not allowed by ruleset (RFC 1928 §6).
	for _, url := range []string{"http://none:8080/", "http://127.0.0.1:1/", "http://api-1:81/"} {
		if r := curl(good, url); r.code != 97 || !strings.Contains(r.err, "(2)") {
			t.Errorf("%s: %v", url, r)
		}
	}
	if r := curl("demo:wrong", "http://api-1:8080/"); r.code == 0 {
		t.Errorf("wrong password: %v", r)
	}
	b.dialer.change(func() {
		b.dialer.fail["vpc-a/10.10.0.5:8080"] = wire.Errorf(wire.CodeUnreachable, "No extender of site vpc-a is connected.")
	})
	if r := curl(good, "http://api-1:8080/"); r.code != 97 || !strings.Contains(r.err, "(4)") {
		t.Errorf("no extender: %v", r)
	}
}

func TestSOCKSWithoutPassword(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	proxied := func(login, host string) result {
		return b.run("", "ssh", append(b.options(), "-o", "BatchMode=yes", "-o", "ProxyCommand=nc -X 5 -x "+b.socks+" %h %p", "-l", login, host, "echo in")...)
	}
	if r := proxied("demo%"+b.me, "db-1"); r.code != 0 || r.out != "in\n" {
		t.Fatalf("with account: %v", r)
	}
	if l := b.last(); l.spec.TargetName != "db-1" || l.spec.Principal.Via != "socks" || len(b.tapes.list()) != 1 {
		t.Errorf("got %+v, %d recordings", l.spec, len(b.tapes.list()))
	}
	if r := proxied("demo", "db-1"); r.code != 0 {
		t.Errorf("the only account: %v", r)
	}
	if r := proxied("demo", "10.10.0.5.vpc-a.caponier"); r.code != 0 {
		t.Errorf("by address: %v", r)
	}
	if r := proxied("demo%"+b.me, "none"); r.code != exitRefused || !strings.Contains(r.err, denied) {
		t.Errorf("denied target: %v", r)
	}
	// Before the login an unknown destination looks like any other.
	if r := proxied("nobody", "db-1"); r.code != 255 || !strings.Contains(r.err, "Permission denied (password,publickey,keyboard-interactive)") {
		t.Errorf("no login: %v", r)
	}
	if r := proxied("nobody", "none"); r.code != 255 || !strings.Contains(r.err, "Permission denied (password,publickey,keyboard-interactive)") {
		t.Errorf("no login, no target: %v", r)
	}
}

func TestSOCKSProtocol(t *testing.T) {
	b := newBench(t)
	tests := []struct {
		name     string
		in, want []byte
	}{
		{"version 4", []byte{4, 1, 0, 22, 1, 2, 3, 4, 0}, nil},
		{"no common method", []byte{5, 1, 9}, []byte{5, 0xff}},
		{"bind", []byte{5, 1, 0, 5, 2, 0, 1, 1, 2, 3, 4, 0, 22}, []byte{5, 0, 5, 7, 0, 1, 0, 0, 0, 0, 0, 0}},
		{"address type", []byte{5, 1, 0, 5, 1, 0, 9}, []byte{5, 0, 5, 8, 0, 1, 0, 0, 0, 0, 0, 0}},
		{"port 0", []byte{5, 1, 0, 5, 1, 0, 1, 1, 2, 3, 4, 0, 0}, []byte{5, 0, 5, 8, 0, 1, 0, 0, 0, 0, 0, 0}},
		{"bad name", []byte{5, 1, 0, 5, 1, 0, 3, 2, 'a', '\n', 0, 22}, []byte{5, 0, 5, 8, 0, 1, 0, 0, 0, 0, 0, 0}},
		{"wrong login", []byte{5, 2, 0, 2, 1, 4, 'd', 'e', 'm', 'o', 1, 'x'}, []byte{5, 2, 1, 1}},
	}
	for _, tt := range tests {
		c, err := net.Dial("tcp", b.socks)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(tt.in); err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(c)
		_ = c.Close()
		if !bytes.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func FuzzSOCKS(f *testing.F) {
	f.Add([]byte{5, 1, 0}, []byte{1, 1, 'a', 1, 'b'}, []byte{5, 1, 0, 3, 1, 'x', 0, 22})
	f.Add([]byte{5, 2, 0, 2}, []byte{1, 255}, []byte{5, 1, 0, 4, 0, 0})
	f.Fuzz(func(t *testing.T, greeting, auth, request []byte) {
		if m, err := readGreeting(bytes.NewReader(greeting)); err == nil && m != methodNone && m != methodPassword && m != methodRefused {
			t.Fatalf("picked method %d", m)
		}
		if name, pw, err := readAuth(bytes.NewReader(auth)); err == nil && (name == "" || len(name) > 255 || len(pw) > 255) {
			t.Fatalf("read %q, %q", name, pw)
		}
		host, port, code, err := readRequest(bytes.NewReader(request))
		if err == nil && code == replyOK && (host == "" || port < 1 || port > 65535 || strings.ContainsAny(host, " \n\x00")) {
			t.Fatalf("read %q, %d", host, port)
		}
	})
}
