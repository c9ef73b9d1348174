package config

import (
	"encoding"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// EnvPrefix begins every environment variable that sets a key: the key
// listen.https is CAPONIER_LISTEN_HTTPS.
const EnvPrefix = "CAPONIER_"

// Problem is one thing wrong with a configuration.
type Problem struct {
	Key  string // "listen.https"; empty for the file as a whole
	Text string
	Hint string // what to do about it; may be empty
}

// Problems is every problem of a configuration at once.
type Problems struct {
	File string
	List []Problem
}

// Error implements error: one line per problem.
func (p *Problems) Error() string {
	var b strings.Builder
	name := p.File
	if name == "" {
		name = "the configuration"
	}
	if len(p.List) == 1 {
		fmt.Fprintf(&b, "1 problem in %s:", name)
	} else {
		fmt.Fprintf(&b, "%d problems in %s:", len(p.List), name)
	}
	for _, q := range p.List {
		b.WriteString("\n  ")
		if q.Key != "" {
			b.WriteString(q.Key + ": ")
		}
		b.WriteString(q.Text)
		if q.Hint != "" {
			b.WriteString("\n      hint: " + q.Hint)
		}
	}
	return b.String()
}

// Validator is implemented by configuration structs with rules beyond types.
// Keys of the problems are relative to the struct.
type Validator interface{ Validate() []Problem }

// Load fills dst, a pointer to a struct holding the defaults, from the TOML
// file (empty name = no file) and from the environment, which wins. Fields are
// named by their `toml` tag; fields without one are not configurable. It
// returns *Problems with everything that is wrong. The fields of an embedded
// struct are fields of the struct around it.
func Load(dst any, file string, environ []string) error {
	var list []Problem
	tree := map[string]any{}
	if file != "" {
		data, err := os.ReadFile(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			list = append(list, Problem{Text: "the file does not exist", Hint: "give its path with --config, or leave --config away to use the defaults and the environment"})
		case err != nil:
			list = append(list, Problem{Text: err.Error()})
		default:
			if _, err := toml.Decode(string(data), &tree); err != nil {
				list = append(list, Problem{Text: tomlText(err), Hint: "this is not valid TOML; see https://toml.io"})
			}
		}
	}
	read := len(list) == 0
	l := &loader{env: envMap(environ)}
	l.table(reflect.ValueOf(dst).Elem(), tree, "")
	l.unknownEnv()
	list = append(list, l.problems...)
	if read { // of a file that could not be read everything would be missing
		for _, p := range validate(reflect.ValueOf(dst), "") {
			// A value that could not be taken is told once.
			if !slices.ContainsFunc(l.problems, func(q Problem) bool { return p.Key != "" && q.Key == p.Key }) {
				list = append(list, p)
			}
		}
	}
	if len(list) > 0 {
		return &Problems{File: file, List: list}
	}
	return nil
}

func tomlText(err error) string {
	if e, ok := errors.AsType[toml.ParseError](err); ok {
		return fmt.Sprintf("line %d: %s", e.Position.Line, e.Message)
	}
	return err.Error()
}

func envMap(environ []string) map[string]string {
	m := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(k, EnvPrefix) {
			m[k] = v
		}
	}
	return m
}

type loader struct {
	env      map[string]string
	used     []string
	problems []Problem
}

func (l *loader) add(key, text, hint string) {
	l.problems = append(l.problems, Problem{Key: key, Text: text, Hint: hint})
}

func join(prefix, name string) string {
	if prefix == "" {
		return name
	}
	return prefix + "." + name
}

// EnvName is the environment variable of a key.
func EnvName(key string) string {
	return EnvPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))
}

