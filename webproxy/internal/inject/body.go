package inject

import (
	"bytes"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
)

// mailSuffix makes a placeholder pass for an address in fields of type email.
const mailSuffix = "@caponier.invalid"

// replaceForm offers the values of a field to put; everything else keeps its
// bytes. found reports whether put took one.
func replaceForm(body []byte, field string, put func(string) (string, bool)) (out []byte, found bool) {
	for i, pair := range bytes.Split(body, []byte("&")) {
		if i > 0 {
			out = append(out, '&')
		}
		k, v, ok := strings.Cut(string(pair), "=")
		if ok && len(v) <= 256 {
			key, err1 := url.QueryUnescape(k)
			val, err2 := url.QueryUnescape(v)
			if err1 == nil && err2 == nil && key == field {
				if to, yes := put(val); yes {
					found = true
					pair = []byte(k + "=" + url.QueryEscape(to))
				}
			}
		}
		out = append(out, pair...)
	}
	return out, found
}

// jsonKey writes an object's key as a step of a path: a dot of its own is
// written \., so that the key "user.password" is another place than the key
// password in the object user.
var jsonKey = strings.NewReplacer(`\`, `\\`, ".", `\.`)

// replaceJSON offers the strings at a path ("user.password", "items.0.pw",
// `user\.password`).
func replaceJSON(body []byte, path string, put func(string) (string, bool)) (out []byte, found bool) {
	last := 0
	ok := walkJSON(body, func(string) {}, func(at, s string, from, to int) {
		if at != path {
			return
		}
		if v, yes := put(s); yes {
			found = true
			out = append(append(out, body[last:from]...), jsonString(v)...)
			last = to
		}
	})
	if !ok || !found {
		return body, false
	}
	return append(out, body[last:]...), true
}

// walkJSON calls key for each key of an object, with its path, and text for each
// string that is a value, which stands in body[from:to]. It reports whether the
// body is JSON, and not too deep; of what is not, a part was called for.
func walkJSON(body []byte, key func(path string), text func(path, s string, from, to int)) bool {
	type frame struct {
		array bool
		key   string
		n     int
	}
	var stack []frame
	at := func() string {
		parts := make([]string, 0, len(stack))
		for _, f := range stack {
			if f.array {
				parts = append(parts, strconv.Itoa(f.n))
			} else {
				parts = append(parts, jsonKey.Replace(f.key))
			}
		}
		return strings.Join(parts, ".")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	wantKey := false
	for {
		start := dec.InputOffset()
		tok, err := dec.Token()
		if err == io.EOF && len(stack) == 0 {
			return true
		}
		if err != nil || len(stack) > 64 {
			return false
		}
		end := dec.InputOffset()
		if d, ok := tok.(json.Delim); ok {
			switch d {
			case '{', '[':
				stack = append(stack, frame{array: d == '['})
				wantKey = d == '{'
				continue
			}
			stack = stack[:len(stack)-1]
		} else if s, ok := tok.(string); ok {
			if wantKey {
				stack[len(stack)-1].key = s
				wantKey = false
				key(at())
				continue
			}
			// Between the end of the token before and this one's quote are
			// separators only.
			text(at(), s, int(start)+bytes.IndexByte(body[start:end], '"'), int(end))
		}
		// A value has ended.
		if len(stack) > 0 {
			top := &stack[len(stack)-1]
			if top.array {
				top.n++
			} else {
				wantKey = true
			}
		}
	}
}

// jsonString writes a string without HTML's escapes.
func jsonString(s string) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string into memory
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// replaceMultipart offers the values of a field of multipart/form-data.
func replaceMultipart(body []byte, boundary, field string, put func(string) (string, bool)) (out []byte, found bool) {
	if boundary == "" {
		return body, false
	}
	r := multipart.NewReader(bytes.NewReader(body), boundary)
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if w.SetBoundary(boundary) != nil {
		return body, false
	}
	for {
		p, err := r.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return body, false
		}
		data, err := io.ReadAll(p)
		if err != nil {
			return body, false
		}
		// Of two dispositions servers may take the other one.
		if p.FormName() == field && p.FileName() == "" && len(p.Header["Content-Disposition"]) == 1 && len(data) <= 256 {
			if to, yes := put(string(data)); yes {
				found = true
				data = []byte(to)
			}
		}
		to, err := w.CreatePart(textproto.MIMEHeader(p.Header))
		if err != nil {
			return body, false
		}
		_, _ = to.Write(data) // into memory
	}
	if !found || w.Close() != nil {
		return body, false
	}
	return b.Bytes(), true
}
