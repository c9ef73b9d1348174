package webaccess

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"time"
)

// errSeed never quotes the seed.
var errSeed = errors.New("the account's secret has no totp seed in base32 or as otpauth:// URL")

// code is the one-time code of the seed at a time (RFC 6238): base32, or an
// otpauth:// URL, which also names algorithm, digits and period. The seed stays
// in byte slices that are cleared, which the usual libraries' strings are not.
func (l login) code(now time.Time) ([]byte, error) {
	text, ok := unquote(l["totp"])
	defer clear(text)
	if !ok || len(text) == 0 {
		return nil, errSeed
	}
	seed, period, digits, sum := text, 30, 6, sha1.New
	if rest, isURL := bytes.CutPrefix(text, []byte("otpauth://")); isURL {
		if seed, period, digits, sum, ok = parseOTPAuth(rest); !ok {
			return nil, errSeed
		}
	}
	key := make([]byte, len(seed))
	defer clear(key)
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).AppendDecode(key[:0], plainBase32(seed))
	if err != nil || len(key) == 0 {
		return nil, errSeed
	}
	// RFC 4226 §5.3, with the number of the period as counter.
	mac := hmac.New(sum, key)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(now.Unix()/int64(period))))
	digest := mac.Sum(nil)
	at := digest[len(digest)-1] & 15
	n := binary.BigEndian.Uint32(digest[at:]) & 0x7fffffff
	mod := uint32(1_000_000)
	if digits == 8 {
		mod = 100_000_000
	}
	return fmt.Appendf(nil, "%0*d", digits, n%mod), nil
}

// parseOTPAuth reads what follows otpauth://. The seed is in text's memory.
func parseOTPAuth(text []byte) (seed []byte, period, digits int, sum func() hash.Hash, ok bool) {
	period, digits, sum = 30, 6, sha1.New
	text, _, _ = bytes.Cut(text, []byte("#"))
	kind, query, _ := bytes.Cut(text, []byte("?"))
	kind, _, _ = bytes.Cut(kind, []byte("/"))
	if string(kind) != "totp" {
		return nil, 0, 0, nil, false
	}
	for pair := range bytes.SplitSeq(query, []byte("&")) {
		k, v, _ := bytes.Cut(pair, []byte("="))
		var err error
		switch string(k) {
		case "secret":
			seed = unescape(v)
		case "period":
			period, err = strconv.Atoi(string(v))
		case "digits":
			digits, err = strconv.Atoi(string(v))
		case "algorithm":
			switch string(bytes.ToUpper(v)) {
			case "SHA1":
			case "SHA256":
				sum = sha256.New
			case "SHA512":
				sum = sha512.New
			default:
				return nil, 0, 0, nil, false
			}
		}
		if err != nil {
			return nil, 0, 0, nil, false
		}
	}
	return seed, period, digits, sum, len(seed) > 0 && period >= 5 && period <= 300 && (digits == 6 || digits == 8)
}

// plainBase32 takes spaces, hyphens and padding out, in place, and writes
// capital letters.
func plainBase32(b []byte) []byte {
	out := b[:0]
	for _, c := range b {
		switch {
		case c == ' ' || c == '-' || c == '=':
		case 'a' <= c && c <= 'z':
			out = append(out, c-'a'+'A')
		default:
			out = append(out, c)
		}
	}
	return out
}

// unescape undoes percent-encoding in place; what is none stays.
func unescape(b []byte) []byte {
	out := b[:0]
	for i := 0; i < len(b); i++ {
		var c [1]byte
		if b[i] == '%' && i+2 < len(b) {
			if _, err := hex.Decode(c[:], b[i+1:i+3]); err == nil {
				out = append(out, c[0])
				i += 2
				continue
			}
		}
		out = append(out, b[i])
	}
	return out
}

// unquote is the text of a JSON string of ASCII (RFC 8259 §7), in memory of its
// own.
func unquote(raw []byte) ([]byte, bool) {
	if len(raw) < 2 || raw[0] != '"' || raw[len(raw)-1] != '"' {
		return nil, false
	}
	raw = raw[1 : len(raw)-1]
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c != '\\' {
			out = append(out, c)
			continue
		}
		i++
		switch {
		case i < len(raw) && bytes.IndexByte([]byte(`"\/`), raw[i]) >= 0:
			out = append(out, raw[i])
		case i+4 < len(raw) && raw[i] == 'u' && raw[i+1] == '0' && raw[i+2] == '0':
			var u [1]byte
			if _, err := hex.Decode(u[:], raw[i+3:i+5]); err != nil || u[0] >= 0x80 {
				return out, false
			}
			out = append(out, u[0])
			i += 4
		default:
			return out, false
		}
	}
	return out, true
}
