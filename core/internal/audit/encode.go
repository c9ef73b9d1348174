package audit

import (
	"crypto/sha256"
	"encoding/binary"
)

// digest is a SHA-256 hash.
type digest [sha256.Size]byte

// row is an event as stored, with its place in the chain.
//
// What may name a person (the actor's name and address; the object's name and
// the fields) enters the chain through salted commitments. Erasing a person
// clears those texts and their salt and keeps the commitment: the chain still
// verifies and the text cannot be guessed from what remains.
type row struct {
	ID  string
	Seq int64
	Event

	prev, hash                digest
	actorSalt, detailSalt     [16]byte
	actorCommit, detailCommit digest
	actorErased, detailErased bool
}

// Domains keep the hashes of different things apart.
const (
	domainEvent  = "caponier audit event v1"
	domainActor  = "caponier audit actor v1"
	domainDetail = "caponier audit detail v1"
	domainHead   = "caponier audit head v1"
)

// seal computes the commitments and the hash of a new row.
func (r *row) seal() {
	r.actorCommit, r.detailCommit = r.commitments()
	r.hash = sha256.Sum256(r.canonical())
}

func (r *row) commitments() (actor, detail digest) {
	var e encoder
	e.text(domainActor)
	e.text(string(r.actorSalt[:]))
	e.text(r.Actor.Name)
	e.text(r.Actor.Source)
	actor = sha256.Sum256(e.b)

	text, _ := fieldsText(r.Fields) // a map of strings always encodes
	e = encoder{}
	e.text(domainDetail)
	e.text(string(r.detailSalt[:]))
	e.text(r.Object.Name)
	e.text(text)
	return actor, sha256.Sum256(e.b)
}

// canonical is the byte string an event's hash covers. Every variable part
// has its length in front, so two different events never encode alike:
//
//	text domain | 8 seq | 32 prev | 8 microseconds | text id | 4 type number |
//	text type | text outcome | text actor kind, id, via | 32 actor commitment |
//	text object kind, id | 32 detail commitment | text connection
//
// where text is 4 bytes of length, big endian, and the bytes.
func (r *row) canonical() []byte {
	e := encoder{b: make([]byte, 0, 512)}
	e.text(domainEvent)
	e.uint64(uint64(r.Seq))
	e.b = append(e.b, r.prev[:]...)
	e.uint64(uint64(r.Time.UnixMicro()))
	e.text(r.ID)
	e.b = binary.BigEndian.AppendUint32(e.b, r.Type.Number())
	e.text(string(r.Type))
	e.text(string(r.Outcome))
	e.text(r.Actor.Kind)
	e.text(r.Actor.ID)
	e.text(r.Actor.Via)
	e.b = append(e.b, r.actorCommit[:]...)
	e.text(r.Object.Kind)
	e.text(r.Object.ID)
	e.b = append(e.b, r.detailCommit[:]...)
	e.text(r.Connection)
	return e.b
}

type encoder struct{ b []byte }

func (e *encoder) uint64(n uint64) { e.b = binary.BigEndian.AppendUint64(e.b, n) }

func (e *encoder) text(s string) {
	e.b = binary.BigEndian.AppendUint32(e.b, uint32(len(s)))
	e.b = append(e.b, s...)
}
