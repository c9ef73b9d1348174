package program

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/router/internal/enforce"
	"caponier/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestProgram(t *testing.T) {
	b := newBox(t, vendor, nil)
	same(t, "sync", ids(b.sync(session("a"), session("b")).Failed))
	same(t, "held", b.held(), "a", "b")
	same(t, "calls", b.calls(), "check", "sync")
	b.apply([]wire.RouterSession{session("c")}, "a")
	same(t, "held", b.held(), "b", "c")
	same(t, "calls", b.calls(), "del", "add")
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.Renew(t.Context(), time.Second); err != nil {
		t.Error(err)
	}
	counts, err := b.Counters(t.Context(), []string{"b"})
	if err != nil || len(counts) != 1 || counts[0].ID != "b" || counts[0].BytesOut != 10 {
		t.Errorf("counters = %+v, %v", counts, err)
	}
	if i := b.Info(); !i.Leased || i.Kernel || i.Type != "exec" || i.RenewEvery != 20*time.Second {
		t.Errorf("info = %+v", i)
	}
	// Somebody else took one away, or put one there.
	os.Remove(filepath.Join(b.dir, "s", "b"))
	if err := b.Check(t.Context()); !errors.Is(err, enforce.ErrChanged) {
		t.Errorf("one is missing: %v", err)
	}
	if err := b.Renew(t.Context(), time.Second); !errors.Is(err, enforce.ErrChanged) {
		t.Errorf("renewing what is missing: %v", err)
	}
	b.sync(session("b"), session("c"))
	os.WriteFile(filepath.Join(b.dir, "s", "planted"), []byte("x"), 0o644)
	if err := b.Check(t.Context()); !errors.Is(err, enforce.ErrChanged) {
		t.Errorf("one too many: %v", err)
	}
	b.sync()
	same(t, "held in the end", b.held())
	// Nothing is wanted: that is said, not left out.
	if doc, err := os.ReadFile(filepath.Join(b.dir, "last.sync")); err != nil || !strings.Contains(string(doc), `"sessions":[]`) {
		t.Errorf("the last document: %s, %v", doc, err)
	}
}

