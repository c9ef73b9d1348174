//go:build !linux

package tunnel

import (
	"errors"
	"syscall"
)

// Without these system calls reads hold a buffer while they wait.
const canReadRaw = false

func readRaw(uintptr, []byte) (int, bool, error) { return 0, false, errors.ErrUnsupported }
func writeRaw(uintptr, []byte) (int, error)      { return 0, errors.ErrUnsupported }
func readError(_ int, err, cerr error) error     { return errors.Join(err, cerr) }
func awaitReadable(syscall.RawConn) error        { return nil }
func unreadOf(syscall.RawConn) bool              { return false }
func limitUnsent(uintptr, int)                   {}
func limitQueue(uintptr, int)                    {}
