package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/vault"
	"caponier/e2e/harness"
	"caponier/shared/config"
	"caponier/shared/dial"
	"caponier/shared/edge"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

func TestMain(m *testing.M) {
	if os.Getenv(envHerd) != "" {
		herdMain()
		return
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait")) // lingers half a second
}

// core is a fleet behind a real TLS listener on loopback.
type core struct {
	*Fleet
	t    *testing.T
	db   *db.DB
	log  *audit.Log
	url  string
	addr string
	stop func()
}

func newVault(t testing.TB, d *db.DB) *vault.Vault {
	t.Helper()
	v, err := vault.New(t.Context(), vault.Config{DB: d, Audit: audit.New(d, time.Now), Log: slog.New(slog.DiscardHandler), KEK: vault.GenerateKEK()})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// startCore runs a core on d. addr is where it listens; empty: any port.
func startCore(t *testing.T, d *db.DB, v Sealer, addr string, change func(*Config)) *core {
	t.Helper()
	c := Config{DB: d, Audit: audit.New(d, time.Now), Vault: v, CoreID: "cor_a", CoreName: "core-a",
		Log: testLog(t), StatusEvery: time.Second}
	if change != nil {
		change(&c)
	}
	f, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if addr == "" {
		// A core that comes back opens the same one again.
		addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(harness.FreePort(t)))
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f.Handler(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		srv.Serve(tls.NewListener(tunnel.Listener(l), &tls.Config{Certificates: []tls.Certificate{outerCert(t)}, NextProtos: []string{"http/1.1"}}))
	})
	wg.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	k := &core{Fleet: f, t: t, db: d, log: c.Audit, addr: l.Addr().String(), url: "https://" + l.Addr().String()}
	k.stop = sync.OnceFunc(func() {
		cancel()
		srv.Close()
		wg.Wait()
	})
	t.Cleanup(k.stop)
	return k
}

// newCore runs a core on a fresh SQLite database.
func newCore(t *testing.T, change func(*Config)) *core {
	t.Helper()
	d := dbtest.SQLite(t)
	return startCore(t, d, newVault(t, d), "", change)
}

func testLog(t *testing.T) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// outerCert is what a load balancer or core shows to browsers; edges do not
// rely on it.
func outerCert(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"core.test"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (k *core) token(change func(*TokenSpec)) string {
	k.t.Helper()
	s := TokenSpec{Kind: "extender", Site: "vpc-a", MaxUses: 1000, TTL: time.Hour}
	if change != nil {
		change(&s)
	}
	_, text, err := k.CreateToken(k.t.Context(), audit.System, s)
	if err != nil {
		k.t.Fatal(err)
	}
	return text
}

// extender is an edge in this process that dials with dial.Dialer.
type extender struct {
	*edge.Edge
	cancel context.CancelFunc
	ended  chan error // Run's result
	stop   func()
}

func testEdge(t *testing.T, url, token, dir string, change func(*edge.Config)) *extender {
	t.Helper()
	// The targets of these tests are on loopback.
	exempt, err := dial.ParsePrefixes("exempt", []string{"127.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	d := dial.New(dial.Config{Rules: dial.Rules{Exempt: exempt}})
	var mu sync.Mutex
	var narrow dial.Rules
	c := edge.Config{URL: url, State: dir, Token: config.Secret(token), Kind: wire.Extender, Name: "ext", Build: "test",
		Transport: tunnel.WSS, Log: testLog(t), Grace: 2 * time.Second,
		Welcomed: func(w wire.Welcome) error {
			r, err := dial.ParseRules(w.Rules)
			mu.Lock()
			defer mu.Unlock()
			narrow = r
			return err
		},
		Stream: func(ctx context.Context, s tunnel.Stream) {
			mu.Lock()
			n := narrow
			mu.Unlock()
			conn, err := d.Dial(ctx, s.Preface().Dest, n)
			if err != nil {
				s.Refuse(dial.Public(err))
				return
			}
			if s.Confirm() != nil {
				conn.Close()
				return
			}
			tunnel.Relay(ctx, s, conn, tunnel.Counters{})
		},
	}
	if change != nil {
		change(&c)
	}
	e, err := edge.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	x := &extender{Edge: e, cancel: cancel, ended: make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.ended <- e.Run(ctx)
	}()
	x.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		e.Close()
	})
	t.Cleanup(x.stop)
	return x
}

// state makes a directory for an identity.
func state(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// patience is how long what must happen may take on a busy machine.
const patience = time.Minute

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not in %s: %s", patience, what)
		case <-tick.C:
		}
	}
}

// up waits until n nodes are connected.
func (k *core) up(n int) {
	k.t.Helper()
	eventually(k.t, "nodes connected", func() bool { return k.connected() == n })
}

// audited waits until an event of the type is in the log.
func (k *core) audited(typ audit.Type) {
	k.t.Helper()
	eventually(k.t, "audited "+string(typ), func() bool {
		n := 0
		err := k.db.QueryRowContext(k.t.Context(), `select count(*) from audit_events where type = $1`, string(typ)).Scan(&n)
		if err != nil {
			k.t.Fatal(err)
		}
		return n > 0
	})
}

// banner listens on loopback and greets with its name, then echoes.
func banner(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				c.Write([]byte(name))
				b := make([]byte, 1024)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					c.Write(b[:n])
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}