// table fills a struct from a table and reports the keys it does not know.
func (l *loader) table(v reflect.Value, tree map[string]any, prefix string) {
	known := l.fields(v, tree, prefix)
	names := make([]string, 0, len(tree))
	for name := range tree {
		if !slices.Contains(known, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		l.add(join(prefix, name), "unknown key", suggest(name, known))
	}
}

// fields fills a struct and returns the names it knows.
func (l *loader) fields(v reflect.Value, tree map[string]any, prefix string) (known []string) {
	t := v.Type()
	for i := range t.NumField() {
		if inline(t.Field(i)) {
			known = append(known, l.fields(v.Field(i), tree, prefix)...)
			continue
		}
		name := t.Field(i).Tag.Get("toml")
		if name == "" || name == "-" {
			continue
		}
		known = append(known, name)
		key, field := join(prefix, name), v.Field(i)
		raw, inFile := tree[name]
		if field.Kind() == reflect.Struct && !isText(field) {
			sub, ok := raw.(map[string]any)
			if inFile && !ok {
				l.add(key, "must be a table", "write it as ["+key+"]")
			}
			l.table(field, sub, key)
			continue
		}
		if inFile {
			l.set(field, raw, key)
		}
		env := EnvName(key)
		l.used = append(l.used, env)
		if s, ok := l.env[env]; ok {
			l.set(field, envValue(field, s), key+" ("+env+")")
		}
	}
	return known
}

// inline reports whether a field is an embedded struct, whose fields count as
// those of the struct around it.
func inline(f reflect.StructField) bool {
	return f.Anonymous && f.Tag.Get("toml") == "" && f.Type.Kind() == reflect.Struct
}

func (l *loader) unknownEnv() {
	var names []string
	for name := range l.env {
		// Variables of the test rig and of secrets read elsewhere are not keys.
		if !slices.Contains(l.used, name) && !strings.HasPrefix(name, EnvPrefix+"TEST_") && !slices.Contains(reserved, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		l.add("environment "+name, "sets no known key", suggest(name, l.used))
	}
}

// reserved are variables with the prefix that are no keys: the KEK, a token
// and the settings of the people's CLI.
var reserved = []string{EnvPrefix + "KEK", EnvPrefix + "TOKEN", EnvPrefix + "URL", EnvPrefix + "CA_FILE", EnvPrefix + "CONFIG_DIR", EnvPrefix + "PASSWORD"}

func isText(v reflect.Value) bool {
	_, ok := v.Addr().Interface().(encoding.TextUnmarshaler)
	return ok
}

// envValue turns an environment string into what TOML would have given.
func envValue(field reflect.Value, s string) any {
	switch {
	case isText(field):
		return s
	case field.Kind() == reflect.Bool:
		if b, err := strconv.ParseBool(s); err == nil {
			return b
		}
	case field.Kind() == reflect.Int || field.Kind() == reflect.Int64:
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n
		}
	case field.Kind() == reflect.Float64:
		if n, err := strconv.ParseFloat(s, 64); err == nil {
			return n
		}
	case field.Kind() == reflect.Slice:
		var list []any
		for part := range strings.SplitSeq(s, ",") {
			if part = strings.TrimSpace(part); part != "" {
				list = append(list, part)
			}
		}
		return list
	}
	return s
}

func (l *loader) set(field reflect.Value, raw any, key string) {
	if isText(field) {
		s, ok := raw.(string)
		if !ok {
			l.add(key, fmt.Sprintf("must be a string, not %s", kindName(raw)), "put it in quotes")
			return
		}
		if err := field.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
			l.add(key, err.Error(), "")
		}
		return
	}
	switch field.Kind() {
	case reflect.String:
		if s, ok := raw.(string); ok {
			field.SetString(s)
			return
		}
	case reflect.Bool:
		if b, ok := raw.(bool); ok {
			field.SetBool(b)
			return
		}
	case reflect.Int, reflect.Int64:
		if n, ok := raw.(int64); ok {
			field.SetInt(n)
			return
		}
	case reflect.Float64:
		switch n := raw.(type) {
		case float64:
			if !math.IsNaN(n) && !math.IsInf(n, 0) {
				field.SetFloat(n)
				return
			}
		case int64:
			field.SetFloat(float64(n))
			return
		}
	case reflect.Slice:
		if list, ok := raw.([]any); ok {
			out := reflect.MakeSlice(field.Type(), len(list), len(list))
			for i, item := range list {
				l.set(out.Index(i), item, fmt.Sprintf("%s[%d]", key, i))
			}
			field.Set(out)
			return
		}
	case reflect.Map:
		if m, ok := raw.(map[string]any); ok {
			out := reflect.MakeMap(field.Type())
			for k, item := range m {
				s, ok := item.(string)
				if !ok {
					l.add(join(key, k), "must be a string", "")
					continue
				}
				out.SetMapIndex(reflect.ValueOf(k), reflect.ValueOf(s))
			}
			field.Set(out)
			return
		}
	}
	l.add(key, fmt.Sprintf("must be %s, not %s", wantName(field.Kind()), kindName(raw)), "")
}

func wantName(k reflect.Kind) string {
	switch k {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list"
	case reflect.Map:
		return "a table"
	default:
		return "a string"
	}
}

func kindName(raw any) string {
	switch v := raw.(type) {
	case string:
		return "the string " + strconv.Quote(v)
	case bool:
		return "true or false"
	case int64, float64:
		return "a number"
	case time.Time:
		return "a date"
	case []any:
		return "a list"
	default:
		return "a table"
	}
}

// suggest finds the known name closest to a misspelt one.
func suggest(name string, known []string) string {
	best, dist := "", 4
	for _, k := range known {
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d < dist {
			best, dist = k, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	if len(known) == 0 || len(known) > 20 {
		return "remove it"
	}
	known = slices.Sorted(slices.Values(known))
	return "known here: " + strings.Join(known, ", ")
}

// distance is the Levenshtein distance of two short names.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diag, row[j] = row[j], min(row[j]+1, row[j-1]+1, diag+cost)
		}
	}
	return row[len(b)]
}

func validate(v reflect.Value, prefix string) []Problem {
	var list []Problem
	if val, ok := v.Interface().(Validator); ok {
		for _, p := range val.Validate() {
			p.Key = join(prefix, p.Key)
			list = append(list, p)
		}
	}
	return append(list, validateFields(v.Elem(), prefix)...)
}

func validateFields(s reflect.Value, prefix string) []Problem {
	var list []Problem
	for i := range s.NumField() {
		f, name := s.Field(i), s.Type().Field(i).Tag.Get("toml")
		switch {
		case inline(s.Type().Field(i)):
			// Its Validate is promoted, or called by that of the struct around it.
			list = append(list, validateFields(f, prefix)...)
		case name != "" && f.Kind() == reflect.Struct && !isText(f):
			list = append(list, validate(f.Addr(), join(prefix, name))...)
		}
	}
	return list
}
