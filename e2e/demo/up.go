package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"caponier/e2e/harness"
)

// Names of what is made on this machine; all of it goes with down.
const (
	prefix = "capdemo-" // of namespaces
	link   = "capdemo0" // to the router of the private network
	table  = "caponier_demo"
	// Both ends of the link are of the benchmark network (RFC 2544).
	near = "198.18.77.1"
	far  = "198.18.77.2"
)

type demo struct {
	root, dir string
	state     state
	net       *harness.Net
	core      *harness.Core
	access    access
	role      string // of the user demo
}

// access is var/demo/access.json.
type access struct {
	URL     string   `json:"url"`
	CAFile  string   `json:"ca_file"`
	Admin   login    `json:"admin"`
	User    login    `json:"user"`
	Bastion string   `json:"bastion"`
	SOCKS   string   `json:"socks"`
	Metrics string   `json:"metrics"`
	Targets []target `json:"targets"`
}

type login struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Token    string `json:"token"`
}

type target struct {
	Name     string   `json:"name"`
	Kind     string   `json:"kind"`
	Site     string   `json:"site"`
	Host     string   `json:"host"`
	Port     int      `json:"port"`
	Accounts []string `json:"accounts,omitempty"`
	Comment  string   `json:"comment"`
}

func (d *demo) say(format string, args ...any) { fmt.Printf("demo: "+format+"\n", args...) }

func (d *demo) up(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root: run sudo make run")
	}
	if err := harness.Usable(); err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "caponier-demo-")
	if err != nil {
		return err
	}
	d.state = state{Scratch: scratch, Processes: map[string]string{}}
	if err := errors.Join(os.WriteFile(ownerFile, []byte(d.root+"\n"), 0o644), d.saveState(), os.Chmod(scratch, 0o755)); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{d.startCore, d.privateNetwork, d.extender, d.hosts, d.people, d.plant, d.web, d.finish} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// free returns the first port from want on that nobody listens on.
func free(network string, want int) (string, error) {
	for port := want; port < want+50; port++ {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := net.Listen(network, addr)
		if err != nil {
			continue
		}
		return addr, l.Close()
	}
	return "", fmt.Errorf("no free port from %d on", want)
}

func (d *demo) startCore(ctx context.Context) error {
	addrs := map[string]string{}
	for name, port := range map[string]int{"https": 8443, "bastion": 2222, "socks": 1080, "metrics": 9464} {
		a, err := free("tcp", port)
		if err != nil {
			return err
		}
		if _, got, _ := net.SplitHostPort(a); got != strconv.Itoa(port) {
			d.say("port %d (%s) is in use here: taking %s", port, name, got)
		}
		addrs[name] = a
	}
	d.say("starting core on SQLite at https://%s", addrs["https"])
	toml := fmt.Sprintf("name = \"demo\"\ngrace = \"2s\"\n[public]\nurl = \"https://%s\"\nbastion = %q\nedge = \"https://%s\"\n[listen]\nhttps = %q\nhttp = \"off\"\nbastion = %q\nsocks = %q\nmetrics = %q\nsessions = \"4000-6000\"\nsessions_host = \"127.0.0.1\"\n",
		addrs["https"], addrs["bastion"], near, addrs["https"], addrs["bastion"], addrs["socks"], addrs["metrics"])
	var err error
	d.core, err = harness.StartCore(ctx, nil, filepath.Join(d.root, "bin", "caponier-core"), filepath.Join(d.dir, "core"), harness.CoreConfig{TOML: toml, Keep: true})
	if d.core != nil && d.core.Proc != nil {
		if nerr := d.note(d.core.Proc); nerr != nil {
			return nerr
		}
	}
	if err != nil {
		return err
	}
	d.access = access{URL: d.core.Ready.URL, Bastion: d.core.Ready.Bastion, SOCKS: d.core.Ready.SOCKS, Metrics: d.core.Ready.Metrics,
		CAFile: filepath.Join(d.dir, "ca.pem"), Admin: login{Username: "admin", Password: d.core.Password}}
	ca, err := os.ReadFile(d.core.Ready.CAFile)
	if err != nil {
		return err
	}
	return os.WriteFile(d.access.CAFile, ca, 0o644)
}

