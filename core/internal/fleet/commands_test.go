package fleet

import (
	"strings"
	"testing"
	"time"

	"caponier/shared/wire"
)

func TestCommands(t *testing.T) {
	c := commands("extender", "cap1.x.y.z", "https://pam.corp.test/", "https://get.corp.test/bin/")
	for name, text := range map[string]string{"shell": c.Shell, "systemd": c.Systemd, "docker": c.Docker, "cloud_init": c.CloudInit} {
		if !strings.Contains(text, "cap1.x.y.z") || !strings.Contains(text, "https://pam.corp.test") || strings.Contains(text, "example.org") {
			t.Errorf("%s lacks the token or core, or has an example left:\n%s", name, text)
		}
	}
	if !strings.Contains(c.CloudInit, "https://get.corp.test/bin/caponier-extender") || !strings.HasPrefix(c.CloudInit, "#cloud-config\n") {
		t.Errorf("cloud-init:\n%s", c.CloudInit)
	}
	if !strings.Contains(c.Systemd, "DynamicUser=yes") {
		t.Error("the systemd text lacks the unit of deploy/")
	}
	if strings.Contains(strings.SplitN(c.Docker, "docker run", 2)[1], "cap1.") {
		t.Error("the token is in the arguments of docker run")
	}
	for _, kind := range []wire.NodeKind{wire.Carrier, wire.WebProxy, wire.Router} {
		c := commands(string(kind), "cap1.x.y.z", "https://pam.corp.test/", "https://get.corp.test/bin/")
		bin := "caponier-" + string(kind)
		for name, text := range map[string]string{"shell": c.Shell, "systemd": c.Systemd, "cloud_init": c.CloudInit} {
			if !strings.Contains(text, "cap1.x.y.z") || !strings.Contains(text, bin) || strings.Contains(text, "example.org") {
				t.Errorf("%s of %s:\n%s", name, kind, text)
			}
		}
		if docker := strings.Contains(c.Docker, "--publish 18443:18443"); docker != (kind == wire.WebProxy) || (c.Docker != "") != docker {
			t.Errorf("docker of %s:\n%s", kind, c.Docker)
		}
		if user := strings.Contains(c.Systemd, "useradd --system --groups docker"); user != (kind == wire.Carrier) {
			t.Errorf("systemd of %s:\n%s", kind, c.Systemd)
		}
	}
	h := commands(KindHost, "cap1.x.y.z", "https://pam.corp.test", "")
	if h.Shell == "" || h.Systemd+h.Docker+h.CloudInit != "" {
		t.Errorf("host: %+v", h)
	}
	for _, bad := range []string{"http://x", "https://x/$(id)", "https://x;y", "https://x y", "https://x'"} {
		if len(checkDownloads(bad)) == 0 {
			t.Errorf("downloads %q accepted", bad)
		}
	}
}

func TestHistory(t *testing.T) {
	var h history
	for i := range historyLen + 5 {
		h.add(time.Duration(i)*time.Millisecond, i)
	}
	v := h.view(15 * time.Second)
	if len(v.RTTMS) != historyLen || v.RTTMS[0] != 5 || v.Streams[historyLen-1] != historyLen+4 || v.EverySeconds != 15 {
		t.Errorf("%+v", v)
	}
	h.add(time.Hour, 1<<20)
	if v := h.view(0); v.Streams[historyLen-1] != 65535 || v.RTTMS[historyLen-1] != 6553.5 {
		t.Errorf("what is too large: %v %v", v.Streams[historyLen-1], v.RTTMS[historyLen-1])
	}
}
