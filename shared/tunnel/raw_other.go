//go:build !linux

package tunnel

import "errors"

// Without these system calls reads hold a buffer while they wait.
const canReadRaw = false

func readRaw(uintptr, []byte) (int, bool, error) { return 0, false, errors.ErrUnsupported }
func readError(_ int, err, cerr error) error     { return errors.Join(err, cerr) }
func limitUnsent(uintptr, int)                   {}
func limitQueue(uintptr, int)                    {}
