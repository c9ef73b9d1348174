package recording

import (
	"bytes"
	"compress/flate"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

// A file is a head and blocks; integers are big-endian.
//
//	head   8  "CAPREC\r\n"
//	       2  version: 1, or 2 for recordings of web sessions (webitem.go)
//	       2  length of the JSON that follows, at most 4096
//	       …  JSON: id, kind (recording, index, file), started_us, salt, sealed_key
//	block  4  length n of the sealed body
//	       1  type: 'd' data, 'x' index lines, 'f' file content, 'e' end, 'r' resumed
//	       3  zero
//	       4  CRC-32C of the 8 bytes before: tells a bad length from a truncation
//	       n  AES-256-GCM of the body, tag last
//	body   1  0 = stored, 1 = deflate
//	       4  length of what follows without padding
//	       …  payload, then zeros up to a multiple of 64 bytes
//
// The nonce of a block is its number. Its additional data are the SHA-256 of
// the head, its type, its number and the tag of the block before: a block of
// another recording, a block moved, left out or repeated does not open. The
// end block holds the totals; a file without it was cut off or its writer died.
//
// A writer that goes on with a file whose writer died cuts off what is torn, and
// begins with a block 'r': 16 random bytes, then a tag over nothing, with the
// same additional data and the 16 bytes. They make a new key, for this block and
// those after it: the numbers of blocks that were cut off are used again, and
// under one key that would undo the authentication.
//
// Bodies are compressed before they are encrypted, so lengths depend on
// content. What a user types where it does not echo is masked before it comes
// here, and padding hides single keystrokes; see docs/record.md.
const (
	magic       = "CAPREC\r\n"
	version     = 1
	versionWeb  = 2
	maxHead     = 4096
	blockHead   = 12
	padTo       = 64
	tagSize     = 16
	maxPayload  = 256 << 10
	maxSealed   = maxPayload + 1024 + padTo + tagSize
	bodyHead    = 5
	typeData    = 'd'
	typeIndex   = 'x'
	typeFile    = 'f'
	typeEnd     = 'e'
	typeResume  = 'r'
	saltSize    = 16
	keySize     = 32
	kindRec     = "recording"
	kindIndex   = "index"
	kindFile    = "file"
	bodyStored  = 0
	bodyDeflate = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// head is the plaintext start of a file.
type head struct {
	ID        string `json:"id"`
	Kind      string `json:"kind"`
	StartedUS int64  `json:"started_us"`
	// Salt makes the key of each file written a key of its own, so that an
	// index built twice never uses a nonce twice.
	Salt      []byte `json:"salt"`
	SealedKey []byte `json:"sealed_key,omitempty"`

	version uint16
}

// DamageError says which block failed; block 0 is the head.
type DamageError struct {
	Block int
	Why   string
}

// Error implements error.
func (e *DamageError) Error() string {
	if e.Block == 0 {
		return "head damaged: " + e.Why
	}
	return fmt.Sprintf("block %d damaged: %s", e.Block, e.Why)
}

// errCut means the file ends without an end block.
var errCut = errors.New("no end mark")

func encodeHead(h head) ([]byte, error) {
	h.Salt = make([]byte, 16)
	rand.Read(h.Salt)
	return marshalHead(h)
}

func marshalHead(h head) ([]byte, error) {
	b, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode recording head: %w", err)
	}
	if len(b) > maxHead {
		return nil, fmt.Errorf("encode recording head: %d bytes, limit %d", len(b), maxHead)
	}
	out := binary.BigEndian.AppendUint16([]byte(magic), max(h.version, version))
	out = binary.BigEndian.AppendUint16(out, uint16(len(b)))
	return append(out, b...), nil
}

// readHead reads the head and returns it with its raw bytes.
func readHead(r io.Reader) (head, []byte, error) {
	raw := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r, raw); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return head{}, nil, &DamageError{Why: "too short"}
		}
		return head{}, nil, err
	}
	if string(raw[:len(magic)]) != magic {
		return head{}, nil, &DamageError{Why: "not a recording"}
	}
	v := binary.BigEndian.Uint16(raw[8:])
	if v != version && v != versionWeb {
		return head{}, nil, &DamageError{Why: fmt.Sprintf("version %d is not known", v)}
	}
	n := int(binary.BigEndian.Uint16(raw[10:]))
	if n > maxHead {
		return head{}, nil, &DamageError{Why: "too long"}
	}
	raw = append(raw, make([]byte, n)...)
	if _, err := io.ReadFull(r, raw[len(magic)+4:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return head{}, nil, &DamageError{Why: "too short"}
		}
		return head{}, nil, err
	}
	var h head
	if err := json.Unmarshal(raw[len(magic)+4:], &h); err != nil {
		return head{}, nil, &DamageError{Why: "not readable"}
	}
	h.version = v
	return h, raw, nil
}

