package audit

import (
	"encoding/csv"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestCSV(t *testing.T) {
	var b strings.Builder
	out, err := newCSV(&b)
	if err != nil {
		t.Fatal(err)
	}
	e := Entry{Seq: 7, Event: Event{Type: LoginFailed, Time: time.Unix(0, 0), Object: Object{Kind: "user", Name: "=cmd|'/c calc'!A0"}, Fields: map[string]string{"b": "2", "a": "1"}}}
	if err := out.write(e); err != nil || out.flush() != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(strings.NewReader(b.String())).ReadAll()
	if err != nil || len(rows) != 2 || len(rows[1]) != len(csvHeader) {
		t.Fatalf("%v %v", rows, err)
	}
	if rows[1][0] != "7" || rows[1][11] != "'=cmd|'/c calc'!A0" || rows[1][13] != `{"a":"1","b":"2"}` {
		t.Errorf("row %q", rows[1])
	}
}

func TestReadExport(t *testing.T) {
	q, p := readExport(url.Values{"after": {"5"}, "format": {"csv"}, "type": {"login."}, "outcome": {"failed"}, "since": {"2026-01-02T03:04:05Z"}, "object": {"edg_1"}})
	if p != nil || q.after != 5 || !q.csv || q.filter.Type != "login." || q.filter.Outcome != Failed || q.filter.ObjectID != "edg_1" || q.filter.Since.IsZero() {
		t.Errorf("%+v %v", q, p)
	}
	if want := "object=edg_1 outcome=failed since=2026-01-02T03:04:05Z type=login."; q.text != want {
		t.Errorf("text %q, want %q", q.text, want)
	}
	for name, v := range map[string]string{"after": "-1", "format": "xml", "outcome": "maybe", "since": "yesterday", "until": "x", "limit": "5", "actor": strings.Repeat("x", 101)} {
		if _, p := readExport(url.Values{name: {v}}); p == nil {
			t.Errorf("%s=%.20s accepted", name, v)
		}
	}
}
