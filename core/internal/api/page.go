package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
)

// Page is one page of a list; Next is the cursor of the following page, empty at the end.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// IDIn is the input of operations on one thing.
type IDIn struct {
	ID string `path:"id" maxLength:"64"`
}

// ConnectionIDIn is that of operations on a connection of some kind.
type ConnectionIDIn struct {
	ID string `path:"id" maxLength:"64" doc:"connection id"`
}

// PageIn is embedded in the input of operations that list.
type PageIn struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"500" default:"50" doc:"entries per page"`
	Cursor string `query:"cursor" maxLength:"1024" doc:"next of the page before"`
}

// maxCursor bounds a cursor, in bytes as the client sees it.
const maxCursor = 1024

// cursorV1 is the first byte of a cursor, so that its form may change.
const cursorV1 = 1

// EncodeCursor makes an opaque cursor of a position: the sort key of the last
// entry of a page. It is not secret and not trusted: a position may only
// select among what the caller may see anyway.
func EncodeCursor(position any) string {
	b, err := json.Marshal(position)
	if err != nil {
		panic("api: cursor position: " + err.Error()) // a position is a plain struct of ours
	}
	return base64.RawURLEncoding.EncodeToString(append([]byte{cursorV1}, b...))
}

var errCursor = errors.New("not a cursor")

// DecodeCursor fills position from a cursor; an empty one leaves it alone.
// What is not a cursor of this kind is a problem of the caller (422).
func DecodeCursor(cursor string, position any) error {
	if cursor == "" {
		return nil
	}
	if err := decodeCursor(cursor, position); err != nil {
		return Invalid(FieldError{Field: "query.cursor", Message: "use the value of next from the page before, unchanged"})
	}
	return nil
}

func decodeCursor(cursor string, position any) error {
	if len(cursor) > maxCursor {
		return errCursor
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(b) == 0 || b[0] != cursorV1 {
		return errCursor
	}
	d := json.NewDecoder(bytes.NewReader(b[1:]))
	d.DisallowUnknownFields()
	if err := d.Decode(position); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errCursor
	}
	return nil
}

// Paged makes a page of rows read with limit+1: the extra row only tells that
// there is a following page. position is the sort key of an entry.
func Paged[T any](rows []T, limit int, position func(T) any) Page[T] {
	if len(rows) <= limit {
		if rows == nil {
			rows = []T{}
		}
		return Page[T]{Items: rows}
	}
	rows = rows[:limit]
	return Page[T]{Items: rows, Next: EncodeCursor(position(rows[limit-1]))}
}