// The document is a contract with programs that others write.
func TestDocument(t *testing.T) {
	b := newBox(t, vendor, nil)
	b.apply([]wire.RouterSession{session("con_1")})
	raw, err := os.ReadFile(filepath.Join(b.dir, "last.add"))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if r, _ := got["revision"].(float64); r < 1e15 {
		t.Errorf("revision = %v", got["revision"])
	}
	if id, _ := got["request_id"].(string); len(id) < 20 {
		t.Errorf("request_id = %v", got["request_id"])
	}
	s, _ := got["session"].(map[string]any)
	if at, err := time.Parse(time.RFC3339, s["expires_at"].(string)); err != nil || time.Until(at) > time.Minute || time.Until(at) < 30*time.Second {
		t.Errorf("expires_at = %v", s["expires_at"])
	}
	delete(got, "revision")
	delete(got, "request_id")
	delete(s, "expires_at")
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"op":"add","router":{"name":"edge-1","parameters":{"zone":"ot"},"type":"exec"},` +
		`"rules":{"client":"10.8.0.7","dst":[{"nat":{"addr":"192.168.1.5","port":5020},"selector":{"ip":{"end":"10.20.0.255","start":"10.20.0.0"},"port":{"end":502,"start":502},"proto":"tcp"}},` +
		`{"selector":{"ip":{"end":"10.21.0.1","start":"10.21.0.1"}}}],"src_nat":true},` +
		`"session":{"client":"10.8.0.7","hash":"` + hash(session("con_1")) + `","id":"con_1","lease_s":60,"provider":"NQX","target":"plc-line-3","user":"ann"},"static_config":{"type":"l3rules"},"v":1}`
	if string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}

func TestLegacyArguments(t *testing.T) {
	const script = "#!/bin/sh\nfor a; do printf '%s\\n' \"$a\"; done >> @DIR@/args\nin=$(cat)\n[ -z \"$in\" ] || exit 1\n"
	b := newBox(t, script, func(c *Config) { c.Legacy = true })
	if i := b.Info(); i.Leased {
		t.Error("nobody ends these rules when the router dies")
	}
	s := session("con_1")
	b.sync(s)
	s2 := session("con_2")
	s2.Static, s2.Rules.SNAT, s2.Rules.Destinations = nil, false, s2.Rules.Destinations[1:]
	b.apply([]wire.RouterSession{s2}, "con_1")
	got, err := os.ReadFile(filepath.Join(b.dir, "args"))
	if err != nil {
		t.Fatal(err)
	}
	network := `{"name":"plc-line-3","dst":[{"selector":{"ip":{"start":"10.20.0.0","end":"10.20.0.255"},"proto":"tcp","port":{"start":502,"end":502}},"nat":{"addr":"192.168.1.5","port":5020}},{"selector":{"ip":{"start":"10.21.0.1","end":"10.21.0.1"}}}],"src_nat":true}` + "\n" +
		`{"name":"edge-1","type":"exec","parameters":{"zone":"ot"}}` + "\n" + `{"id":"con_1","client_ip":"10.8.0.7","username":"ann"}` + "\n" + `{"type":"l3rules"}` + "\n"
	want := "add\n" + network + "del\n" + network + "add\n" +
		`{"name":"plc-line-3","dst":[{"selector":{"ip":{"start":"10.21.0.1","end":"10.21.0.1"}}}],"src_nat":false}` + "\n" +
		`{"name":"edge-1","type":"exec","parameters":{"zone":"ot"}}` + "\n" + `{"id":"con_2","client_ip":"10.8.0.7","username":"ann"}` + "\n"
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// An addition that fails holds nowhere afterwards, however it failed.
func TestAddFails(t *testing.T) {
	for name, c := range map[string]struct {
		add, del, list string
		failed, ending bool
		held           bool
		text           string
	}{
		"conflict":                           {add: "exit 20", failed: true, text: "conflict"},
		"bad request":                        {add: "exit 10", failed: true, text: "rejects"},
		"with its own words":                 {add: "says zone-is-locked", failed: true, text: "zone-is-locked"},
		"busy for ever":                      {add: "exit 30", failed: true, text: "busy"},
		"busy once":                          {add: "once 30", held: true},
		"hangs, deaf to TERM":                {add: "hang", failed: true, text: "did not finish"},
		"hangs":                              {add: "slow", failed: true, text: "did not finish"},
		"dies half-way, and can say so":      {add: "half", held: true},
		"dies half-way, list fails":          {add: "half", list: "exit 1", failed: true, text: "did not finish"},
		"dies half-way, list is garbage":     {add: "half", list: "garbage", failed: true, text: "did not finish"},
		"prints garbage, and exits with 0":   {add: "garbage", held: false},
		"cannot be undone":                   {add: "half", list: "exit 1", del: "exit 30", failed: true, ending: true, held: true, text: "did not finish"},
		"hangs, and so does its undoing":     {add: "hang", del: "hang", list: "garbage", failed: true, ending: true, text: "did not finish"},
		"noisy":                              {add: "noise", failed: true, text: "exit code 1"},
		"undone though del fails: not there": {add: "exit 20", del: "exit 1", failed: true, text: "conflict"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, vendor, nil)
			b.sync()
			if hangs := c.add + c.del; strings.Contains(hangs, "hang") || strings.Contains(hangs, "slow") {
				b.c.Quick = 2 * time.Second
			}
			for verb, how := range map[string]string{verbAdd: c.add, verbDel: c.del, verbList: c.list} {
				if how != "" {
					b.fault(verb, how)
				}
			}
			start := time.Now()
			res := b.apply([]wire.RouterSession{session("a")})
			if took := time.Since(start); took > 25*time.Second {
				t.Errorf("took %s", took)
			}
			if (len(res.Failed) == 1) != c.failed || (len(res.Ending) == 1) != c.ending {
				t.Fatalf("result = %+v", res)
			}
			if c.failed && !strings.Contains(res.Failed[0].Error.Public, c.text) {
				t.Errorf("text %q, want %q in it", res.Failed[0].Error.Public, c.text)
			}
			if got := len(b.held()) == 1; got != c.held {
				t.Errorf("held = %v, want %v (calls %v)", got, c.held, b.calls())
			}
			if pid, err := os.ReadFile(filepath.Join(b.dir, "child")); err == nil && !gone(t.Context(), strings.TrimSpace(string(pid))) {
				t.Errorf("a child of the program lives on")
			}
		})
	}
}

// A removal counts only when the session is gone.
func TestRemovalFails(t *testing.T) {
	for name, c := range map[string]struct {
		del, list string
		ending    bool
	}{
		"fails":                             {del: "exit 1", ending: true},
		"hangs":                             {del: "hang", ending: true},
		"dies after its work":               {del: "half"},
		"dies after its work, list is mute": {del: "half", list: "exit 1", ending: true},
		"does not know how":                 {del: "exit 11", ending: true},
		"list is garbage":                   {del: "exit 1", list: "garbage", ending: true},
		"list is a flood":                   {del: "exit 1", list: "flood", ending: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, vendor, nil)
			b.sync(session("a"), session("b"))
			if c.del == "hang" {
				b.c.Quick = 2 * time.Second
			}
			b.fault(verbDel, c.del)
			if c.list != "" {
				b.fault(verbList, c.list)
			}
			res := b.apply(nil, "a")
			if (len(res.Ending) == 1) != c.ending {
				t.Fatalf("result = %+v, held %v", res, b.held())
			}
			b.mend(verbDel)
			b.c.Quick = 30 * time.Second
			same(t, "ending at last", ids(b.apply(nil, "a").Ending))
			same(t, "held", b.held(), "b")
		})
	}
}

// What cannot be synchronised is not certain, and what the program does not
// know is done in another way.
func TestSync(t *testing.T) {
	for name, c := range map[string]struct {
		faults map[string]string
		fails  bool
		calls  string
	}{
		"by the program":          {nil, false, "sync"},
		"it fails":                {map[string]string{"sync": "exit 1"}, true, "sync"},
		"it hangs":                {map[string]string{"sync": "hang"}, true, "sync"},
		"it prints garbage":       {map[string]string{"sync": "garbage"}, true, "sync"},
		"by list":                 {map[string]string{"sync": "exit 11"}, false, "sync list del add"},
		"by list, which fails":    {map[string]string{"sync": "exit 11", "list": "exit 1"}, true, "sync list"},
		"by the journal":          {map[string]string{"sync": "exit 11", "list": "exit 11"}, false, "sync list del add"},
		"by list, which hangs":    {map[string]string{"sync": "exit 11", "list": "slow"}, true, "sync list"},
		"by list, which is wrong": {map[string]string{"sync": "exit 11", "list": "garbage"}, true, "sync list"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, vendor, nil)
			b.sync(session("a"), session("b"))
			b.c.Quick, b.c.Long = 2*time.Second, 2*time.Second
			if !c.fails {
				b.c.Quick, b.c.Long = 30*time.Second, 30*time.Second
			}
			b.calls()
			for verb, how := range c.faults {
				b.fault(verb, how)
			}
			res, err := b.Sync(t.Context(), []wire.RouterSession{session("b"), session("c")})
			if (err != nil) != c.fails {
				t.Fatalf("sync = %+v, %v", res, err)
			}
			same(t, "calls", b.calls(), strings.Fields(c.calls)...)
			if err == nil {
				same(t, "held", b.held(), "b", "c")
				return
			}
			for verb := range c.faults {
				b.mend(verb)
			}
			b.c.Quick, b.c.Long = 30*time.Second, 30*time.Second
			b.sync(session("b"), session("c"))
			same(t, "held after another try", b.held(), "b", "c")
		})
	}
}

// A program that cannot work yet is not told to.
func TestCheckFails(t *testing.T) {
	b := newBox(t, vendor, nil)
	b.fault(verbCheck, "exit 30")
	if _, err := b.Sync(t.Context(), nil); err == nil {
		t.Error("synchronised though the program is not ready")
	}
	b.mend(verbCheck)
	b.fault(verbCheck, "exit 11")
	b.sync(session("a"))
	same(t, "calls", b.calls(), "check", "check", "renew", "sync")
}

// Over a crash, what surely holds is not touched, what may hold is made sure
// of, and what nobody wants goes.
func TestRestart(t *testing.T) {
	bare := strings.NewReplacer("\nlist)", "\nnolist)", "\nsync)", "\nnosync)", "\nrenew)", "\nnorenew)", "\ncheck)", "\nnocheck)").Replace(vendor)
	b := newBox(t, bare, nil)
	b.sync(session("a"), session("b"))
	if i := b.Info(); i.Leased {
		t.Error("the program has no renew")
	}
	// Died in the middle of adding c, which the program already did.
	c := session("c")
	if err := b.journal.note(journalLine{Add: &c}); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(b.dir, "s", "c"), []byte("half"), 0o644)
	b.restart(nil)
	b.calls()
	changed := session("b")
	changed.Rules.SNAT = false
	b.sync(session("a"), changed, session("c"))
	got := b.calls()
	same(t, "calls", got, "check", "renew", "sync", "list", "del", "del", "add", "add")
	same(t, "held", b.held(), "a", "b", "c")
	b.restart(nil)
	b.sync()
	same(t, "held", b.held())
}

func TestJournalCutAnywhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b", "c"} {
		s := session(id)
		if err := j.note(journalLine{Add: &s}, journalLine{OK: id}); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.note(journalLine{Del: "b"}); err != nil {
		t.Fatal(err)
	}
	j.close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(path)
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		// Only the last line may be missing: what was noted before is there.
		lines := strings.Count(string(whole[:n]), "\n")
		if got := len(j.all()); lines >= 1 && got == 0 || lines < 6 && got != (lines+1)/2 {
			t.Errorf("cut at %d after %d lines: %d sessions", n, lines, got)
		}
		j.close()
	}
	if err := os.WriteFile(path, []byte("{\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournal(path); err == nil || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("a damaged journal: %v", err)
	}
}

// The journal stays short, and keeps what matters.
func TestJournalIsRewritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	keep := session("keep")
	if err := j.note(journalLine{Add: &keep}, journalLine{OK: "keep"}); err != nil {
		t.Fatal(err)
	}
	s := session("x")
	var lines []journalLine
	for range 100 {
		lines = append(lines, journalLine{Add: &s}, journalLine{OK: "x"}, journalLine{Del: "x"})
	}
	for range 12 {
		if err := j.note(lines...); err != nil {
			t.Fatal(err)
		}
	}
	if j.lines > maxHistory+400 {
		t.Errorf("%d lines for one session", j.lines)
	}
	if got, sure, known := j.get("keep"); !sure || !known || hash(got) != hash(keep) {
		t.Errorf("after rewriting: %+v, %v, %v", got, sure, known)
	}
}
