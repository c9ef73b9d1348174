package harness

import (
	"encoding/binary"
	"fmt"
)

// X11 key symbols, RFC 6143 §7.5.4.
const (
	KeyReturn  = 0xff0d
	KeyTab     = 0xff09
	KeyEscape  = 0xff1b
	KeyControl = 0xffe3
	KeyShift   = 0xffe1
	KeyAlt     = 0xffe9
	KeyF1      = 0xffbe
)

// Press presses keys together, in order, and releases them.
func (s *Screen) Press(keys ...uint32) error {
	for i := range 2 * len(keys) {
		down, key := byte(1), uint32(0)
		if i < len(keys) {
			key = keys[i]
		} else {
			down, key = 0, keys[2*len(keys)-1-i]
		}
		if err := s.send(binary.BigEndian.AppendUint32([]byte{4, down, 0, 0}, key)); err != nil {
			return err
		}
	}
	return nil
}

// Type types text of ISO 8859-1.
func (s *Screen) Type(text string) error {
	for _, r := range text {
		keys := []uint32{uint32(r)}
		if r > 0xff {
			return fmt.Errorf("no key for %q", r)
		}
		if r >= 'A' && r <= 'Z' {
			keys = []uint32{KeyShift, uint32(r)}
		}
		if err := s.Press(keys...); err != nil {
			return err
		}
	}
	return nil
}

// Click clicks with the first button.
func (s *Screen) Click(x, y int) error { return s.pointer(x, y, 0, 1, 0) }

// Move moves the pointer.
func (s *Screen) Move(x, y int) error { return s.pointer(x, y, 0) }

func (s *Screen) pointer(x, y int, steps ...byte) error {
	for _, buttons := range steps {
		msg := binary.BigEndian.AppendUint16([]byte{5, buttons}, uint16(x))
		if err := s.send(binary.BigEndian.AppendUint16(msg, uint16(y))); err != nil {
			return err
		}
	}
	return nil
}

// Paste puts ISO 8859-1 text into the browser's clipboard (ClientCutText).
func (s *Screen) Paste(text string) error {
	msg := make([]byte, 8, 8+len(text))
	msg[0] = 6
	for _, r := range text {
		if r > 0xff {
			return fmt.Errorf("%q is not of ISO 8859-1", r)
		}
		msg = append(msg, byte(r))
	}
	binary.BigEndian.PutUint32(msg[4:], uint32(len(msg)-8))
	return s.send(msg)
}
