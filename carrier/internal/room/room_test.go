package room

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

func files(m map[string]string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for name, text := range m {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return fsys
}

const meminfo = "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n"

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  State
	}{
		{"plain", map[string]string{"proc/meminfo": meminfo}, State{Available: 4 << 30}},
		{"pressure", map[string]string{"proc/meminfo": meminfo,
			"proc/pressure/memory": "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=0\n"}, State{4 << 30, 12.5}},
		{"cgroup 2 unlimited", map[string]string{"proc/meminfo": meminfo, "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}, State{Available: 4 << 30}},
		{"cgroup 2", map[string]string{"proc/meminfo": meminfo, "sys/fs/cgroup/memory.max": "1073741824\n", "sys/fs/cgroup/memory.current": "973741824\n",
			"sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 100000000\n"}, State{Available: 200000000}},
		{"cgroup 2 over", map[string]string{"proc/meminfo": meminfo, "sys/fs/cgroup/memory.max": "1000\n", "sys/fs/cgroup/memory.current": "2000\n"}, State{}},
		{"cgroup 1", map[string]string{"proc/meminfo": meminfo, "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000\n",
			"sys/fs/cgroup/memory/memory.usage_in_bytes": "400000\n", "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 100000\n"}, State{Available: 700000}},
		{"cgroup 1 unlimited", map[string]string{"proc/meminfo": meminfo, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
			"sys/fs/cgroup/memory/memory.usage_in_bytes": "400000\n"}, State{Available: 4 << 30}},
	} {
		got, err := Read(files(c.files))
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
	for name, m := range map[string]map[string]string{"no meminfo": {}, "no field": {"proc/meminfo": "MemFree: 1 kB\n"}} {
		if s, err := Read(files(m)); err == nil {
			t.Errorf("%s: %+v without an error", name, s)
		}
	}
	if s, err := Read(os.DirFS("/")); err != nil || s.Available <= 0 {
		t.Errorf("this machine: %+v, %v", s, err)
	}
}

func TestFit(t *testing.T) {
	l := Limits{Free: 1 << 30, Session: 250 << 20, Pressure: 30}
	for _, c := range []struct {
		s    State
		want int
		why  string
	}{
		{State{Available: 1<<30 + 1000<<20}, 4, ""},
		{State{Available: 1<<30 + 250<<20}, 1, ""},
		{State{Available: 1<<30 + 249<<20}, 0, "memory is short: 1273 MB"},
		{State{Available: 0}, 0, "memory is short"},
		{State{Available: 64 << 30, Pressure: 31}, 0, "wait for memory (31 %"},
		{State{Available: 1<<30 + 250<<20, Pressure: 30}, 1, ""},
	} {
		n, why := l.Fit(c.s)
		if n != c.want || (why == "") != (c.why == "") || !strings.Contains(why, c.why) {
			t.Errorf("%+v: %d, %q; want %d, %q", c.s, n, why, c.want, c.why)
		}
	}
	if n, why := (Limits{Session: 1 << 20}).Fit(State{Available: 2 << 20, Pressure: 99}); n != 2 || why != "" {
		t.Errorf("pressure not judged: %d, %q", n, why)
	}
}
