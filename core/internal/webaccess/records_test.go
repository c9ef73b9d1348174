package webaccess

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/target"
	"caponier/shared/control"
	"caponier/shared/wire"
)

// Records are kept in order and once, only from the session's own nodes, also
// of a node that repeats itself, and storage that fails ends the session.
func TestRecords(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		carrier, proxy := k.node(wire.Carrier, "c1"), k.node(wire.WebProxy, "p1")
		stranger := k.node(wire.WebProxy, "p2", func(b *box) { b.capacity.Live = 9 })
		tg := k.wiki(func(t *target.Target) { t.Web.Policy.Learn = true })
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		event := func(seq uint64, typ string, fields map[string]string) wire.WebRecord {
			b, err := json.Marshal(wire.WebEventBody{Type: typ, Fields: fields})
			must(t, err)
			return wire.WebRecord{Seq: seq, At: time.Now().UnixMicro(), Kind: wire.WebEvent, Payload: b}
		}
		send := func(b *box, session string, recs ...wire.WebRecord) (wire.WebRecordsAck, error) {
			t.Helper()
			return sendRecords(t, b, session, recs...)
		}
		notes := k.db.Subscribe(t.Context())
		blocked := map[string]string{"method": "GET", "url": "https://fonts.example/a.css?token=secret", "reason": "no_rule", "proposal": `{"host":"fonts.example","scheme":"https"}`}
		ack, err := send(proxy, s.ID, event(1, "request", map[string]string{"url": "https://wiki.example/"}), event(2, "blocked", blocked))
		must(t, err)
		if ack.Next != 3 {
			t.Errorf("ack %+v", ack)
		}
		// Who looks at the timeline is told of more, the user too.
		told := map[string]string{}
		for late := time.After(patience); len(told) < 2; {
			select {
			case n := <-notes:
				if strings.HasPrefix(n.Topic, topicTimeline) && !strings.HasSuffix(n.Topic, api.GroupSuffix) {
					told[n.Topic] = n.ID
				}
			case <-late:
				t.Fatalf("of more events were told: %v", told)
			}
		}
		if own := k.get("eve", s.ID); told[topicTimeline] != own.RecordingID || told[topicTimeline+api.OwnSuffix] != own.UserID {
			t.Errorf("told %v, want the recording %s and the user %s", told, own.RecordingID, own.UserID)
		}
		ack, err = send(proxy, s.ID, event(2, "blocked", blocked), event(3, "blocked", blocked), event(4, "navigation", map[string]string{"url": "https://wiki.example/start?x=1"}))
		must(t, err)
		if ack.Next != 5 {
			t.Errorf("ack %+v", ack)
		}
		ack, err = send(carrier, s.ID, wire.WebRecord{Seq: 1, At: 1, Kind: wire.WebFrame, Payload: []byte("picture")}, event(2, "upload", map[string]string{"path": "a.txt", "size": "5", "outcome": "ok"}))
		must(t, err)
		if ack.Next != 3 {
			t.Errorf("ack %+v", ack)
		}
		ack, err = send(carrier, s.ID, event(7, "viewer", nil))
		must(t, err)
		if ack.Next != 3 {
			t.Errorf("after a gap %+v", ack)
		}
		if _, err := send(stranger, s.ID, event(1, "blocked", blocked)); err == nil {
			t.Error("a webproxy delivers for another's session")
		}
		if _, err := send(proxy, s.ID, wire.WebRecord{Seq: 5, At: 1, Kind: wire.WebFrame, Payload: []byte("forged")}); err == nil {
			t.Error("a webproxy delivers pictures")
		}
		if ack, err := send(stranger, "con_none", event(1, "blocked", blocked)); err != nil || !ack.Gone {
			t.Errorf("an unknown session: %+v, %v", ack, err)
		}
		x := k.tapes.of(s.ID)
		x.mu.Lock()
		if len(x.recs) != 6 || !strings.HasPrefix(x.recs[0], "webproxy "+proxy.id+" e ") || x.recs[4] != "carrier "+carrier.id+" f picture" {
			t.Errorf("kept %q", x.recs)
		}
		x.mu.Unlock()

		var out struct{ Proposals []Proposal }
		if code := k.do("admin", "GET", "/targets/wiki/web-proposals", nil, &out); code != 200 || len(out.Proposals) != 1 {
			t.Fatalf("proposals %d %+v", code, out)
		}
		if p := out.Proposals[0]; p.Count != 2 || p.Rule.Host != "fonts.example" || p.ExampleURL != "https://fonts.example/a.css" {
			t.Errorf("proposal %+v", p)
		}
		if code := k.do("eve", "GET", "/targets/wiki/web-proposals", nil, nil); code != 403 {
			t.Errorf("a user reads proposals with %d", code)
		}
		if code := k.do("admin", "DELETE", "/targets/"+tg.ID+"/web-proposals", nil, nil); code != 204 {
			t.Errorf("cleared with %d", code)
		}
		k.do("admin", "GET", "/targets/wiki/web-proposals", nil, &out)
		if len(out.Proposals) != 0 {
			t.Errorf("left %+v", out)
		}
		if b, u := k.audited(audit.WebRequestBlocked, s.ID, audit.Denied), k.audited(audit.WebFileUploaded, s.ID, audit.OK); b != 1 || u != 1 {
			t.Errorf("audited %d blocked hosts, %d uploads", b, u)
		}

		// A webproxy that makes pages up fills its own recording, and nobody's
		// list of what waits for the database.
		flood := make([]wire.WebRecord, 1000)
		for i := range flood {
			flood[i] = event(uint64(5+i), "navigation", map[string]string{"url": "https://wiki.example/made-up"})
		}
		if ack, err := send(proxy, s.ID, flood...); err != nil || ack.Next != 1005 {
			t.Errorf("a flood: %+v, %v", ack, err)
		}
		var listed struct {
			Items []struct{ Kind string }
			Next  string
		}
		eventually(t, "visits are listed", func() bool {
			k.do("admin", "GET", "/connections/"+s.ID+"/channels?limit=500", nil, &listed)
			return len(listed.Items) >= 200
		})
		if len(listed.Items) > 300 || listed.Next != "" {
			t.Errorf("%d visits are listed, and more: %q", len(listed.Items), listed.Next)
		}

		x.mu.Lock()
		x.fail = errors.New("disk on fire")
		x.mu.Unlock()
		if ack, err := send(carrier, s.ID, event(3, "viewer", nil)); err != nil || !ack.Retry {
			t.Errorf("after a failure: %+v, %v", ack, err)
		}
		eventually(t, "the session ends", func() bool { return k.get("eve", s.ID).State == Ended })
		if got := k.get("eve", s.ID); !strings.Contains(got.EndText, "could not be recorded") {
			t.Errorf("ended %+v", got)
		}
		if ack, err := send(carrier, s.ID, event(3, "viewer", nil)); err != nil || !ack.Gone {
			t.Errorf("after the end: %+v, %v", ack, err)
		}
	})
}

