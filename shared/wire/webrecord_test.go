package wire

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestWebRecordsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b []byte
		var want []WebRecord
		first := rapid.Uint64Range(1, 1<<40).Draw(t, "first")
		for i := range rapid.IntRange(0, 20).Draw(t, "n") {
			r := WebRecord{Seq: first + uint64(i), At: rapid.Int64Range(0, 1<<60).Draw(t, "at"),
				Kind:    rapid.SampledFrom([]WebRecordKind{WebFrame, WebEvent}).Draw(t, "kind"),
				Payload: rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "payload")}
			var err error
			if b, err = AppendWebRecord(b, r); err != nil {
				t.Fatal(err)
			}
			want = append(want, r)
		}
		got, err := ParseWebRecords(b)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%d records, %v", len(got), err)
		}
		for i := range want {
			if got[i].Seq != want[i].Seq || got[i].At != want[i].At || got[i].Kind != want[i].Kind || !bytes.Equal(got[i].Payload, want[i].Payload) {
				t.Fatalf("record %d: %+v, want %+v", i, got[i], want[i])
			}
		}
	})
}

func TestWebRecordsRefused(t *testing.T) {
	one, err := AppendWebRecord(nil, WebRecord{Seq: 7, Kind: WebEvent, Payload: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	gap, err := AppendWebRecord(bytes.Clone(one), WebRecord{Seq: 9, Kind: WebEvent})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"cut": one[:len(one)-1], "cut in a number": one[:2], "a gap": gap, "kind": append([]byte("x"), one[1:]...),
		"number 0": {byte(WebEvent), 0, 0, 0}, "size": {byte(WebEvent), 1, 0, 0xff, 0xff, 0xff, 0xff, 0x7f},
	} {
		if _, err := ParseWebRecords(b); !errors.Is(err, ErrWebRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := AppendWebRecord(nil, WebRecord{Seq: 0, Kind: WebEvent}); err == nil {
		t.Error("number 0 was encoded")
	}
}

func FuzzParseWebRecords(f *testing.F) {
	b, err := AppendWebRecord(nil, WebRecord{Seq: 1, At: 5, Kind: WebFrame, Payload: []byte("abc")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := ParseWebRecords(b)
		if err != nil {
			return
		}
		var again []byte
		for _, r := range list {
			if again, err = AppendWebRecord(again, r); err != nil {
				t.Fatal(err)
			}
		}
		second, err := ParseWebRecords(again)
		if err != nil || len(second) != len(list) {
			t.Fatalf("%d records became %d, %v", len(list), len(second), err)
		}
	})
}
