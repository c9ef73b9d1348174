package api

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"

	"caponier/core/internal/db"
)

// Prefix is where the interface lives.
const Prefix = "/api/v1"

// Config is what a Frame needs.
type Config struct {
	// Auth authenticates callers. Required.
	Auth Authenticator
	// DB feeds the event stream with notes of changes. Required.
	DB *db.DB
	// Log receives the access log and causes of internal errors. Required.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Proxies are the proxies in front of core.
	Proxies TrustedProxies
	// Origins are further origins ("https://pam.example.org") whose pages may
	// write with the session cookie; the origin core is reached by always may.
	Origins []string
	// Timeout ends an operation; 0 means 30 s. Raw operations have none.
	Timeout time.Duration
	// Heartbeat is the pause between signs of life on the event stream and
	// between checks that its reader is still logged in; 0 means 15 s.
	Heartbeat time.Duration
	// Metrics is where the frame registers its metrics; nil means nowhere.
	Metrics prometheus.Registerer
	// Version is shown in the OpenAPI document.
	Version string
}

// Frame is the REST frame rooms register on. Register everything first; from
// the first request on it is safe for concurrent use.
type Frame struct {
	auth      Authenticator
	db        *db.DB
	log       *slog.Logger
	now       func() time.Time
	proxies   TrustedProxies
	timeout   time.Duration
	heartbeat time.Duration
	origin    *http.CrossOriginProtection
	metrics   *metrics
	replay    *replayStore
	events    *hub

	mux  *http.ServeMux
	huma huma.API
	ops  []Op
	ids  map[string]bool
	// naming is the ID of the operation being registered, for schema names.
	naming string
	spec   func() ([]byte, error)
}

// New makes a frame with the routes it has by itself: the OpenAPI document
// and the event stream.
func New(c Config) (*Frame, error) {
	if c.Auth == nil || c.DB == nil || c.Log == nil {
		return nil, errors.New("api: Auth, DB and Log are required")
	}
	f := &Frame{
		auth: c.Auth, db: c.DB, log: c.Log, now: c.Now, proxies: c.Proxies, timeout: c.Timeout, heartbeat: c.Heartbeat,
		origin: http.NewCrossOriginProtection(), mux: http.NewServeMux(), ids: map[string]bool{}, events: newHub(),
	}
	if f.now == nil {
		f.now = time.Now
	}
	if f.timeout == 0 {
		f.timeout = 30 * time.Second
	}
	if f.heartbeat == 0 {
		f.heartbeat = 15 * time.Second
	}
	for _, o := range c.Origins {
		if err := f.origin.AddTrustedOrigin(o); err != nil {
			return nil, fmt.Errorf("api: origin %q: %w", o, err)
		}
	}
	f.replay = &replayStore{db: f.db, log: f.log, now: f.now}
	var err error
	if f.metrics, err = newMetrics(c.Metrics); err != nil {
		return nil, err
	}
	f.huma = huma.NewAPI(f.humaConfig(c.Version), adapter{f})
	f.spec = sync.OnceValues(f.document)
	f.ownRoutes()
	return f, nil
}

func (f *Frame) humaConfig(version string) huma.Config {
	hc := huma.DefaultConfig("Caponier", version)
	hc.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", f.schemaNamer())
	hc.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"bearer": {Type: "http", Scheme: "bearer"},
		"cookie": {Type: "apiKey", In: "cookie", Name: "__Host-caponier"},
	}
	hc.Security = []map[string][]string{{"bearer": {}}, {"cookie": {}}}
	hc.Servers = []*huma.Server{{URL: Prefix}}
	hc.OpenAPIPath, hc.DocsPath, hc.SchemasPath = "", "", ""
	hc.CreateHooks = nil
	hc.RejectUnknownQueryParameters = true
	hc.Transformers = []huma.Transformer{oneShape}
	hc.Components.Schemas.Schema(reflect.TypeFor[Problem](), true, "Problem")
	return hc
}

var qualified = regexp.MustCompile(`(?:[\w.-]+/)*(\w+)\.(\w+)`)

// schemaNamer names component schemas so that equal type names of two rooms
// do not collide: TargetAccount, UserAccount.
func (f *Frame) schemaNamer() func(t reflect.Type, hint string) string {
	names, taken := map[reflect.Type]string{}, map[string]reflect.Type{}
	return func(t reflect.Type, hint string) string {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if name, ok := names[t]; ok {
			return name
		}
		name := camel(f.naming) + camel(hint)
		if t.Name() != "" {
			name = qualified.ReplaceAllStringFunc(t.String(), func(q string) string {
				m := qualified.FindStringSubmatch(q)
				if m[1] == "api" {
					return camel(m[2])
				}
				return camel(m[1]) + camel(m[2])
			})
			name = camel(name)
		}
		for base, n := name, 2; taken[name] != nil; n++ {
			name = base + itoa(n)
		}
		names[t], taken[name] = name, t
		return name
	}
}

// camel joins the words of s, each with a capital first letter.
func camel(s string) string {
	var b strings.Builder
	up := true
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9':
			if up && r >= 'a' && r <= 'z' {
				r -= 'a' - 'A'
			}
			b.WriteRune(r)
			up = false
		default:
			up = true
		}
	}
	return b.String()
}

// adapter puts huma's operations behind the frame's guard.
type adapter struct{ f *Frame }

func (a adapter) Handle(d *huma.Operation, h func(huma.Context)) {
	op := d.Metadata[metaOp].(Op)
	a.f.handle(op, false, func(w http.ResponseWriter, r *http.Request) {
		h(humago.NewContext(d, r, w))
	})
}

func (a adapter) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.f.mux.ServeHTTP(w, r) }

// document renders the OpenAPI document, once everything is registered.
func (f *Frame) document() ([]byte, error) {
	// huma registers its own error model with every operation; nothing refers
	// to it, because every operation answers with a Problem.
	schemas := f.huma.OpenAPI().Components.Schemas.Map()
	for name := range schemas {
		if strings.HasPrefix(name, "HumaError") {
			delete(schemas, name)
		}
	}
	b, err := f.huma.OpenAPI().MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("render OpenAPI document: %w", err)
	}
	return b, nil
}

func (f *Frame) ownRoutes() {
	RegisterRaw(f, Op{
		Method: "GET", Path: "/openapi.json", ID: "get-openapi", Tag: "meta", Who: Public(), Type: "application/openapi+json",
		Summary: "This interface as an OpenAPI 3.1 document",
	}, func(w http.ResponseWriter, r *http.Request) {
		b, err := f.spec()
		if err != nil {
			f.Fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/openapi+json")
		w.Write(b)
	})
	RegisterRaw(f, Op{
		Method: "GET", Path: "/events", ID: "stream-events", Tag: "events", Who: Self(), Type: "text/event-stream",
		Summary: "Changes as server-sent events, as far as the caller may see them",
	}, f.serveEvents)
}

// Close ends the event streams, so that a server can shut down. Idempotent.
func (f *Frame) Close() { f.events.close() }
