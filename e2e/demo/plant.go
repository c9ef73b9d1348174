package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"caponier/e2e/harness"
)

// The plant: an engineer's machine and a network of controllers, with a router
// between them. The engineer's machine and the router are on a network with
// this machine, of the benchmark addresses (RFC 2544).
const (
	plantLink = "capdemo1"
	plantNear = "198.18.78.1" // this machine
	gateway   = "198.18.78.2" // the router
	engineer  = "198.18.78.7"
	plc       = "10.20.0.5"
)

// plantNetwork makes the namespaces office (a switch), engineer, router and
// plant. The engineer reaches core at the address it has on this machine.
func (d *demo) plantNetwork(context.Context) error {
	d.say("making a plant: 10.20.0.0/24 behind a router that forwards nothing by itself, and an engineer's machine")
	n := d.net
	if err := n.Add("office", "engineer", "router", "plant"); err != nil {
		return err
	}
	if err := n.IP("office", "link add br0 type bridge", "link set br0 up"); err != nil {
		return err
	}
	if err := n.PlugHost(plantLink, "office", "br0", plantNear+"/24"); err != nil {
		return err
	}
	if err := harness.HostSysctl("net.ipv4.conf." + plantLink + ".route_localnet=1"); err != nil {
		return err
	}
	if err := n.Plug("engineer", "eth0", "office", "br0", engineer+"/24"); err != nil {
		return err
	}
	if err := n.Plug("router", "office", "office", "br0", gateway+"/24"); err != nil {
		return err
	}
	if err := n.IP("router", "link add plant type bridge", "addr add 10.20.0.1/24 dev plant", "link set plant up"); err != nil {
		return err
	}
	if err := n.Plug("plant", "eth0", "router", "plant", plc+"/24"); err != nil {
		return err
	}
	if err := n.Sysctl("router", "net.ipv4.ip_forward=1"); err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(d.core.Ready.HTTPS)
	if err != nil {
		return err
	}
	// Core's name is this machine's loopback address: for the engineer's
	// machine that leads to this machine.
	if err := n.Sysctl("engineer", "net.ipv4.conf.all.route_localnet=1"); err != nil {
		return err
	}
	return errors.Join(
		n.IP("engineer", "route add 10.20.0.0/24 via "+gateway),
		n.IP("plant", "route add default via 10.20.0.1"),
		n.NFT("engineer", fmt.Sprintf("table ip demo {\n\tchain out {\n\t\ttype nat hook output priority -100;\n\t\tip daddr 127.0.0.1 tcp dport %s dnat to %s:443\n\t}\n\tchain post {\n\t\ttype nat hook postrouting priority 100;\n\t\tip saddr 127.0.0.0/8 oifname \"eth0\" masquerade\n\t}\n}\n", port, plantNear)))
}

// plant starts the controllers and the router, and makes the network target.
func (d *demo) plant(ctx context.Context) error {
	if err := d.plantNetwork(ctx); err != nil {
		return err
	}
	if err := d.controllers(); err != nil {
		return err
	}
	d.say("enrolling the router")
	_, token, err := d.core.Admin.EnrolmentToken(ctx, map[string]any{"kind": "router"})
	if err != nil {
		return err
	}
	r, err := harness.StartEdge(ctx, d.net, filepath.Join(d.root, "bin", "caponier-router"), filepath.Join(d.dir, "router"),
		harness.EdgeConfig{NS: "router", Name: "gw-1", URL: "https://" + plantNear, Token: token, Keep: true,
			TOML: "[nftables]\nclients = [\"office\"]\n"})
	if err != nil {
		return err
	}
	if err := d.note(r.Proc); err != nil {
		return err
	}
	if _, err := d.core.Admin.RouterReady(ctx, 30*time.Second, "gw-1", r.Proc); err != nil {
		return err
	}
	if err := d.core.Admin.Pool(ctx, "gw-1", engineer+"/32"); err != nil {
		return err
	}
	id, err := d.core.Admin.Create(ctx, "/targets", map[string]any{"name": "plc-line-3", "kind": "network", "tags": []string{"demo"},
		"comment": "controller of line 3, Modbus and SNMP",
		"network": map[string]any{"destinations": []map[string]any{
			{"addrs": "10.20.0.0/24", "proto": "tcp", "ports": "502"}, {"addrs": "10.20.0.0/24", "proto": "udp", "ports": "161"}},
			"instructions": "Try: nc 10.20.0.5 502"}})
	if err != nil {
		return err
	}
	if _, err := d.core.Admin.Create(ctx, "/grants", harness.Grant{Role: d.role, Target: id, Features: []string{"network"}}); err != nil {
		return err
	}
	d.access.Targets = append(d.access.Targets, target{Name: "plc-line-3", Kind: "network", Host: plc, Port: 502,
		Comment: "from the namespace " + d.net.NS("engineer") + ", through the router"})
	return d.provePlant(ctx)
}

