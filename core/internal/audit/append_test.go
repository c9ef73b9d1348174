package audit

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

func TestAppendTogetherWithItsChange(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		err := d.Tx(t.Context(), func(tx *db.Tx) error {
			if err := x.Append(t.Context(), tx, Event{Type: UserCreated}); err != nil {
				t.Fatal(err)
			}
			return db.ErrConflict
		})
		if err != db.ErrConflict {
			t.Fatal(err)
		}
		x.write(1)
		if r := x.verify(); !r.OK || r.Events != 1 || r.Last != 1 {
			t.Errorf("a rolled back event left something: %+v", r)
		}
	})
}

// TestConcurrentAppends wants a chain without gaps from many writers.
func TestConcurrentAppends(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		l := New(d, nil)
		const writers, each = 8, 15
		var wg sync.WaitGroup
		errs := make(chan error, writers*each)
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					errs <- l.Write(t.Context(), Event{Type: ChannelOpened, Fields: map[string]string{"w": fmt.Sprint(w, i)}})
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
		r, err := l.Verify(t.Context(), newKey("ours"), "")
		if err != nil || !r.OK || r.Last != writers*each {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestAppendBoundsAndRefuses(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		if err := x.Write(t.Context(), Event{Type: "target.undeclared"}); err == nil {
			t.Error("an undeclared type was written")
		}
		fields := map[string]string{"nul": "a\x00b", "bad": "a\xffb", "long": strings.Repeat("ü", 3000)}
		for i := range 100 {
			fields[fmt.Sprintf("z%03d", i)] = "x"
		}
		long := strings.Repeat("n", 5000)
		err := x.Write(t.Context(), Event{
			Type: LoginFailed, Outcome: Denied, Actor: Actor{Kind: "anonymous", Name: long, Source: long, Via: long},
			Object: Object{Kind: "user", Name: "\x00" + long}, Fields: fields, Connection: long,
		})
		if err != nil {
			t.Fatal(err)
		}
		got, err := x.After(t.Context(), d, Filter{}, 0, 1)
		if err != nil || len(got) != 1 {
			t.Fatal(got, err)
		}
		e := got[0]
		if len(e.Fields) != maxFields || len(e.Actor.Name) != maxText || len(e.Fields["long"]) > maxText+2 || !utf8.ValidString(e.Fields["bad"]) {
			t.Errorf("not bounded: %d fields, %+v", len(e.Fields), e)
		}
		if r := x.verify(); !r.OK {
			t.Errorf("%+v", r)
		}
	})
}

func TestNumbersAreStable(t *testing.T) {
	seen := map[uint32]Type{}
	for typ, n := range numbers {
		if other, ok := seen[n]; ok || n == 0 {
			t.Errorf("%s and %s share number %d", typ, other, n)
		}
		seen[n] = typ
	}
	// Some that exports out there know. A number here never changes.
	for typ, n := range map[Type]uint32{SystemStarted: 100, UserErased: 212, LoginFailed: 401, EdgeRevoked: 1102, ConnectionOpened: 1402, CertIssued: 1804} {
		if typ.Number() != n {
			t.Errorf("%s has number %d, was %d", typ, typ.Number(), n)
		}
	}
}

// TestRoomsUseDeclaredTypes reads core's sources: an event whose type is
// written as a text instead of a constant would be refused only when it happens.
func TestRoomsUseDeclaredTypes(t *testing.T) {
	files := 0
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files++
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok || !isEvent(lit.Type) {
				return true
			}
			for _, el := range lit.Elts {
				kv, ok := el.(*ast.KeyValueExpr)
				if !ok {
					continue
				}
				if key, ok := kv.Key.(*ast.Ident); !ok || key.Name != "Type" {
					continue
				}
				v := kv.Value
				if call, ok := v.(*ast.CallExpr); ok && len(call.Args) == 1 {
					v = call.Args[0]
				}
				if b, ok := v.(*ast.BasicLit); ok {
					text, err := strconv.Unquote(b.Value)
					if err != nil || Type(text).Number() == 0 {
						t.Errorf("%s: type %s is not declared in audit/types.go", set.Position(b.Pos()), b.Value)
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil || files < 20 {
		t.Fatalf("read %d files, %v", files, err)
	}
}

func isEvent(e ast.Expr) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok || s.Sel.Name != "Event" {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == "audit"
}

func genRow(t *rapid.T) *row {
	text := rapid.StringN(0, 12, 40)
	r := &row{ID: text.Draw(t, "id"), Seq: rapid.Int64Range(1, 1<<40).Draw(t, "seq")}
	r.Event = Event{
		Type:       rapid.SampledFrom([]Type{UserCreated, LoginFailed, "x"}).Draw(t, "type"),
		Outcome:    Outcome(text.Draw(t, "outcome")),
		Actor:      Actor{Kind: text.Draw(t, "ak"), ID: text.Draw(t, "ai"), Name: text.Draw(t, "an"), Source: text.Draw(t, "as"), Via: text.Draw(t, "av")},
		Object:     Object{Kind: text.Draw(t, "ok"), ID: text.Draw(t, "oi"), Name: text.Draw(t, "on")},
		Fields:     rapid.MapOfN(text, text, 0, 3).Draw(t, "fields"),
		Connection: text.Draw(t, "con"),
		Time:       time.UnixMicro(rapid.Int64Range(0, 1<<50).Draw(t, "at")).UTC(),
	}
	return r
}

// TestCanonicalIsInjective moves a byte from one text to its neighbour: what
// reads the same when run together must not encode alike.
func TestCanonicalIsInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRow(t)
		texts := func(r *row) []*string {
			return []*string{
				&r.ID, (*string)(&r.Outcome), &r.Actor.Kind, &r.Actor.ID, &r.Actor.Via, &r.Actor.Name, &r.Actor.Source,
				&r.Object.Kind, &r.Object.ID, &r.Object.Name, &r.Connection,
			}
		}
		r.seal()
		other := *r
		i := rapid.IntRange(0, len(texts(r))-1).Draw(t, "from")
		j := rapid.IntRange(0, len(texts(r))-1).Draw(t, "to")
		from, to := texts(&other)[i], texts(&other)[j]
		if i == j || *from == "" {
			*from += "x"
		} else {
			*to = (*from)[len(*from)-1:] + *to
			*from = (*from)[:len(*from)-1]
		}
		other.seal()
		if other.hash == r.hash {
			t.Fatalf("same hash for %+v and %+v", r.Event, other.Event)
		}
	})
}

