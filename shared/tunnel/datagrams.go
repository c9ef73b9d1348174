package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// MaxDatagram is the longest datagram: what UDP over IPv4 takes, in bytes.
const MaxDatagram = 65507

// Datagrams carries datagrams over a stream: each is its length, two bytes, big
// endian, and then itself. Like a connected UDP socket it keeps their bounds,
// one per Read and Write, and empty ones are datagrams too; unlike one it loses
// none and waits when the other side does not read.
type Datagrams struct {
	Stream
	left  int  // of the present datagram, not yet read
	fresh bool // nothing of it was read: Next was called
}

// NewDatagrams carries datagrams over s. Read must not be called by two at
// once, nor Write.
func NewDatagrams(s Stream) *Datagrams { return &Datagrams{Stream: s} }

// Next waits for the next datagram and returns its length, so that a buffer
// need not be held meanwhile. Read then reads it.
func (d *Datagrams) Next() (int, error) {
	if d.fresh {
		return d.left, nil
	}
	if err := d.skip(); err != nil {
		return 0, err
	}
	var head [2]byte
	if _, err := io.ReadFull(d.Stream, head[:]); err != nil {
		return 0, broken(err)
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > MaxDatagram {
		return 0, fmt.Errorf("a datagram of %d bytes, the limit is %d", n, MaxDatagram)
	}
	d.left, d.fresh = n, true
	return n, nil
}

// Read reads one datagram into p; what does not fit is lost, as recv(2) does.
func (d *Datagrams) Read(p []byte) (int, error) {
	n, err := d.Next()
	if err != nil {
		return 0, err
	}
	d.fresh = false
	n, err = io.ReadFull(d.Stream, p[:min(n, len(p))])
	d.left -= n
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, broken(err)
	}
	return n, nil
}

// skip drops the rest of the last datagram.
func (d *Datagrams) skip() error {
	var drop [512]byte
	for d.left > 0 {
		n, err := d.Stream.Read(drop[:min(len(drop), d.left)])
		d.left -= n
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && d.left > 0 {
			return broken(err)
		}
	}
	return nil
}

func broken(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the stream ended within a datagram: %w", err)
	}
	return err
}

// Write sends one datagram.
func (d *Datagrams) Write(p []byte) (int, error) {
	if len(p) > MaxDatagram {
		return 0, fmt.Errorf("a datagram of %d bytes, the limit is %d", len(p), MaxDatagram)
	}
	b := make([]byte, 0, 2+len(p))
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(p))), p...)
	n, err := d.Stream.Write(b)
	if err != nil {
		return max(0, n-2), err
	}
	return len(p), nil
}
