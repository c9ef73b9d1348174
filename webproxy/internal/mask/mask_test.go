package mask

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"unicode/utf16"

	"pgregory.net/rapid"
)

const secret = `S3cr&t=+/"<ü€ %q\z`

// forms are ways in which servers write a text.
var forms = map[string]func(string) string{
	"raw":         func(s string) string { return s },
	"query":       url.QueryEscape,
	"path":        url.PathEscape,
	"every byte":  func(s string) string { return "%" + strings.Join(pairs(hex.EncodeToString([]byte(s))), "%") },
	"twice":       func(s string) string { return strings.ReplaceAll(url.PathEscape(s), "%", "%25") },
	"lower query": func(s string) string { return lowerHex(url.QueryEscape(s)) },
	"html":        html.EscapeString,
	"html, php": func(s string) string {
		return strings.NewReplacer("&", "&amp;", "<", "&lt;", `"`, "&quot;", "'", "&#039;").Replace(s)
	},
	"html, numbers": func(s string) string { return each(s, func(r rune) string { return fmt.Sprintf("&#%d;", r) }) },
	"html, hex":     func(s string) string { return each(s, func(r rune) string { return fmt.Sprintf("&#x%x;", r) }) },
	"json":          func(s string) string { b, _ := json.Marshal(s); return string(b[1 : len(b)-1]) },
	"json, ascii":   func(s string) string { return each(s, func(r rune) string { return fmt.Sprintf(`\u%04X`, r) }) },
	"javascript": func(s string) string {
		return each(s, func(r rune) string {
			if r < 256 {
				return fmt.Sprintf(`\x%02x`, r)
			}
			return fmt.Sprintf(`\u%04x`, r)
		})
	},
	"hex":               func(s string) string { return hex.EncodeToString([]byte(s)) },
	"upper hex":         func(s string) string { return strings.ToUpper(hex.EncodeToString([]byte(s))) },
	"utf-16":            func(s string) string { return string(inUTF16Text(s, binary.LittleEndian)) },
	"utf-16 big-endian": func(s string) string { return string(inUTF16Text(s, binary.BigEndian)) },
	"json with slash": func(s string) string {
		b, _ := json.Marshal(s)
		return strings.ReplaceAll(string(b[1:len(b)-1]), "/", `\/`)
	},
}

func inUTF16Text(s string, order binary.AppendByteOrder) (out []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		out = order.AppendUint16(out, u)
	}
	return out
}

func pairs(s string) (out []string) {
	for i := 0; i < len(s); i += 2 {
		out = append(out, s[i:i+2])
	}
	return out
}

func each(s string, f func(rune) string) string {
	var b strings.Builder
	for _, r := range s {
		b.WriteString(f(r))
	}
	return b.String()
}

