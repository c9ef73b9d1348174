package webaccess

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/fleet"
	"caponier/shared/config"
	"caponier/shared/control"
	"caponier/shared/edge"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// box is a carrier or a webproxy as the wire describes it.
type box struct {
	*edge.Edge
	t    testing.TB
	id   string
	name string
	kind wire.NodeKind

	mu       sync.Mutex
	carrier  map[string]wire.CarrierSession
	proxy    map[string]wire.WebProxySession
	ended    map[string]bool
	ending   map[string]bool // a carrier's sessions that are over there, and core was not told why
	order    []string        // what it was asked, in order
	refuse   *wire.Error
	stuck    int             // how many times it says that a session is still ending
	refusals int             // how many sessions are refused before one is taken
	started  func(id string) // called when a session was started, before that is told
	capacity wire.WebCapacity
	files    map[string]string
	moving   chan string         // names of files that begin to move; may be nil
	broke    chan string         // and of uploads that broke off
	holds    map[string][]string // by session; nil: it does not say what waits
	live     context.CancelFunc
	done     chan struct{}
	dir      string
}

func (b *box) set(f func(*box)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
}

// node starts a carrier or webproxy.
func (k *core) node(kind wire.NodeKind, name string, tweak ...func(*box)) *box {
	k.t.Helper()
	b := &box{t: k.t, name: name, kind: kind, carrier: map[string]wire.CarrierSession{}, proxy: map[string]wire.WebProxySession{},
		ended: map[string]bool{}, files: map[string]string{}, capacity: wire.WebCapacity{Max: 10, Room: 10, Warm: 2}, dir: filepath.Join(k.t.TempDir(), "state")}
	if kind == wire.WebProxy {
		b.capacity.Address = name + ".test:18443"
	}
	for _, f := range tweak {
		f(b)
	}
	must(k.t, os.Mkdir(b.dir, 0o700))
	_, token, err := k.fleet.CreateToken(k.t.Context(), audit.System, fleet.TokenSpec{Kind: string(kind), MaxUses: 1, TTL: time.Hour})
	must(k.t, err)
	b.up(k.url, token)
	eventually(k.t, name+" reports", func() bool {
		for _, o := range k.fleet.Online(kind) {
			if o.Name == name && o.Status.Web != nil {
				b.id = o.ID
				return true
			}
		}
		return false
	})
	return b
}

// up connects the node; down cuts it off, its sessions stay.
func (b *box) up(url, token string) {
	b.t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathCarrierSessions, b.states)
	mux.HandleFunc("GET "+wire.PathWebProxySessions, b.states)
	mux.HandleFunc("PUT "+wire.PathCarrierSessions+"/{id}", b.putCarrier)
	mux.HandleFunc("PUT "+wire.PathWebProxySessions+"/{id}", b.putProxy)
	mux.HandleFunc("DELETE "+wire.PathCarrierSessions+"/{id}", b.end)
	mux.HandleFunc("DELETE "+wire.PathWebProxySessions+"/{id}", b.end)
	e, err := edge.New(edge.Config{URL: url, State: b.dir, Token: config.Secret(token), Kind: b.kind, Name: b.name, Build: "test", Transport: tunnel.WSS,
		Log: quiet(b.t), Grace: time.Second, Control: mux, Stream: b.stream, Status: func(s *wire.Status) {
			b.mu.Lock()
			defer b.mu.Unlock()
			c := b.capacity
			s.Web = &c
		}})
	must(b.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	b.Edge, b.live, b.done = e, cancel, done
	go func() {
		defer close(done)
		e.Run(ctx)
		e.Close()
	}()
	b.t.Cleanup(func() { cancel(); <-done })
}

func (b *box) down() {
	b.live()
	<-b.done
}

func (b *box) states(w http.ResponseWriter, _ *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out wire.WebStates
	for id, s := range b.carrier {
		out.Sessions = append(out.Sessions, wire.WebState{ID: id, Revision: s.Revision, Ending: b.ending[id]})
	}
	out.Holds = b.holds != nil
	for id, s := range b.proxy {
		out.Sessions = append(out.Sessions, wire.WebState{ID: id, Revision: s.Revision, Holds: b.holds[id]})
	}
	control.Reply(w, out)
}

func (b *box) putCarrier(w http.ResponseWriter, r *http.Request) {
	var s wire.CarrierSession
	if !control.ReadUpTo(w, r, &s, wire.MaxWebBody) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.order = append(b.order, "PUT "+s.ID)
	if b.refuse != nil {
		control.Reply(w, wire.CarrierAck{Error: b.refuse})
		return
	}
	if b.ending[s.ID] {
		b.t.Errorf("%s: PUT of %s, which is ending", b.name, s.ID)
	}
	if old, ok := b.carrier[s.ID]; ok && old.Revision >= s.Revision {
		b.t.Errorf("%s: revision %d after %d", b.name, s.Revision, old.Revision)
	}
	b.carrier[s.ID] = s
	if b.started != nil {
		b.mu.Unlock()
		b.started(s.ID)
		b.mu.Lock()
	}
	control.Reply(w, wire.CarrierAck{Revision: s.Revision, Warm: b.capacity.Warm > 0})
}

func (b *box) putProxy(w http.ResponseWriter, r *http.Request) {
	var s wire.WebProxySession
	if !control.ReadUpTo(w, r, &s, wire.MaxWebBody) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.order = append(b.order, "PUT "+s.ID)
	if b.refusals > 0 {
		b.refusals--
		control.Reply(w, wire.WebAck{Error: wire.Errorf(wire.CodeLimit, "not yet")})
		return
	}
	if b.refuse != nil {
		control.Reply(w, wire.WebAck{Error: b.refuse})
		return
	}
	if old, ok := b.proxy[s.ID]; ok && old.Revision >= s.Revision {
		b.t.Errorf("%s: revision %d after %d", b.name, s.Revision, old.Revision)
	}
	b.proxy[s.ID] = s
	control.Reply(w, wire.WebAck{Revision: s.Revision})
}

