package mitm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// preview shows a body to who decides on it: fields of a form, JSON in order,
// names and sizes of the parts of multipart; nil for anything else. It holds no
// value that the recipe puts in (there is a placeholder in the body, and its
// kind is shown), nor one that looks secret.
func (x *exchange) preview(body []byte) *wire.WebPreview {
	types := x.in.Header.Values("Content-Type")
	if len(body) == 0 || len(types) != 1 || len(x.in.Header.Values("Content-Encoding")) > 0 {
		return nil
	}
	kind, params, err := mime.ParseMediaType(types[0])
	if err != nil || !likeASCII(params["charset"]) {
		return nil
	}
	p := &previewer{injections: x.rev.Policy.Recipe.Injections, placeholder: x.ses.Inject.Placeholder, mask: x.ses.Values.String}
	out := &wire.WebPreview{}
	switch {
	case kind == "application/x-www-form-urlencoded":
		out.Kind, err = "form", p.form(body)
	case kind == "application/json" || strings.HasSuffix(kind, "+json"):
		out.Kind, err = "json", p.json(body)
	case kind == "multipart/form-data":
		out.Kind, err = "multipart", p.multipart(body, params["boundary"])
	default:
		return nil
	}
	if err != nil && !errors.Is(err, errPreviewFull) || p.text.Len() == 0 {
		return nil
	}
	out.Text = strings.TrimSuffix(p.text.String(), "\n")
	if err != nil {
		out.Text += "\n" + fmt.Sprintf("… there is more: the body has %d bytes", len(body))
	}
	return out
}

const (
	// maxPreviewText leaves room for the line that says that there is more.
	maxPreviewText  = wire.MaxWebPreview - 200
	maxPreviewValue = 2 << 10
	maxPreviewDepth = 64
	hidden          = "***"
)

var (
	errPreviewFull = errors.New("the preview is full")
	errPreviewDeep = errors.New("the body is nested too deep")
)

// previewer writes a preview.
type previewer struct {
	injections  []webrule.Injection
	placeholder func(webrule.Injection) string
	mask        func(string) (string, int) // hides what was put in before
	text        strings.Builder
}

func (p *previewer) put(s ...string) error {
	n := p.text.Len()
	for _, part := range s {
		n += len(part)
	}
	if n > maxPreviewText {
		return errPreviewFull
	}
	for _, part := range s {
		p.text.WriteString(part)
	}
	return nil
}

// shown is a field's value as it may be seen, without quotes.
func (p *previewer) shown(name, path, v string) string {
	var ours bool
	for _, in := range p.injections {
		if in.Field != path || in.Kind != webrule.Form && in.Kind != webrule.Multipart && in.Kind != webrule.JSON {
			continue
		}
		ours = true
		if mark := p.placeholder(in); v == mark || strings.HasPrefix(v, mark+"@") {
			return "{{" + string(in.Value) + "}}"
		}
	}
	if ours || secretField(name) || looksSecret(v) && !isUUID(v) || tellsSecret(v) {
		return hidden
	}
	for _, in := range p.injections {
		if in.Value != webrule.TOTP { // else any number of six digits could be one
			v = strings.ReplaceAll(v, p.placeholder(in), "{{"+string(in.Value)+"}}")
		}
	}
	v, _ = p.mask(v)
	if len(v) > maxPreviewValue {
		v = clip(v, maxPreviewValue) + fmt.Sprintf("… (%d bytes)", len(v))
	}
	return visible(v)
}

// secretField is secretName for the fields of bodies, where "state" and "key"
// are ordinary words.
func secretField(name string) bool {
	name = strings.ToLower(name)
	return name != "state" && name != "key" && secretName(name) || strings.Contains(name, "csrf") || strings.Contains(name, "xsrf") || strings.Contains(name, "pin_code") || name == "pin" || name == "cvc" || name == "cvv"
}

// tellsSecret: a text that seems to hold a secret among other things, such as
// JSON in a string, or a query.
func tellsSecret(v string) bool {
	v = strings.ToLower(v)
	if strings.Contains(v, "private key") || strings.Contains(v, "bearer ") {
		return true
	}
	return strings.ContainsAny(v, ":=") && slices.ContainsFunc([]string{"passw", "pwd", "secret", "token", "apikey", "api_key", "otp", "credential"},
		func(w string) bool { return strings.Contains(v, w) })
}

// isUUID: RFC 9562 §4, which names things.
func isUUID(v string) bool {
	return len(v) == 36 && v[8] == '-' && v[13] == '-' && v[18] == '-' && v[23] == '-' && strings.Trim(v, "0123456789abcdefABCDEF-") == ""
}