// privateNetwork makes vpc-a. Its only way out leads to core's HTTPS port,
// which this machine offers on the link as a load balancer would; core itself
// listens on loopback only and has no route back in.
func (d *demo) privateNetwork(context.Context) error {
	d.say("making the private network vpc-a: 10.10.0.0/24 behind a router that lets nothing in")
	d.net = harness.NewNet(prefix)
	if err := d.net.VPCBehindHost("a", link, near, far); err != nil {
		return err
	}
	if err := harness.HostSysctl("net.ipv4.conf." + link + ".route_localnet=1"); err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(d.core.Ready.HTTPS)
	if err != nil {
		return err
	}
	return harness.HostNFT(fmt.Sprintf(`
table ip %[1]s {
	chain in {
		type nat hook prerouting priority dstnat;
		iifname %[2]q ip daddr %[3]s tcp dport 443 dnat to 127.0.0.1:%[4]s
		iifname %[2]q ip daddr %[3]s udp dport 443 dnat to 127.0.0.1:%[4]s
		iifname %[5]q ip daddr %[6]s tcp dport 443 dnat to 127.0.0.1:%[4]s
	}
	chain guard {
		type filter hook input priority filter;
		iifname { %[2]q, %[5]q } ct status dnat accept
		iifname { %[2]q, %[5]q } ct state established,related accept
		iifname { %[2]q, %[5]q } drop
	}
}
`, table, link, near, port, plantLink, plantNear))
}

func (d *demo) extender(ctx context.Context) error {
	d.say("enrolling an extender in vpc-a")
	if err := d.core.Admin.Site(ctx, "vpc-a"); err != nil {
		return err
	}
	_, token, err := d.core.Admin.EnrolmentToken(ctx, map[string]any{"site": "vpc-a"})
	if err != nil {
		return err
	}
	x, err := harness.StartEdge(ctx, d.net, filepath.Join(d.root, "bin", "caponier-extender"), filepath.Join(d.dir, "extender"),
		harness.EdgeConfig{NS: "ext-a", URL: "https://" + near, Token: token, Keep: true})
	if err != nil {
		return err
	}
	if err := d.note(x.Proc); err != nil {
		return err
	}
	edge, err := d.core.Admin.Online(ctx, 30*time.Second, "vpc-a", x.Proc)
	if err != nil {
		return err
	}
	d.say("extender online over %s", edge.Tunnel.Transport)
	return nil
}

// hosts starts the private hosts: two sshds, PostgreSQL on db-1, nginx on web-1.
func (d *demo) hosts(ctx context.Context) error {
	var ca struct {
		UserCA string `json:"user_ca"`
	}
	if err := d.core.Admin.Do(ctx, http.MethodGet, "/ssh-ca", nil, &ca); err != nil {
		return err
	}
	caFile := filepath.Join(d.state.Scratch, "user_ca.pub")
	if err := os.WriteFile(caFile, []byte(ca.UserCA), 0o644); err != nil {
		return err
	}
	for i, name := range []string{"db-1", "web-1"} {
		d.say("starting sshd on %s (%s)", name, harness.Hosts[i])
		s, err := harness.StartSSHD(ctx, d.net, filepath.Join(d.state.Scratch, name), harness.SSHDConfig{NS: "host-a", Name: name, Address: harness.Hosts[i],
			CAFile: caFile, Logins: []harness.Login{{Name: "root"}, {Name: "deploy"}}}, true)
		if s != nil && s.Proc != nil {
			if nerr := d.note(s.Proc); nerr != nil {
				return nerr
			}
		}
		if err != nil {
			return err
		}
		d.access.Targets = append(d.access.Targets, target{Name: name, Kind: "ssh", Site: "vpc-a", Host: harness.Hosts[i], Port: 22, Accounts: []string{"root", "deploy"}})
	}
	d.access.Targets = append(d.access.Targets,
		target{Name: "postgres-1", Kind: "tcp", Site: "vpc-a", Host: harness.Hosts[0], Port: 5432, Comment: "PostgreSQL on db-1"},
		target{Name: "intranet", Kind: "tcp", Site: "vpc-a", Host: harness.Hosts[1], Port: 80, Comment: "nginx on web-1"})
	if err := d.postgres(ctx); err != nil {
		return err
	}
	return d.nginx(ctx)
}