// chain is the state both ends of a file share: key, place and last tag.
type chain struct {
	aead cipher.AEAD
	head [sha256.Size]byte
	prev [tagSize]byte
	n    uint64 // number of the last block
	// resume is what keys of resumed parts are made from.
	resume []byte
}

// newChain derives the file's key from the data key, its kind and its head.
func newChain(key []byte, kind string, rawHead []byte) (*chain, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("recording key has %d bytes, want %d", len(key), keySize)
	}
	sum := sha256.Sum256(rawHead)
	k, err := hkdf.Key(sha256.New, key, sum[:], "caponier "+kind+" 1", keySize)
	if err != nil {
		return nil, fmt.Errorf("derive recording key: %w", err)
	}
	resume, err := hkdf.Key(sha256.New, key, sum[:], "caponier "+kind+" 1 resume", keySize)
	if err != nil {
		return nil, fmt.Errorf("derive recording key: %w", err)
	}
	a, err := newAEAD(k)
	if err != nil {
		return nil, err
	}
	return &chain{aead: a, head: sum, resume: resume}, nil
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("recording cipher: %w", err)
	}
	a, err := cipher.NewGCM(b)
	if err != nil {
		return nil, fmt.Errorf("recording cipher: %w", err)
	}
	return a, nil
}

// resumed is the cipher of a part that begins with a block 'r'.
func (c *chain) resumed(salt []byte) (cipher.AEAD, error) {
	k, err := hkdf.Key(sha256.New, c.resume, salt, "caponier resumed 1", keySize)
	if err != nil {
		return nil, fmt.Errorf("derive recording key: %w", err)
	}
	return newAEAD(k)
}

// sealResume returns a block 'r'; the blocks after it are under its key.
func (c *chain) sealResume() ([]byte, error) {
	salt := make([]byte, saltSize)
	rand.Read(salt)
	aead, err := c.resumed(salt)
	if err != nil {
		return nil, err
	}
	nonce, aad := c.next(typeResume)
	out := binary.BigEndian.AppendUint32(nil, saltSize+tagSize)
	out = append(out, typeResume, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
	out = aead.Seal(append(out, salt...), nonce, nil, append(aad, salt...))
	copy(c.prev[:], out[len(out)-tagSize:])
	c.aead = aead
	return out, nil
}

// openResume takes the content of a block 'r'.
func (c *chain) openResume(sealed []byte) error {
	if len(sealed) != saltSize+tagSize {
		return errors.New("it has a wrong length")
	}
	salt, tag := sealed[:saltSize], sealed[saltSize:]
	aead, err := c.resumed(salt)
	if err != nil {
		return err
	}
	nonce, aad := c.next(typeResume)
	if _, err := aead.Open(nil, nonce, tag, append(aad, salt...)); err != nil {
		return errors.New("it does not authenticate")
	}
	copy(c.prev[:], tag)
	c.aead = aead
	return nil
}

func (c *chain) next(typ byte) (nonce, aad []byte) {
	c.n++
	nonce = make([]byte, 12)
	binary.BigEndian.PutUint64(nonce[4:], c.n)
	aad = append(aad, c.head[:]...)
	aad = append(aad, typ)
	aad = binary.BigEndian.AppendUint64(aad, c.n)
	return nonce, append(aad, c.prev[:]...)
}

// seal appends the next block to dst.
func (c *chain) seal(dst []byte, typ byte, payload []byte) []byte {
	return c.sealBody(dst, typ, pack(payload))
}

// sealBody appends the next block with a body made by pack or packStored.
func (c *chain) sealBody(dst []byte, typ byte, body []byte) []byte {
	nonce, aad := c.next(typ)
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(body)+tagSize))
	dst = append(dst, typ, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
	dst = c.aead.Seal(dst, nonce, body, aad)
	copy(c.prev[:], dst[len(dst)-tagSize:])
	return dst
}

