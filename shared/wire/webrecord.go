package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// WebRecordKind says what a WebRecord holds.
type WebRecordKind byte

// The kinds.
const (
	WebFrame WebRecordKind = 'f' // a picture, as shared/rfb encodes frames
	WebEvent WebRecordKind = 'e' // JSON: WebEventBody
)

// WebRecord is one entry of a web session's timeline, as an edge delivers it.
// Sequence numbers count from 1 per session and node without gaps.
type WebRecord struct {
	Seq     uint64
	At      int64 // unix microseconds, the edge's clock
	Kind    WebRecordKind
	Payload []byte
}

// WebEventBody is the payload of a WebEvent. Types: request, navigation,
// blocked, injection, fill, clipboard, upload, download, notice, browser, viewer.
type WebEventBody struct {
	Type   string            `json:"type"`
	Fields map[string]string `json:"fields"`
}

// ErrWebRecord is the error under every record that is malformed or too long.
var ErrWebRecord = errors.New("malformed web record")

// AppendWebRecord appends the encoding of r to b: kind, then sequence number,
// time and length as unsigned varints, then the payload.
func AppendWebRecord(b []byte, r WebRecord) ([]byte, error) {
	if r.Kind != WebFrame && r.Kind != WebEvent || r.Seq == 0 || r.At < 0 || len(r.Payload) > MaxWebRecord {
		return b, fmt.Errorf("%w: kind %d, number %d, %d bytes", ErrWebRecord, r.Kind, r.Seq, len(r.Payload))
	}
	b = append(b, byte(r.Kind))
	b = binary.AppendUvarint(b, r.Seq)
	b = binary.AppendUvarint(b, uint64(r.At))
	b = binary.AppendUvarint(b, uint64(len(r.Payload)))
	return append(b, r.Payload...), nil
}

// ParseWebRecords decodes a batch. The payloads alias b.
func ParseWebRecords(b []byte) ([]WebRecord, error) {
	if len(b) > MaxWebRecords {
		return nil, fmt.Errorf("%w: a batch of %d bytes", ErrWebRecord, len(b))
	}
	var list []WebRecord
	for len(b) > 0 {
		r := WebRecord{Kind: WebRecordKind(b[0])}
		b = b[1:]
		var at, size uint64
		for _, to := range []*uint64{&r.Seq, &at, &size} {
			v, n := binary.Uvarint(b)
			if n <= 0 {
				return nil, fmt.Errorf("%w: cut in record %d", ErrWebRecord, len(list))
			}
			*to, b = v, b[n:]
		}
		switch {
		case r.Kind != WebFrame && r.Kind != WebEvent:
			return nil, fmt.Errorf("%w: kind %d", ErrWebRecord, r.Kind)
		case r.Seq == 0 || at > 1<<62:
			return nil, fmt.Errorf("%w: number %d at %d", ErrWebRecord, r.Seq, at)
		case len(list) > 0 && r.Seq != list[len(list)-1].Seq+1:
			return nil, fmt.Errorf("%w: %d follows %d", ErrWebRecord, r.Seq, list[len(list)-1].Seq)
		case size > MaxWebRecord || size > uint64(len(b)):
			return nil, fmt.Errorf("%w: %d bytes in record %d", ErrWebRecord, size, len(list))
		}
		r.At, r.Payload, b = int64(at), b[:size:size], b[size:]
		list = append(list, r)
	}
	return list, nil
}