// visible writes what has no shape of its own, or moves what stands beside it.
func visible(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case unicode.In(r, unicode.C, unicode.Zl, unicode.Zp):
			fmt.Fprintf(&b, `\u{%X}`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// label is a field's name; it cannot pass for one with a value.
func label(name string) string {
	if !utf8.ValidString(name) {
		name = strings.ToValidUTF8(name, "\uFFFD")
	}
	return strings.ReplaceAll(visible(clip(name, 200)), "=", `\u{3D}`)
}

// form writes "name = value" lines.
func (p *previewer) form(body []byte) error {
	if !utf8.Valid(body) {
		return errors.New("not UTF-8")
	}
	for pair := range strings.SplitSeq(string(body), "&") {
		if pair == "" {
			continue
		}
		k, v, _ := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(k)
		value, err2 := url.QueryUnescape(v)
		if err := errors.Join(err1, err2); err != nil || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return fmt.Errorf("a field cannot be read: %w", errors.Join(err, errors.New("encoding")))
		}
		if err := p.put(label(name), " = ", p.shown(name, name, value), "\n"); err != nil {
			return err
		}
	}
	return nil
}

// multipart writes names, of files their names, types and sizes.
func (p *previewer) multipart(body []byte, boundary string) error {
	if boundary == "" {
		return errors.New("no boundary")
	}
	r := multipart.NewReader(bytes.NewReader(body), boundary)
	for {
		part, err := r.NextRawPart()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("a part cannot be read: %w", err)
		}
		n, err := io.Copy(io.Discard, part)
		if err != nil {
			return fmt.Errorf("a part cannot be read: %w", err)
		}
		line := label(part.FormName())
		if file := part.FileName(); file != "" {
			line += " = file " + strconv.Quote(visible(clip(strings.ToValidUTF8(file, "\uFFFD"), 200)))
			if t := part.Header.Get("Content-Type"); t != "" {
				line += ", " + visible(clip(strings.ToValidUTF8(t, "\uFFFD"), 100))
			}
			line += ","
		} else {
			line += " ="
		}
		if err := p.put(line, fmt.Sprintf(" %d bytes\n", n)); err != nil {
			return err
		}
	}
}

// json writes what is valid with its fields in their order.
func (p *previewer) json(body []byte) error {
	if !utf8.Valid(body) || !json.Valid(body) {
		return errors.New("not JSON")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	return p.value(dec, "", "", 0)
}

// jsonStep writes a key as injections name it: see webrule.Injection.
var jsonStep = strings.NewReplacer(`\`, `\\`, ".", `\.`)

// value writes the next value; name is its key, or that of the list it is in.
func (p *previewer) value(dec *json.Decoder, name, path string, depth int) error {
	if depth > maxPreviewDepth {
		return errPreviewDeep
	}
	tok, err := dec.Token()
	if err != nil {
		return fmt.Errorf("read JSON: %w", err)
	}
	below := func(step string) string {
		if path == "" {
			return step
		}
		return path + "." + step
	}
	indent := "\n" + strings.Repeat("  ", depth+1)
	switch t := tok.(type) {
	case json.Delim:
		if secretField(name) {
			if err := skip(dec); err != nil {
				return err
			}
			return p.put(hidden)
		}
		if err := p.put(t.String()); err != nil {
			return err
		}
		n := 0
		for ; dec.More(); n++ {
			if n > 0 {
				if err := p.put(","); err != nil {
					return err
				}
			}
			key, step, next := "", strconv.Itoa(n), name
			if t == '{' {
				tok, err := dec.Token()
				if err != nil {
					return fmt.Errorf("read JSON: %w", err)
				}
				next, _ = tok.(string)
				key, step = quoted(visible(clip(next, 200)))+": ", jsonStep.Replace(next)
			}
			if err := p.put(indent, key); err != nil {
				return err
			}
			if err := p.value(dec, next, below(step), depth+1); err != nil {
				return err
			}
		}
		end, err := dec.Token()
		if err != nil {
			return fmt.Errorf("read JSON: %w", err)
		}
		if n > 0 {
			return p.put(indent[:len(indent)-2], end.(json.Delim).String())
		}
		return p.put(end.(json.Delim).String())
	case string:
		v := p.shown(name, path, t)
		if v == hidden {
			return p.put(v)
		}
		return p.put(quoted(v))
	case json.Number:
		return p.put(p.shown(name, path, t.String()))
	case bool:
		return p.put(strconv.FormatBool(t))
	}
	return p.put("null")
}

// quoted puts a text between quotes; backslashes stand as they are.
func quoted(s string) string { return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"` }

// skip reads the rest of an object or list that has begun.
func skip(dec *json.Decoder) error {
	for depth := 1; depth > 0; {
		tok, err := dec.Token()
		if err != nil {
			return fmt.Errorf("read JSON: %w", err)
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
	return nil
}