// controllers answers on tcp 502 and udp 161 as a controller might.
func (d *demo) controllers() error {
	d.say("starting a controller on %s, tcp 502 and udp 161", plc)
	dir := filepath.Join(d.state.Scratch, "plant")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf("load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nuser root;\npid %s/pid;\nerror_log stderr;\nevents {}\nstream {\n\tserver { listen %s:502; return \"line 3: 42 bottles a minute\\n\"; }\n\tserver { listen %s:161 udp; return \"sysDescr: controller of line 3\\n\"; }\n}\n", dir, plc, plc)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	p, err := harness.Start("controller", d.dir, d.net.Command(context.Background(), "plant", "nginx", "-c", conf), true)
	if err != nil {
		return err
	}
	return d.note(p)
}

// provePlant opens the target as demo from the engineer's machine, speaks to
// the controller, and closes it.
func (d *demo) provePlant(ctx context.Context) error {
	dir := filepath.Join(d.dir, "engineer")
	login := d.net.Command(ctx, "engineer", filepath.Join(d.root, "bin", "caponier"), "login", d.access.URL, "--user", "demo", "--ca", d.access.CAFile)
	login.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.dir, "CAPONIER_CONFIG_DIR=" + dir, "CAPONIER_PASSWORD=" + d.access.User.Password}
	if out, err := login.CombinedOutput(); err != nil {
		return fmt.Errorf("log in from the engineer's machine: %w: %s", err, out)
	}
	api, err := harness.NewAPI(d.access.URL, d.access.CAFile, func(ctx context.Context, network, to string) (net.Conn, error) {
		return d.net.Dial(ctx, "engineer", network, to)
	})
	if err != nil {
		return err
	}
	token, err := api.Login(ctx, "demo", d.access.User.Password)
	if err != nil {
		return err
	}
	api = api.As(token)
	if text, err := d.ask(ctx); err == nil {
		return fmt.Errorf("the controller answers %q though nobody opened it", text)
	}
	s, err := api.OpenNetwork(ctx, "plc-line-3")
	if err != nil {
		return err
	}
	text, err := d.ask(ctx)
	if err != nil {
		return fmt.Errorf("the controller does not answer through the router: %w", err)
	}
	if err := api.Do(ctx, http.MethodDelete, "/network-sessions/"+s.ID, nil, nil); err != nil {
		return err
	}
	d.say("proved: the engineer's machine speaks to the controller (%s) while plc-line-3 is open", strings.TrimSpace(text))
	return nil
}

// ask reads what the controller says to the engineer's machine.
func (d *demo) ask(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := d.net.Dial(ctx, "engineer", "tcp", plc+":502")
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(c, 1000))
	return string(b), err
}

// inEngineer is how a person starts something on the engineer's machine.
func (d *demo) inEngineer() string {
	sudo := ""
	if _, err := exec.LookPath("sudo"); err == nil {
		sudo = "sudo "
	}
	return sudo + "ip netns exec " + d.net.NS("engineer")
}
