package harness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ICAP is a c-icap server whose virus scanner knows one virus: the EICAR test
// file.
type ICAP struct {
	Proc *Proc
	URL  string
}

// StartICAP runs c-icap with the engine of ClamAV in a namespace.
func StartICAP(ctx context.Context, n *Net, ns, addr, dir string, virus []byte) (*ICAP, error) {
	for _, tool := range []string{"c-icap", "clamscan", "unshare"} {
		if _, err := lookPath(tool); err != nil {
			return nil, fmt.Errorf("%w: run make setup", err)
		}
	}
	db := filepath.Join(dir, "db")
	if err := os.MkdirAll(db, 0o755); err != nil {
		return nil, err
	}
	// A signature of its bytes, anywhere in any kind of file: an upload is a form.
	sig := fmt.Sprintf("Eicar-Test-Signature:0:*:%x\n", virus)
	conf := filepath.Join(dir, "c-icap.conf")
	modules, err := filepath.Glob("/usr/lib/*/c_icap")
	if err != nil || len(modules) != 1 {
		return nil, errors.New("no modules of c-icap: run make setup")
	}
	text := strings.Join([]string{
		"PidFile " + filepath.Join(dir, "pid"), "CommandsSocket " + filepath.Join(dir, "ctl"), "Port " + addr,
		"StartServers 1", "MaxServers 2", "MinSpareThreads 4", "MaxSpareThreads 8", "ThreadsPerChild 8", "Timeout 30", "KeepAliveTimeout 30",
		"ServerAdmin nobody", "ServerName icap", "TmpDir " + dir, "DebugLevel 1", "Pipelining on", "LoadMagicFile /etc/c-icap/c-icap.magic",
		"TemplateDir /usr/share/c_icap/templates/", "TemplateDefaultLanguage en",
		"ModulesDir " + modules[0], "ServicesDir " + modules[0], "ServerLog " + filepath.Join(dir, "server.log"), "AccessLog " + filepath.Join(dir, "access.log"),
		"Service antivirus_module virus_scan.so", "ServiceAlias avscan virus_scan?allow204=on&sizelimit=off&mode=simple",
		"virus_scan.ScanFileTypes TEXT DATA EXECUTABLE ARCHIVE GIF JPEG MSOFFICE", "virus_scan.SendPercentData 5", "virus_scan.StartSendPercentDataAfter 64M", "virus_scan.MaxObjectSize 64M",
		"virus_scan.DefaultEngine clamav", "Module common clamav_mod.so", "clamav_mod.TmpDir " + dir,
	}, "\n") + "\n"
	if err := errors.Join(os.WriteFile(filepath.Join(db, "test.ndb"), []byte(sig), 0o644), os.WriteFile(conf, []byte(text), 0o644)); err != nil {
		return nil, err
	}
	// The engine looks for signatures in one place only.
	inside := `mount --bind "$1" /var/lib/clamav && exec c-icap -N -f "$2"`
	nsenter := exec.CommandContext(context.WithoutCancel(ctx), "nsenter", "--net=/run/netns/"+n.NS(ns), "unshare", "--mount", "sh", "-c", inside, "sh", db, conf)
	nsenter.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	p, err := Start("c-icap", dir, nsenter, false)
	if err != nil {
		return nil, err
	}
	s := &ICAP{Proc: p, URL: "icap://" + addr + "/avscan"}
	return s, Until(ctx, time.Minute, "c-icap answers", func() error {
		select {
		case <-p.Exited():
			return fmt.Errorf("%w: %s", ErrGone, tail(p.Output(), 2000))
		default:
		}
		c, err := n.Dial(ctx, ns, "tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		return icapOptions(c, addr)
	})
}

// icapOptions asks for the service's options (RFC 3507 §4.10).
func icapOptions(c net.Conn, addr string) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "OPTIONS icap://%s/avscan ICAP/1.0\r\nHost: %s\r\n\r\n", addr, addr); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "ICAP/1.0 200 ") {
		return fmt.Errorf("it says %q", line)
	}
	return nil
}