func (b *box) end(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := r.PathValue("id")
	if b.stuck > 0 {
		b.stuck--
		control.Reply(w, wire.WebAck{Error: wire.Errorf(wire.CodeTimeout, "the session is still ending")})
		return
	}
	delete(b.carrier, id)
	delete(b.proxy, id)
	b.ended[id] = true
	control.Reply(w, wire.WebAck{})
}

// has returns what the node was told of a session.
func (b *box) forCarrier(id string) (wire.CarrierSession, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.carrier[id]
	return s, ok
}

func (b *box) forProxy(id string) (wire.WebProxySession, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.proxy[id]
	return s, ok
}

func (b *box) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.carrier) + len(b.proxy)
}

// stream serves core's streams: the screen greets with its name and echoes,
// files are a small HTTP server.
func (b *box) stream(_ context.Context, s tunnel.Stream) {
	p := s.Preface()
	if _, ok := b.forProxy(p.Connection); ok && p.Dest == wire.SessionProxy {
		s.Write([]byte("proxy "))
		io.Copy(s, s)
		return
	}
	if _, ok := b.forCarrier(p.Connection); !ok {
		s.Refuse(wire.Errorf(wire.CodeRefused, "no such session"))
		return
	}
	switch p.Dest {
	case wire.ScreenControl, wire.ScreenWatch:
		s.Write([]byte("RFB " + p.Dest))
		io.Copy(s, s)
	case wire.SessionFiles:
		b.serveFiles(s)
	case wire.SessionSound:
		b.play(s, p.Connection)
	default:
		s.Refuse(wire.Errorf(wire.CodeBadRequest, "unknown destination"))
	}
}

// play sends a block for each that was heard of, and the first; its first byte
// counts. It ends when the session may not be heard any more.
func (b *box) play(s tunnel.Stream, id string) {
	defer s.Close()
	for n := byte(1); ; n++ {
		c, ok := b.forCarrier(id)
		if !ok || !c.Policy.Sound || c.Locked {
			return
		}
		block := make([]byte, wire.SoundBlock)
		block[0] = n
		if _, err := s.Write(block); err != nil {
			return
		}
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			return
		}
	}
}

// onceListener hands one connection to an HTTP server.
type onceListener struct {
	c    net.Conn
	used sync.Once
	done chan struct{}
}

func (l *onceListener) Accept() (net.Conn, error) {
	var c net.Conn
	l.used.Do(func() { c = closing{l.c, sync.OnceFunc(func() { close(l.done) })} })
	if c != nil {
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}
func (l *onceListener) Close() error   { return nil }
func (l *onceListener) Addr() net.Addr { return &net.UnixAddr{Name: "files", Net: "unix"} }

type closing struct {
	net.Conn
	closed func()
}

func (c closing) Close() error {
	err := c.Conn.Close()
	c.closed()
	return err
}

func (b *box) serveFiles(s tunnel.Stream) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /files", func(w http.ResponseWriter, _ *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		var list wire.WebFiles
		for name, text := range b.files {
			list.Files = append(list.Files, wire.WebFile{Path: name, Size: int64(len(text)), Modified: 1})
		}
		slices.SortFunc(list.Files, func(a, b wire.WebFile) int { return strings.Compare(a.Path, b.Path) })
		control.Reply(w, list)
	})
	mux.HandleFunc("GET /files/{path...}", func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		text, ok := b.files[r.PathValue("path")]
		b.mu.Unlock()
		if !ok {
			http.Error(w, "no such file", http.StatusNotFound)
			return
		}
		if strings.HasSuffix(r.PathValue("path"), "folder") {
			w.Header().Set("Content-Type", "application/x-tar")
		}
		io.WriteString(w, text)
		if strings.HasSuffix(r.PathValue("path"), "endless") {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			b.mu.Lock()
			broke := b.broke
			b.mu.Unlock()
			broke <- r.PathValue("path")
		}
	})
	mux.HandleFunc("PUT /files/{path...}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("path")
		if strings.HasSuffix(name, "eicar") {
			http.Error(w, "the scanner found EICAR", http.StatusUnprocessableEntity)
			return
		}
		b.mu.Lock()
		moving, broke := b.moving, b.broke
		b.mu.Unlock()
		if moving != nil {
			moving <- name
		}
		text, err := io.ReadAll(r.Body)
		if err != nil {
			if broke != nil {
				broke <- name
			}
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if r.URL.Query().Has("tar") {
			name = "tar"
		}
		b.set(func(b *box) { b.files[name] = string(text) })
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("DELETE /files/{path...}", func(w http.ResponseWriter, r *http.Request) {
		b.set(func(b *box) { delete(b.files, r.PathValue("path")) })
		w.WriteHeader(http.StatusNoContent)
	})
	l := &onceListener{c: s, done: make(chan struct{})}
	srv := &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	srv.Serve(l)
	srv.Close()
}

// credential asks for the credential as a webproxy does.
func (b *box) credential(ask wire.WebCredentialAsk) wire.WebCredential {
	b.t.Helper()
	key, err := wire.NewWebCredentialKey(&ask)
	must(b.t, err)
	var sealed wire.WebCredentialSealed
	must(b.t, control.Call(b.t.Context(), b.Session(), "POST", wire.PathWebCredential, ask, &sealed))
	if sealed.Error != nil {
		return wire.WebCredential{Error: sealed.Error}
	}
	c, err := key.Open(ask, sealed.Sealed)
	must(b.t, err)
	return c
}