// A carrier that reports files without end does not fill the audit log with
// them: a burst is listed, the others are counted.
func TestFilesWithoutEnd(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start(func(_ *core, c *Config) { c.Now = func() time.Time { return time.Unix(1_800_000_000, 0) } }) // no tokens come back
	carrier := k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	const extra = 25
	b, err := json.Marshal(wire.WebEventBody{Type: "upload", Fields: map[string]string{"path": "f", "outcome": "ok"}})
	must(t, err)
	var recs []wire.WebRecord
	for i := range uint64(filesBurst + extra) {
		recs = append(recs, wire.WebRecord{Seq: i + 1, At: time.Now().UnixMicro(), Kind: wire.WebEvent, Payload: b})
	}
	if ack, err := sendRecords(t, carrier, s.ID, recs...); err != nil || ack.Next != uint64(len(recs))+1 {
		t.Fatalf("%+v, %v", ack, err)
	}
	if n := k.audited(audit.WebFileUploaded, s.ID, audit.OK); n != filesBurst {
		t.Errorf("%d files are listed, want %d", n, filesBurst)
	}
	if n := k.audited(audit.WebFilesUnlisted, s.ID, audit.OK); n != 0 {
		t.Errorf("the others are counted %d times already", n)
	}
	k.do("eve", "DELETE", "/web-sessions/"+s.ID, nil, nil)
	eventually(t, "it ends", func() bool { return k.get("eve", s.ID).State == Ended })
	found, err := k.audit.After(t.Context(), k.db, audit.Filter{Type: string(audit.WebFilesUnlisted)}, 0, 10)
	must(t, err)
	if len(found) != 1 || found[0].Connection != s.ID || found[0].Fields["more"] != strconv.Itoa(extra) {
		t.Errorf("counted as %+v", found)
	}
	if n := len(w.tapes.of(s.ID).recs); n != len(recs) {
		t.Errorf("the recording has %d of them", n)
	}
	// More than anybody moves ends a session.
	x := k.svc.find(k.open("bob", "wiki", map[string]any{"account": "alice"}).ID)
	for range maxUnlisted {
		x.unlist()
	}
	if reason, text := x.live.Ended(); reason != conn.EndedByError || !strings.Contains(text, "more files") {
		t.Errorf("it goes on: %s %s", reason, text)
	}
}

func sendRecords(t *testing.T, b *box, session string, recs ...wire.WebRecord) (wire.WebRecordsAck, error) {
	t.Helper()
	var body []byte
	var err error
	for _, r := range recs {
		body, err = wire.AppendWebRecord(body, r)
		must(t, err)
	}
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://tunnel"+wire.PathWebRecords+"?session="+session, strings.NewReader(string(body)))
	must(t, err)
	resp, err := control.RoundTrip(t.Context(), b.Session(), r)
	if err != nil {
		return wire.WebRecordsAck{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return wire.WebRecordsAck{}, errors.New(resp.Status)
	}
	var ack wire.WebRecordsAck
	return ack, json.NewDecoder(resp.Body).Decode(&ack)
}
