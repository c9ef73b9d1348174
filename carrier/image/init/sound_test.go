package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// heard takes blocks, and says when it was to have them.
type heard struct {
	bytes.Buffer
	writes   int
	deadline time.Time
	full     error // of the second block
}

func (h *heard) SetWriteDeadline(t time.Time) error {
	h.deadline = t
	return nil
}

func (h *heard) Write(b []byte) (int, error) {
	h.writes++
	if h.full != nil && h.writes > 1 {
		return 0, h.full
	}
	return h.Buffer.Write(b)
}

func TestCopySound(t *testing.T) {
	tone := bytes.Repeat([]byte{1, 2, 3, 4}, blockSize/4)
	last := bytes.Repeat([]byte{0}, blockSize-1)
	last = append(last, 7) // no silence, only quiet
	silence := make([]byte, blockSize)
	played := bytes.Join([][]byte{tone, silence, silence, last, silence, tone[:100]}, nil)

	var h heard
	before := time.Now()
	if err := copySound(&h, bytes.NewReader(played)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a server that ends within a block: %v", err)
	}
	if want := append(bytes.Clone(tone), last...); !bytes.Equal(h.Bytes(), want) {
		t.Errorf("%d bytes came over, want the two whole blocks that are not silent, %d bytes", h.Len(), len(want))
	}
	if h.writes != 2 {
		t.Errorf("%d writes, want one for each block", h.writes)
	}
	if h.deadline.Before(before.Add(listenTime)) || h.deadline.After(time.Now().Add(listenTime)) {
		t.Errorf("a block may take until %s, want %s from its beginning", h.deadline, listenTime)
	}

	gone := errors.New("the carrier does not read")
	h = heard{full: gone}
	if err := copySound(&h, bytes.NewReader(bytes.Repeat(tone, 5))); !errors.Is(err, gone) || h.writes != 2 {
		t.Errorf("a carrier that does not read: %v after %d writes", err, h.writes)
	}
}

// Who waits to be heard of hears that the sound server has ended.
func TestWantedUntilOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, taken := range []bool{true, false} {
		over := make(chan struct{})
		got := make(chan net.Conn, 1)
		go func() {
			c, reached := wanted(path, over)
			if !reached {
				t.Error("the carrier was not reached")
			}
			if c == nil {
				got <- nil
				return
			}
			got <- c
		}()
		carrier, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if taken {
			if _, err := carrier.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
		} else {
			close(over)
		}
		c := <-got
		if (c != nil) != taken {
			t.Errorf("wanted %t: %v", taken, c)
		}
		if c != nil {
			c.Close()
		}
		carrier.Close()
	}
}