func (d *demo) postgres(ctx context.Context) error {
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bins) == 0 {
		return errors.New("no PostgreSQL server found: run make setup")
	}
	bin := bins[len(bins)-1]
	d.say("starting PostgreSQL on db-1:5432")
	dir := filepath.Join(d.state.Scratch, "postgres")
	as := []string{"--reuid=postgres", "--regid=postgres", "--clear-groups"}
	// PostgreSQL refuses to run as root.
	script := `mkdir -p "$1" && chown postgres "$1" && setpriv --reuid=postgres --regid=postgres --clear-groups "$2/initdb" -D "$1/data" -U demo -A trust --no-sync -E UTF8 --no-locale`
	if out, err := exec.CommandContext(ctx, "sh", "-c", script, "sh", dir, bin).CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	hba := "local all all trust\nhost all all 127.0.0.1/32 trust\nhost all all " + harness.LANPrefix + " trust\n"
	if err := os.WriteFile(filepath.Join(dir, "data", "pg_hba.conf"), []byte(hba), 0o600); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "chown", "postgres", filepath.Join(dir, "data", "pg_hba.conf")).CombinedOutput(); err != nil {
		return fmt.Errorf("chown: %w: %s", err, out)
	}
	cmd := d.net.Command(context.WithoutCancel(ctx), "host-a", "setpriv", append(as, filepath.Join(bin, "postgres"), "-D", dir+"/data",
		"-c", "listen_addresses=127.0.0.1,"+harness.Hosts[0], "-c", "unix_socket_directories="+dir, "-c", "fsync=off", "-c", "max_connections=20")...)
	p, err := harness.Start("postgres", d.dir, cmd, true)
	if err != nil {
		return err
	}
	if err := d.note(p); err != nil {
		return err
	}
	return harness.Until(ctx, 30*time.Second, "PostgreSQL answers", func() error {
		out, err := d.net.Command(ctx, "host-a", filepath.Join(bin, "createdb"), "-h", dir, "-U", "demo", "demo").CombinedOutput()
		if err != nil && !strings.Contains(string(out), "already exists") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

func (d *demo) nginx(ctx context.Context) error {
	d.say("starting nginx on web-1:80")
	dir := filepath.Join(d.state.Scratch, "nginx")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf("daemon off;\nuser root;\npid %s/pid;\nerror_log stderr;\nevents {}\nhttp { access_log off; server { listen %s:80; default_type text/plain; location / { return 200 \"hello from web-1 inside vpc-a\\n\"; } } }\n", dir, harness.Hosts[1])
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	p, err := harness.Start("nginx", d.dir, d.net.Command(context.WithoutCancel(ctx), "host-a", "nginx", "-c", conf), true)
	if err != nil {
		return err
	}
	return d.note(p)
}

// people makes the user demo with everything granted, and API tokens.
func (d *demo) people(ctx context.Context) error {
	d.say("making user demo, targets and grants")
	d.access.User = login{Username: "demo", Password: rand.Text()}
	_, role, err := d.core.Admin.User(ctx, "demo", d.access.User.Password)
	if err != nil {
		return err
	}
	d.role = role
	for _, t := range d.access.Targets {
		in := harness.Target{Name: t.Name, Kind: t.Kind, Site: t.Site, Host: t.Host, Port: t.Port, Comment: t.Comment, Tags: []string{"demo"}}
		for _, a := range t.Accounts {
			in.Accounts = append(in.Accounts, harness.Account{Name: a})
		}
		if _, err := d.core.Admin.Create(ctx, "/targets", in); err != nil {
			return err
		}
	}
	if _, err := d.core.Admin.Create(ctx, "/grants", harness.Grant{Role: role, Tag: "demo", Accounts: []string{"*"}, Features: []string{"all"}}); err != nil {
		return err
	}
	for _, l := range []*login{&d.access.Admin, &d.access.User} {
		session, err := d.core.Admin.Login(ctx, l.Username, l.Password)
		if err != nil {
			return err
		}
		var made struct {
			Token string `json:"token"`
		}
		if err := d.core.Admin.As(session).Do(ctx, http.MethodPost, "/tokens", map[string]string{"name": "demo", "expires_in": "30d"}, &made); err != nil {
			return err
		}
		l.Token = made.Token
	}
	return nil
}

// finish proves that the private hosts are reached and tells how to.
func (d *demo) finish(ctx context.Context) error {
	cli := filepath.Join(d.root, "bin", "caponier")
	dir := filepath.Join(d.dir, "cli")
	caponier := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, cli, args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.dir, "CAPONIER_CONFIG_DIR=" + dir, "CAPONIER_PASSWORD=" + d.access.User.Password}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("caponier %s: %w: %s", args[0], err, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	if _, err := caponier("login", d.access.URL, "--user", "demo", "--ca", d.access.CAFile); err != nil {
		return err
	}
	for _, host := range []string{"db-1", "web-1"} {
		out, err := caponier("ssh", "root@"+host, "--", "hostname")
		if err != nil {
			return err
		}
		if out != host {
			return fmt.Errorf("%s says that it is %q", host, out)
		}
	}
	d.say("proved: root@db-1 and root@web-1 answer through core and extender")
	b, err := json.MarshalIndent(d.access, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "access.json"), append(b, '\n'), 0o600); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(d.access.Bastion)
	if err != nil {
		return err
	}
	fmt.Printf(`
Caponier runs. Status page and API: %[1]s  (CA: var/demo/ca.pem; API: %[1]s/api/v1/openapi.json)

  admin  %[2]s
  demo   %[3]s

Things to try:

  1. A shell on a host that nobody can reach directly (password of demo):
       ssh -p %[4]s 'demo%%root%%db-1'@%[5]s
     or the menu:  ssh -p %[4]s demo@%[5]s

  2. The database inside, by name, and who is connected:
       export CAPONIER_CONFIG_DIR=var/demo/cli    # demo is logged in there
       bin/caponier forward root@db-1:5432 15432 &
       psql -h 127.0.0.1 -p 15432 -U demo demo
       bin/caponier connections

  3. What happened, played back:
       bin/caponier ssh deploy@web-1              # type something, exit
       bin/caponier recordings
       bin/caponier recordings play <ID>

  4. A controller that only the engineer's machine may speak to, while it is open:
       eng() { %[6]s env CAPONIER_CONFIG_DIR=var/demo/engineer "$@"; }
       eng nc -w 2 10.20.0.5 502                    # nothing
       eng bin/caponier network open plc-line-3 --detach
       eng nc -w 2 10.20.0.5 502                    # line 3: 42 bottles a minute
       eng bin/caponier network close plc-line-3    # and it is closed

  5. A web application inside vpc-a, signed in for you, in a browser that has no
     network: open %[1]s as demo, My targets, wiki (or metrics, tickets).

Everything for scripts: var/demo/access.json. Remove it all: make stop
(the browser's image stays in %[7]s)
`, d.access.URL, d.access.Admin.Password, d.access.User.Password, port, host, d.inEngineer(), d.state.Docker)
	return nil
}
