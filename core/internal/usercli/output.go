package usercli

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// printJSON writes one indented JSON value.
func (e *env) printJSON(v any) error {
	enc := json.NewEncoder(e.Out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table prints aligned columns under a heading.
func (e *env) table(heading string, rows [][]string) error {
	w := tabwriter.NewWriter(e.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, strings.ReplaceAll(heading, " ", "\t"))
	for _, r := range rows {
		for i := range r {
			r[i] = plain(r[i])
			if r[i] == "" {
				r[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// list prints what a list of core holds: as it is in JSON, else a row for each
// item.
func list[T any](e *env, path string, query url.Values, limit int, heading string, row func(T) []string) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	items, err := c.all(e.ctx, path, query, limit)
	if err != nil {
		return err
	}
	return printItems(e, items, heading, row)
}

func printItems[T any](e *env, items []json.RawMessage, heading string, row func(T) []string) error {
	if e.json {
		return e.printJSON(nonNil(items))
	}
	all, err := decodeAll[T](items)
	if err != nil {
		return err
	}
	rows := make([][]string, len(all))
	for i, v := range all {
		rows[i] = row(v)
	}
	return e.table(heading, rows)
}

// nonNil is a list that is [] in JSON when it is empty.
func nonNil(items []json.RawMessage) []json.RawMessage {
	if items == nil {
		return []json.RawMessage{}
	}
	return items
}

// done says what was done to something: {"key": "id"} in JSON, else "name word".
func (e *env) done(key, id, name, word string) error {
	if e.json {
		return e.printJSON(map[string]string{key: id})
	}
	return e.printf("%s %s\n", plain(name), word)
}

// plain keeps text from the server from steering the terminal.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '·'
	}, s)
}

// when prints a time of the API for people, in their zone.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// size prints a count of bytes.
func size(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}
