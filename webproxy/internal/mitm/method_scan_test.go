package mitm

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func simpleField(name string) bool {
	name, _, _ = strings.Cut(strings.ToLower(strings.TrimLeft(name, " ")), "\x00")
	switch strings.NewReplacer("-", "_", ".", "_", "[", "_", " ", "_").Replace(name) {
	case "_method", "x_http_method_override":
		return true
	}
	return false
}

// simpleScan is methodScan byte by byte, slow and plain: what the quick one finds
// is compared with it.
type simpleScan struct {
	methods []string
	unclear bool

	step func(s *simpleScan, c byte)
	done func(s *simpleScan)

	key, value []byte
	want       bool // value is of a field that names a method
	after      bool // the key is through

	// Of JSON.
	depth        int
	quoted, back bool
	named        bool // the key at hand was one of methods

	// Of multipart.
	boundary string
	line     []byte
	long     bool
	header   bool
	part     []string // header lines
}

func (s *simpleScan) write(p []byte) {
	for _, c := range p {
		s.step(s, c)
	}
}

func (s *simpleScan) finish() { s.done(s) }

func (s *simpleScan) add(value []byte, known bool) {
	m := strings.TrimSpace(string(value))
	switch {
	case m == "" || slices.Contains(s.methods, m):
	case !known || len(s.methods) >= maxMethods || strings.ContainsFunc(m, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		s.unclear = true
	default:
		s.methods = append(s.methods, m)
	}
}

func keepByte(b []byte, c byte) []byte {
	if len(b) <= maxMethodField {
		b = append(b, c)
	}
	return b
}

func (s *simpleScan) form(c byte) {
	switch {
	case c == '&' || c == ';':
		s.pair()
	case c == '=' && !s.after:
		name, err := url.QueryUnescape(string(s.key))
		if err != nil {
			name = string(s.key)
		}
		s.after, s.want = true, len(s.key) <= maxMethodField && simpleField(name)
	case !s.after:
		s.key = keepByte(s.key, c)
	case s.want:
		s.value = keepByte(s.value, c)
	}
}

func (s *simpleScan) pair() {
	if s.want {
		v, err := url.QueryUnescape(string(s.value))
		s.add([]byte(v), err == nil && len(s.value) <= maxMethodField)
		s.unclear = s.unclear || err != nil
	}
	s.key, s.value, s.after, s.want = s.key[:0], s.value[:0], false, false
}

func (s *simpleScan) json(c byte) {
	switch {
	case c == 0: // UTF-16 or UTF-32, which some servers read
		s.unclear = true
	case s.quoted && s.back:
		s.value, s.back = keepByte(s.value, c), false
	case s.quoted && c == '"':
		s.quoted = false
		if s.depth == 1 && s.named {
			v, ok := jsonText(s.value)
			s.add([]byte(v), ok)
			s.named = false
		}
	case s.quoted:
		s.value, s.back = keepByte(s.value, c), c == '\\'
	case c == '"':
		s.quoted, s.value = true, s.value[:0]
	case c == '{' || c == '[':
		s.depth++
	case c == '}' || c == ']':
		s.depth--
	case c == ':' && s.depth == 1:
		name, ok := jsonText(s.value)
		s.named = ok && simpleField(name)
	case c == ',' && s.depth == 1:
		s.named = false
	}
}

func (s *simpleScan) byLine(c byte) {
	switch {
	case c == '\n':
		s.lineEnd()
		s.line, s.long = s.line[:0], false
	case len(s.line) < maxMethodLine:
		s.line = append(s.line, c)
	default:
		s.long = true
	}
}

func (s *simpleScan) lastLine() {
	s.lineEnd()
	s.endPart()
}

func (s *simpleScan) lineEnd() {
	line := bytes.TrimSuffix(s.line, []byte("\r"))
	switch {
	case bytes.HasPrefix(line, []byte(s.boundary)):
		s.endPart()
		s.header, s.part = true, nil
	case !s.header:
		if s.want {
			for _, c := range line {
				s.value = keepByte(s.value, c)
			}
			s.value = keepByte(s.value, '\n')
		}
	case s.long || len(s.part) > 32:
		s.unclear = true
	case len(line) == 0:
		s.header = false
		s.want = slices.ContainsFunc(s.part, s.ofMethod)
	case (line[0] == ' ' || line[0] == '\t') && len(s.part) > 0: // folded
		s.part[len(s.part)-1] += string(line)
	default:
		s.part = append(s.part, string(line))
	}
}

func (s *simpleScan) ofMethod(line string) bool {
	name, v, _ := strings.Cut(line, ":")
	if !strings.EqualFold(strings.TrimSpace(name), "Content-Disposition") {
		return false
	}
	_, params, err := mime.ParseMediaType(v)
	if err != nil {
		if plain := strings.ToLower(v); strings.Contains(plain, "method") {
			s.unclear = true // somebody else may understand it
		}
		return false
	}
	return simpleField(params["name"])
}

func (s *simpleScan) endPart() {
	if s.want {
		s.add(s.value, len(s.value) <= maxMethodField)
	}
	s.want, s.value = false, s.value[:0]
}

// bodyKinds are the media types that are looked at.
var bodyKinds = []string{formType, "application/json", partsType}

func quickOf(kind string) *methodScan {
	s, _ := newMethodScan(http.Header{"Content-Type": {kind}})
	return s
}

func simpleOf(kind string) *simpleScan {
	switch kind {
	case formType:
		return &simpleScan{step: (*simpleScan).form, done: (*simpleScan).pair}
	case partsType:
		return &simpleScan{boundary: "--XX", step: (*simpleScan).byLine, done: (*simpleScan).lastLine}
	}
	return &simpleScan{step: (*simpleScan).json, done: func(*simpleScan) {}}
}

// sameScan compares the quick scan with the simple one after each piece: what is
// known then decides on what leaves.
func sameScan(t interface{ Fatalf(string, ...any) }, kind string, pieces [][]byte) {
	quick, simple := quickOf(kind), simpleOf(kind)
	same := func(after int) {
		if !slices.Equal(quick.methods, simple.methods) || quick.unclear != simple.unclear {
			t.Fatalf("%s, after %d of %q: %q, unclear %v; simple %q, %v", kind, after, pieces, quick.methods, quick.unclear, simple.methods, simple.unclear)
		}
	}
	for i, p := range pieces {
		before := bytes.Clone(p)
		quick.write(p)
		if !bytes.Equal(p, before) {
			t.Fatalf("%s: %q became %q", kind, before, p)
		}
		simple.write(p)
		clear(p) // it keeps no piece
		same(i)
	}
	quick.finish()
	simple.finish()
	same(len(pieces))
}

func TestMethodScanIsTheSimpleOne(t *testing.T) {
	long := strings.Repeat("x", maxMethodField-3)
	tokens := rapid.SampledFrom([]string{
		"_method", "X-HTTP-Method-Override", "x.http method[overrİde", "DELETE", "put", "a", "xy", long, strings.Repeat("x", maxMethodLine-2),
		"&", ";", "=", "%5f", "%", "+", " ", "\x00", "\x00", "ü", "\xff", `"`, `"`, `"`, `\`, `\u005f`, "{", "}", "[", "]", ":", ",", "1.5", "null",
		`{"_method":"DELETE"`, `"_method" : "PUT",`, `"a":"_method",`, "&_method=PATCH&",
		"--XX", "--XX--", "\r\n", "\n", "\r", "\t", "\r\n\r\n", `Content-Disposition: form-data; name="_method"`, `Content-Disposition: form-data; name=_method; name=x`, "X: y", "content-disposition:",
		"\r\n--XX\r\nContent-Disposition: form-data; name=\"_method\"\r\n\r\nDELETE\r\n",
	})
	rapid.Check(t, func(t *rapid.T) {
		body := []byte(strings.Join(rapid.SliceOfN(tokens, 0, 40).Draw(t, "body"), ""))
		for _, kind := range bodyKinds {
			var pieces [][]byte
			for rest := bytes.Clone(body); len(rest) > 0; {
				n := min(rapid.SampledFrom([]int{1, 1, 2, 3, 7, 50, 300, 5000}).Draw(t, "piece"), len(rest))
				pieces = append(pieces, rest[:n])
				rest = rest[n:]
			}
			sameScan(t, kind, pieces)
		}
	})
}

// uneven reads as much at once as its list says, over and over.
type uneven struct {
	r     io.Reader
	sizes []int
	n     int
}

func (u *uneven) Read(p []byte) (int, error) {
	u.n++
	return u.r.Read(p[:min(len(p), u.sizes[u.n%len(u.sizes)])])
}

// What passes is what came, however it comes and is read.
func TestLateMethodsPass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		body := make([]byte, rapid.IntRange(0, 5*lateBuffer).Draw(t, "length"))
		for i := range body {
			body[i] = byte(i ^ i>>8 ^ i>>16)
		}
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{1000, lateBuffer - 1, lateBuffer, 1 << 20}), 1, 4)
		head := min(len(body), rapid.IntRange(0, maxMethodBody+1).Draw(t, "head"))
		scan := quickOf(partsType)
		l := &lateMethods{src: &uneven{r: bytes.NewReader(body[head:]), sizes: sizes.Draw(t, "come")}, scan: scan, back: bytes.Clone(body[:head])}
		got, err := io.ReadAll(&uneven{r: l, sizes: sizes.Draw(t, "read")})
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("%d of %d bytes pass, %v", len(got), len(body), err)
		}
	})
}

// A long body passes through the same few buffers.
func TestLateMethodsAllocate(t *testing.T) {
	body := bytes.Repeat([]byte("a line of a file that is uploaded\r\n"), 8<<20/35)
	into := make([]byte, lateBuffer)
	n := testing.AllocsPerRun(1, func() {
		scan := quickOf(partsType)
		l := &lateMethods{src: bytes.NewReader(body), scan: scan}
		if n, err := io.CopyBuffer(plainWriter{}, plainReader{l}, into); n != int64(len(body)) || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
	if n > 50 {
		t.Errorf("%v allocations for %d buffers", n, len(body)/lateBuffer)
	}
}

// plainReader and plainWriter have no shorter way than to copy.
type plainReader struct{ r io.Reader }

func (p plainReader) Read(b []byte) (int, error) { return p.r.Read(b) }

type plainWriter struct{}

func (plainWriter) Write(b []byte) (int, error) { return len(b), nil }

// BenchmarkMethodScan compares the passing of a long body that is looked at with
// one that is only copied, in one run: x-plain is how many times as long it
// takes, x-simple the same for the plain scan byte by byte.
func BenchmarkMethodScan(b *testing.B) {
	random := make([]byte, 8<<20)
	for i, x := range random {
		random[i] = byte(uint64(i)*0x9E3779B97F4A7C15>>56) ^ x
	}
	text := strings.Repeat("VGhlIHF1aWNrIGJyb3duIGZveCBqdW1wcyBvdmVyIHRoZSBsYXp5IGRvZw", 8<<20/60)
	object := `{"id":123456,"name":"a thing of some kind","tags":["one","two"],"size":[1.5,2.25,3],"on":true},`
	for _, x := range []struct{ name, kind, body string }{
		{"form-fields", formType, strings.Repeat("field_name=some+value+of+it&", 8<<20/28)},
		{"form-value", formType, "a=1&file=" + text},
		{"parts-binary", partsType, parts(`name="a"`, "1", `name="f"; filename="f"`, string(random))},
		{"parts-lines", partsType, parts(`name="f"; filename="f"`, strings.Repeat("a;line;of;a;table;17;18\r\n", 8<<20/25))},
		{"json-objects", "application/json", `{"list":[` + strings.Repeat(object, 8<<20/len(object)) + `0]}`},
		{"json-value", "application/json", `{"name":"f","file":"` + text + `"}`},
	} {
		b.Run(x.name, func(b *testing.B) {
			b.SetBytes(int64(len(x.body)))
			b.ReportAllocs()
			into := make([]byte, lateBuffer)
			pass := func(r io.Reader) time.Duration {
				began := time.Now()
				if n, err := io.CopyBuffer(plainWriter{}, plainReader{r}, into); n != int64(len(x.body)) || err != nil {
					b.Fatalf("%d of %d bytes, %v", n, len(x.body), err)
				}
				return time.Since(began)
			}
			var plain, looked, simple time.Duration
			for b.Loop() {
				b.StopTimer()
				slow := simpleOf(x.kind)
				plain += pass(strings.NewReader(x.body))
				began := time.Now()
				slow.write([]byte(x.body))
				slow.finish()
				simple += time.Since(began)
				b.StartTimer()
				scan := quickOf(x.kind)
				looked += pass(&lateMethods{src: strings.NewReader(x.body), scan: scan})
			}
			b.ReportMetric(float64(looked)/float64(plain), "x-plain")
			b.ReportMetric(float64(simple)/float64(plain), "x-simple")
		})
	}
}
