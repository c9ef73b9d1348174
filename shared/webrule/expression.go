package webrule

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
)

// Expression is one {{…}} in a step: values, joined, and before them the
// functions applied to the whole, the last one first: "password",
// "sha256 salt password", "upper md5 password".
type Expression struct {
	Text       string
	Start, End int      // in the text, braces included
	Functions  []string // outermost first
	Parts      []string // joined: names of values
}

// functions hash or encode; sha256 means its lower-case hexadecimal form.
var functions = map[string]func(string) string{
	"md5":    func(s string) string { h := md5.Sum([]byte(s)); return hex.EncodeToString(h[:]) },
	"sha1":   func(s string) string { h := sha1.Sum([]byte(s)); return hex.EncodeToString(h[:]) },
	"sha256": func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) },
	"sha512": func(s string) string { h := sha512.Sum512([]byte(s)); return hex.EncodeToString(h[:]) },
	"base64": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
	"upper":  strings.ToUpper,
	"lower":  strings.ToLower,
}

// Expressions finds the expressions of a text. What is not closed is text.
func Expressions(text string) []Expression {
	var out []Expression
	for at := 0; ; {
		i := strings.Index(text[at:], "{{")
		if i < 0 {
			return out
		}
		i += at
		j := strings.Index(text[i:], "}}")
		if j < 0 {
			return out
		}
		at = i + j + 2
		e := Expression{Text: text[i+2 : at-2], Start: i, End: at}
		e.Parts = strings.FieldsFunc(e.Text, func(r rune) bool { return r == ' ' || r == '+' || r == '\t' })
		for len(e.Parts) > 1 && functions[e.Parts[0]] != nil {
			e.Functions, e.Parts = append(e.Functions, e.Parts[0]), e.Parts[1:]
		}
		out = append(out, e)
	}
}

// known reports whether everything in e exists, given the extracts so far.
func (e Expression) known(extracts map[string]bool) bool {
	for _, p := range e.Parts {
		if v := Value(p); v != Username && v != Password && v != TOTP && !extracts[p] {
			return false
		}
	}
	return len(e.Parts) > 0
}

// secret reports whether e holds a secret of the credential, in whatever form.
func (e Expression) secret() bool {
	return slices.Contains(e.Parts, string(Password)) || slices.Contains(e.Parts, string(TOTP))
}

// Eval computes e from values by name; ok is false if one is missing.
func (e Expression) Eval(values map[string]string) (s string, ok bool) {
	for _, p := range e.Parts {
		v, have := values[p]
		if !have {
			return "", false
		}
		s += v
	}
	for i := len(e.Functions) - 1; i >= 0; i-- {
		s = functions[e.Functions[i]](s)
	}
	return s, len(e.Parts) > 0
}

// Expand replaces the expressions of text, each result passed through encode.
func Expand(text string, values map[string]string, encode func(string) string) (string, bool) {
	var b strings.Builder
	at := 0
	for _, e := range Expressions(text) {
		v, ok := e.Eval(values)
		if !ok {
			return "", false
		}
		b.WriteString(text[at:e.Start])
		b.WriteString(encode(v))
		at = e.End
	}
	b.WriteString(text[at:])
	return b.String(), true
}