// open reads the next block from r. It returns errCut at the end of the file,
// also in the middle of a block.
func (c *chain) open(r io.Reader) (typ byte, payload []byte, size int, err error) {
	var h [blockHead]byte
	block := int(c.n) + 1
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, nil, 0, errCut
		}
		return 0, nil, 0, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if crc32.Checksum(h[:8], castagnoli) != binary.BigEndian.Uint32(h[8:]) || h[5]|h[6]|h[7] != 0 || n < tagSize || n > maxSealed {
		return 0, nil, 0, &DamageError{Block: block, Why: "its head is not intact"}
	}
	sealed := make([]byte, n)
	if _, err := io.ReadFull(r, sealed); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, nil, 0, errCut
		}
		return 0, nil, 0, err
	}
	if h[4] == typeResume {
		if err := c.openResume(sealed); err != nil {
			return 0, nil, 0, &DamageError{Block: block, Why: err.Error()}
		}
		return typeResume, nil, blockHead + int(n), nil
	}
	nonce, aad := c.next(h[4])
	var tag [tagSize]byte
	copy(tag[:], sealed[len(sealed)-tagSize:])
	body, err := c.aead.Open(sealed[:0], nonce, sealed, aad)
	if err != nil {
		return 0, nil, 0, &DamageError{Block: block, Why: "it does not authenticate"}
	}
	c.prev = tag
	payload, err = unpack(body)
	if err != nil {
		return 0, nil, 0, &DamageError{Block: block, Why: err.Error()}
	}
	return h[4], payload, blockHead + int(n), nil
}

var deflaters = sync.Pool{New: func() any {
	w, err := flate.NewWriter(io.Discard, flate.BestSpeed)
	if err != nil { // the level is a constant of the package
		panic(err)
	}
	return w
}}

// pack compresses payload when that helps, and pads it.
func pack(payload []byte) []byte {
	var z bytes.Buffer
	kind, data := byte(bodyStored), payload
	if len(payload) >= 256 {
		w := deflaters.Get().(*flate.Writer)
		w.Reset(&z)
		w.Write(payload) // a bytes.Buffer takes everything
		w.Close()
		deflaters.Put(w)
		if z.Len() < len(payload) {
			kind, data = bodyDeflate, z.Bytes()
		}
	}
	return packAs(kind, data)
}

// packAs pads a body that is compressed or not.
func packAs(kind byte, data []byte) []byte {
	n := bodyHead + len(data)
	body := make([]byte, 0, n+padTo)
	body = append(body, kind)
	body = binary.BigEndian.AppendUint32(body, uint32(len(data)))
	body = append(body, data...)
	return append(body, make([]byte, (padTo-n%padTo)%padTo)...)
}

func unpack(body []byte) ([]byte, error) {
	if len(body) < bodyHead {
		return nil, errors.New("its body is too short")
	}
	n := binary.BigEndian.Uint32(body[1:])
	if uint64(n) > uint64(len(body)-bodyHead) || len(body)-bodyHead-int(n) >= padTo {
		return nil, errors.New("its body has a wrong length")
	}
	data := body[bodyHead : bodyHead+int(n)]
	switch body[0] {
	case bodyStored:
		if len(data) > maxPayload {
			return nil, errors.New("its body is too long")
		}
		return data, nil
	case bodyDeflate:
		r := flate.NewReader(bytes.NewReader(data))
		defer r.Close()
		out, err := io.ReadAll(io.LimitReader(r, maxPayload+1))
		if err != nil {
			return nil, errors.New("its body does not inflate")
		}
		if len(out) > maxPayload {
			return nil, errors.New("its body is too long")
		}
		return out, nil
	}
	return nil, errors.New("its body has an unknown form")
}
