package sshca

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"caponier/core/internal/db"
)

const revokedSQL = `select serial, ca_id from sshca_certs where revoked_at > 0 order by serial`

// Parts of OpenSSH's key revocation list (PROTOCOL.krl).
const (
	krlMagic        = "SSHKRL\n\x00"
	krlFormat       = 1
	krlCertificates = 1
	krlExplicitKey  = 2
	krlSerialList   = 0x20
)

// KRL renders what is revoked of the authorities of an access group,
// certificates by serial and authority keys, in OpenSSH's format for sshd's
// RevokedKeys. Its version is the time.
func (c *CA) KRL(ctx context.Context, groupID string) ([]byte, error) {
	var keys []Key
	serials := map[string][]uint64{}
	err := c.c.DB.View(ctx, func(tx *db.Tx) error {
		var err error
		if keys, err = readKeys(ctx, tx, "", groupID); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, revokedSQL)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var serial int64
			var ca string
			if err := rows.Scan(&serial, &ca); err != nil {
				return err
			}
			serials[ca] = append(serials[ca], uint64(serial))
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("make revocation list: %w", err)
	}
	return renderKRL(c.c.Now(), keys, serials), nil
}

func renderKRL(now time.Time, keys []Key, serials map[string][]uint64) []byte {
	b := []byte(krlMagic)
	b = binary.BigEndian.AppendUint32(b, krlFormat)
	b = binary.BigEndian.AppendUint64(b, uint64(now.UnixMilli()))
	b = binary.BigEndian.AppendUint64(b, uint64(now.Unix()))
	b = binary.BigEndian.AppendUint64(b, 0)
	b = appendString(b, nil)
	b = appendString(b, []byte("caponier"))
	var explicit []byte
	for _, k := range keys {
		if k.State == Revoked {
			explicit = appendString(explicit, k.public.Marshal())
			continue
		}
		list := serials[k.ID]
		if len(list) == 0 {
			continue
		}
		slices.Sort(list)
		var numbers []byte
		for _, n := range list {
			numbers = binary.BigEndian.AppendUint64(numbers, n)
		}
		section := appendString(nil, k.public.Marshal())
		section = appendString(section, nil)
		section = appendString(append(section, krlSerialList), numbers)
		b = appendString(append(b, krlCertificates), section)
	}
	if len(explicit) > 0 {
		b = appendString(append(b, krlExplicitKey), explicit)
	}
	return b
}

// appendString appends an SSH string (RFC 4251 §5).
func appendString(b, s []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}