func lowerHex(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

func values(t testing.TB, secrets ...string) *Values {
	t.Helper()
	var v Values
	for _, s := range secrets {
		if err := v.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	return &v
}

// through pushes text in chunks of the given size.
func through(s *Stream, text string, size int) string {
	var out []byte
	for len(text) > 0 {
		n := min(size, len(text))
		out = s.Push(out, []byte(text[:n]))
		text = text[n:]
	}
	return string(s.Flush(out))
}

func TestForms(t *testing.T) {
	v := values(t, secret)
	for name, f := range forms {
		for _, size := range []int{1, 2, 3, 7, 1 << 20} {
			text := "<p>before " + f(secret) + " after</p>" + f(secret)
			got := through(v.Stream(), text, size)
			if want := "<p>before " + Mask + " after</p>" + Mask; got != want {
				t.Errorf("%s in chunks of %d: %q, want %q", name, size, got, want)
			}
		}
	}
}

// The mask's neighbours in base64 share bits with the value and may stay.
func TestBase64(t *testing.T) {
	v := values(t, secret)
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding} {
		for shift := range 6 {
			text := enc.EncodeToString([]byte(strings.Repeat("x", shift) + secret + "tail"))
			got := through(v.Stream(), "a "+text+" b", 5)
			if !strings.Contains(got, Mask) {
				t.Errorf("shift %d: %s passed as %s", shift, text, got)
			}
			if whole, err := enc.DecodeString(strings.Trim(got, "a b")); err == nil && bytes.Contains(whole, []byte(secret[2:8])) {
				t.Errorf("shift %d: what is left decodes to %q", shift, whole)
			}
		}
	}
}

func TestHeldBack(t *testing.T) {
	v := values(t, "password")
	s := v.Stream()
	if got := string(s.Push(nil, []byte("my passw"))); got != "my " {
		t.Errorf("a beginning was let through: %q", got)
	}
	if got := string(s.Push(nil, []byte("age"))); got != "passwage" {
		t.Errorf("what is none is not let go: %q", got)
	}
	if got := string(s.Push(nil, []byte("pass"))); got != "" {
		t.Errorf("a beginning was let through: %q", got)
	}
	if got := string(s.Flush(nil)); got != "pass" {
		t.Errorf("the end: %q", got)
	}
	// A value learned while the stream runs counts at once.
	if err := v.Add("sesame42"); err != nil {
		t.Fatal(err)
	}
	if got := string(s.Flush(s.Push(nil, []byte("open sesame42, password")))); got != "open "+Mask+", "+Mask {
		t.Errorf("a later value: %q", got)
	}
	v.Forget()
	if got, _ := v.String("password"); got != "password" {
		t.Errorf("forgotten, and still masked: %q", got)
	}
}

func TestRepeats(t *testing.T) {
	v := values(t, "aaaab")
	for _, c := range [][2]string{{"aaaaaab", "aa" + Mask}, {"aaaabaaaab", Mask + Mask}, {"aaaa", "aaaa"}, {strings.Repeat("a", 100), strings.Repeat("a", 100)}} {
		for size := 1; size < 6; size++ {
			if got := through(v.Stream(), c[0], size); got != c[1] {
				t.Errorf("%s in %d: %s, want %s", c[0], size, got, c[1])
			}
		}
	}
}

// Whatever stands around it and however it is cut: the value does not pass,
// and the rest is untouched.
func TestProperty(t *testing.T) {
	v := values(t, secret, "another one")
	rapid.Check(t, func(t *rapid.T) {
		noise := rapid.StringMatching(`[a-zA-Z0-9 .,;:%&<>\\/"=+S3crü-]{0,40}`)
		name := rapid.SampledFrom([]string{"raw", "query", "html", "json", "hex", "javascript", "twice"}).Draw(t, "form")
		before, after := noise.Draw(t, "before"), noise.Draw(t, "after")
		size := rapid.IntRange(1, 60).Draw(t, "size")
		got := through(v.Stream(), before+forms[name](secret)+after, size)
		if !strings.Contains(got, Mask) || strings.Contains(got, secret) {
			t.Fatalf("%q", got)
		}
		if clean := through(v.Stream(), before+after, size); !strings.Contains(clean, Mask) && got != before+Mask+after && !strings.HasSuffix(before, `\`) {
			// The character before may belong to the value's spelling: only then may it go.
			if !strings.HasPrefix(got, strings.TrimRight(before, `%25\`)) {
				t.Fatalf("%q + value + %q became %q", before, after, got)
			}
		}
	})
}

func TestLimits(t *testing.T) {
	if a, err := New([]string{"abc", ""}); a != nil || err != nil {
		t.Errorf("short values: %v, %v", a, err)
	}
	token := make([]byte, plainFrom+50)
	for i := range token {
		token[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."[rand.IntN(65)]
	}
	v := values(t, string(token))
	if got := through(v.Stream(), "Bearer "+string(token)+".", 100); got != "Bearer "+Mask+"." {
		t.Errorf("a long token: %.80q", got)
	}
	v = values(t, "first")
	for i := range 20 {
		err := v.Add(fmt.Sprint("value ", i))
		if (err == nil) != (i < maxValues-1) {
			t.Errorf("value %d: %v", i, err)
		}
	}
}

func FuzzStream(f *testing.F) {
	f.Add([]byte("before S3cr&t=+/"), 3)
	v := values(f, secret, "aaaab", "abab")
	f.Fuzz(func(t *testing.T, text []byte, size int) {
		size = min(max(size, 1), 100)
		got := through(v.Stream(), string(text), size)
		if whole, _ := v.Bytes(text); got != string(whole) {
			t.Fatalf("%q in chunks of %d is %q, whole %q", text, size, got, whole)
		}
		for _, s := range []string{secret, "aaaab", "abab"} {
			if strings.Contains(got, s) {
				t.Fatalf("%q is in %q", s, got)
			}
		}
	})
}

func BenchmarkStream(b *testing.B) {
	v := values(b, secret, "tok_"+strings.Repeat("x7", 20))
	page := bytes.Repeat([]byte(`<tr><td class="name">An ordinary page of an ordinary application</td><td>100%</td></tr>`), 400)
	out := make([]byte, 0, 2*len(page))
	b.SetBytes(int64(len(page)))
	b.ReportAllocs()
	for b.Loop() {
		s := v.Stream()
		out = s.Flush(s.Push(out[:0], page))
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		if _, err := New([]string{secret, "correct horse battery staple"}); err != nil {
			b.Fatal(err)
		}
	}
}