// parseCanonical is the inverse of canonical, to show that nothing is lost.
func parseCanonical(b []byte) (r row, ok bool) {
	take := func(n int) []byte {
		if !ok || n > len(b) {
			ok = false
			return make([]byte, n)
		}
		out := b[:n]
		b = b[n:]
		return out
	}
	number := func(n int) (v uint64) {
		for _, x := range take(n) {
			v = v<<8 | uint64(x)
		}
		return v
	}
	text := func() string {
		n := number(4)
		if n > uint64(len(b)) {
			ok = false
			return ""
		}
		return string(take(int(n)))
	}
	ok = true
	if text() != domainEvent {
		return row{}, false
	}
	r.Seq = int64(number(8))
	copy(r.prev[:], take(32))
	r.Time = time.UnixMicro(int64(number(8))).UTC()
	r.ID = text()
	n := uint32(number(4))
	r.Type, r.Outcome = Type(text()), Outcome(text())
	r.Actor.Kind, r.Actor.ID, r.Actor.Via = text(), text(), text()
	copy(r.actorCommit[:], take(32))
	r.Object.Kind, r.Object.ID = text(), text()
	copy(r.detailCommit[:], take(32))
	r.Connection = text()
	return r, ok && len(b) == 0 && n == r.Type.Number()
}

func FuzzCanonical(f *testing.F) {
	r := row{ID: "aud_1", Seq: 7, Event: Event{Type: UserCreated, Outcome: OK, Actor: Actor{Kind: "user", ID: "usr_1"}, Time: time.UnixMicro(1)}}
	r.seal()
	f.Add(r.canonical())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parseCanonical(b)
		if !ok {
			return
		}
		if again := r.canonical(); !bytes.Equal(again, b) {
			t.Fatalf("one event has two encodings:\n%x\n%x", b, again)
		}
	})
}

func FuzzLastFiled(f *testing.F) {
	f.Add([]byte(`{"seq":3,"kind":"head"}` + "\n" + `{"se`))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "heads")
		writeFile(t, path, b)
		h, err := lastFiled(path)
		if err != nil {
			t.Fatal(err)
		}
		if h != nil && (h.Seq <= 0 || !bytes.ContainsRune(b, '\n')) {
			t.Fatalf("read %+v", h)
		}
		if h != nil && h.valid(newKey("ours")) {
			t.Fatal("a fuzzed head is signed")
		}
	})
}

func TestCommitmentsHideWhatIsErased(t *testing.T) {
	a, b := genFixed("eve"), genFixed("eve")
	b.actorSalt[0] = 1
	a.seal()
	b.seal()
	if a.actorCommit == b.actorCommit {
		t.Error("the salt does not matter: a commitment can be guessed from the name")
	}
	if a.actorCommit == sha256.Sum256([]byte("eve")) {
		t.Error("the commitment is a bare hash")
	}
}

func genFixed(name string) *row {
	return &row{ID: "aud_1", Seq: 1, Event: Event{Type: UserCreated, Actor: Actor{Name: name}}}
}

// BenchmarkAppend measures events per second, each in a transaction of its
// own, from one writer and from eight.
func BenchmarkAppend(b *testing.B) {
	for _, engine := range []string{"sqlite", "postgres"} {
		for _, writers := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/writers=%d", engine, writers), func(b *testing.B) {
				d := map[string]func(testing.TB) *db.DB{"sqlite": dbtest.SQLite, "postgres": dbtest.Postgres}[engine](b)
				l := New(d, nil)
				next := make(chan struct{})
				var wg sync.WaitGroup
				for range writers {
					wg.Go(func() {
						for range next {
							if err := l.Write(b.Context(), Event{Type: ChannelExec, Actor: Actor{Kind: "user", ID: "usr_1", Name: "ada"}, Fields: map[string]string{"command": "uptime"}}); err != nil {
								b.Error(err)
							}
						}
					})
				}
				b.ReportAllocs()
				for b.Loop() {
					next <- struct{}{}
				}
				close(next)
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			})
		}
	}
}

// BenchmarkVerify measures a verification of 5,000 events.
func BenchmarkVerify(b *testing.B) {
	d := dbtest.SQLite(b)
	l := New(d, nil)
	err := d.Tx(b.Context(), func(tx *db.Tx) error {
		for range 5000 {
			if err := l.Append(b.Context(), tx, Event{Type: ChannelExec, Fields: map[string]string{"command": "uptime"}}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if r, err := l.Verify(b.Context(), newKey("ours"), ""); err != nil || !r.OK {
			b.Fatal(r, err)
		}
	}
	b.ReportMetric(5000*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
