package slot

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watch watches a file until it is read by whomever, whatever its name is then:
// the container has the same kernel. See waitRead.
func watch(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_ACCESS); err != nil {
		f.Close()
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	return f, nil
}

// waitRead waits until a watched file is read, at most for limit, then the error is
// os.ErrDeadlineExceeded.
func waitRead(watched *os.File, limit time.Duration) error {
	if err := watched.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	_, err := watched.Read(make([]byte, unix.SizeofInotifyEvent+unix.NAME_MAX+1)) // one event at least
	return err
}
