package nft

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"caponier/router/internal/ruleset"
)

func encoded(elems []ruleset.Elem) []byte {
	r := (&socket{}).requests()
	r.elements(unix.NFT_MSG_NEWSETELEM, 0, "caponier", elems)
	return r.buf[unix.SizeofNlMsghdr:]
}

// What is written reads back the same.
func TestElementsRoundTrip(t *testing.T) {
	t.Parallel()
	m := ruleset.NewModel()
	nat := session(t, "nat", "192.0.2.12", "198.51.100.1 tcp 80 -> 10.20.0.5:8080", "10.20.0.0-10.20.1.7", "fd00::1")
	nat.Rules.SNAT = true
	six := session(t, "six", "2001:db8::1", "::/0 udp 65535 -> [fd00::1]:1")
	var c ruleset.Change
	if err := m.Add(nat, &c); err != nil {
		t.Fatal(err)
	}
	if err := m.Add(six, &c); err != nil {
		t.Fatal(err)
	}
	all := append(m.Elements(), ruleset.LeaseElems(700)...)
	if len(all) < 12 {
		t.Fatalf("only %d elements", len(all))
	}
	for i := range all {
		var got []element
		if strange := decodeElements(encoded(all[i:i+1]), func(e *element) { got = append(got, *e) }); strange != 0 || len(got) != 1 {
			t.Fatalf("%s: %d elements, %d strange", &all[i], len(got), strange)
		}
		if got[0].Elem != all[i] {
			t.Errorf("got %+v, want %+v", got[0].Elem, all[i])
		}
	}
}

// A message of many elements stays below what its list can hold.
func TestMessagesStaySmall(t *testing.T) {
	t.Parallel()
	elems := make([]ruleset.Elem, 1000)
	for i := range elems {
		elems[i] = ruleset.MarkElem(ruleset.Out, uint32(i))
		elems[i].KeyLen, elems[i].DataLen, elems[i].Ranged = 24, 20, true
		elems[i].Comment = string(bytes.Repeat([]byte("x"), 120))
	}
	r := (&socket{}).requests()
	r.elements(unix.NFT_MSG_NEWSETELEM, 0, "caponier", elems)
	n := 0
	for b := r.buf; len(b) > 0; n++ {
		l := int(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24)
		if l > 60<<10 {
			t.Fatalf("a message of %d bytes", l)
		}
		b = b[align(l):]
	}
	if n != 1000/perMessage {
		t.Errorf("%d messages", n)
	}
}

func FuzzDecodeElements(f *testing.F) {
	f.Add(encoded(ruleset.LeaseElems(700)))
	f.Add(encoded([]ruleset.Elem{ruleset.MarkElem(ruleset.Out, ruleset.MarkBit)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		decodeElements(b, func(e *element) {
			if e.KeyLen == 0 || int(e.KeyLen) > ruleset.MaxKey {
				t.Fatalf("a key of %d bytes", e.KeyLen)
			}
			_ = e.String()
		})
	})
}
