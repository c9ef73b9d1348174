package api

import (
	"encoding/base64"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

type position struct {
	Name string `json:"n"`
	ID   string `json:"i"`
	At   int64  `json:"a"`
}

func TestCursorRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringN(0, 20, 80)
		want := position{text.Draw(t, "name"), text.Draw(t, "id"), rapid.Int64().Draw(t, "at")}
		var got position
		if err := DecodeCursor(EncodeCursor(want), &got); err != nil {
			t.Fatal(err)
		}
		if EncodeCursor(got) != EncodeCursor(want) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	})
}

func TestBadCursors(t *testing.T) {
	raw := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	for name, c := range map[string]string{
		"not base64":      "%%%",
		"padded":          EncodeCursor(position{}) + "=",
		"no version":      raw(`{"n":"a"}`),
		"other version":   raw("\x02{}"),
		"empty position":  raw("\x01"),
		"unknown field":   raw("\x01" + `{"n":"a","x":1}`),
		"other type":      raw("\x01" + `{"n":1}`),
		"trailing":        raw("\x01" + `{"n":"a"}{}`),
		"too long":        raw("\x01" + `{"n":"` + strings.Repeat("a", 2000) + `"}`),
		"of another list": EncodeCursor(7),
	} {
		if err := DecodeCursor(c, &position{}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	p := position{Name: "kept"}
	if err := DecodeCursor("", &p); err != nil || p.Name != "kept" {
		t.Errorf("an empty cursor: %+v, %v", p, err)
	}
}

func FuzzDecodeCursor(f *testing.F) {
	f.Add(EncodeCursor(position{"a", "b", 1}))
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, s string) {
		var p position
		if decodeCursor(s, &p) != nil {
			return
		}
		var again position
		if err := decodeCursor(EncodeCursor(p), &again); err != nil || again != p {
			t.Fatalf("%q decodes to %+v, which encodes to something else (%+v, %v)", s, p, again, err)
		}
	})
}

func TestPaged(t *testing.T) {
	rows := []int{1, 2, 3}
	at := func(n int) any { return n }
	if p := Paged(rows, 3, at); len(p.Items) != 3 || p.Next != "" {
		t.Errorf("the last page: %+v", p)
	}
	p := Paged(rows, 2, at)
	var n int
	if err := DecodeCursor(p.Next, &n); err != nil || n != 2 || len(p.Items) != 2 {
		t.Errorf("a page with more behind it: %+v, %d, %v", p, n, err)
	}
	if p := Paged[int](nil, 2, at); p.Items == nil {
		t.Error("an empty page must be [] in JSON, not null")
	}
}

func TestCheckMatch(t *testing.T) {
	for _, c := range []struct {
		header string
		want   int
	}{
		{``, 428}, {`  `, 428}, {`"4"`, 0}, {`W/"4"`, 0}, {`"1", "4"`, 0}, {`*`, 0}, {`"5"`, 412}, {`4`, 412}, {`"44"`, 412}, {`,`, 412},
	} {
		got := 0
		if p, ok := CheckMatch(c.header, 4).(*Problem); ok {
			got = p.Status
		}
		if got != c.want {
			t.Errorf("%q: %d, want %d", c.header, got, c.want)
		}
	}
}
