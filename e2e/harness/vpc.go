package harness

import (
	"fmt"
	"os"
	"strings"
)

// Addresses of the rig. The outside network is TEST-NET-3; every VPC uses the
// same private one, on purpose.
const (
	CoreAddr   = "203.0.113.1"
	UserAddr   = "203.0.113.50"
	MiddleAddr = "203.0.113.20" // a load balancer or a man in the middle
	HostAddr   = "10.10.0.5"    // first host of each VPC
	ExtAddr    = "10.10.0.2"
	LANPrefix  = "10.10.0.0/24"
)

// Hosts are the addresses sshds and services of a VPC may use.
var Hosts = []string{"10.10.0.5", "10.10.0.6", "10.10.0.7", "10.10.0.8", "10.10.0.9"}

// Outside makes the namespaces core, user and middle on one network.
func (n *Net) Outside() error {
	if err := n.Add("core", "user", "middle"); err != nil {
		return err
	}
	if err := n.IP("core", "link add br0 type bridge", "addr add "+CoreAddr+"/24 dev br0", "link set br0 up"); err != nil {
		return err
	}
	if err := n.Plug("user", "eth0", "core", "br0", UserAddr+"/24", "203.0.113.51/24"); err != nil {
		return err
	}
	return n.Plug("middle", "eth0", "core", "br0", MiddleAddr+"/24")
}

// routerRules drop everything that comes from outside and is not an answer.
const routerRules = `
table inet vpc {
	chain outgoing {
	}
	chain forward {
		type filter hook forward priority 0; policy drop;
		jump outgoing
		ct state established,related accept
		iifname "lan" accept comment "out, and inside where the kernel filters bridged packets"
	}
	chain input {
		type filter hook input priority 0; policy drop;
		iifname "lo" accept
		ct state established,related accept
		iifname "lan" accept
	}
}
table ip vpcnat {
	chain post {
		type nat hook postrouting priority 100;
		oifname "wan" masquerade
	}
}
`

// VPC makes a private network behind a NAT router whose wan side is
// 203.0.113.<last>: namespaces rtr-<name>, ext-<name> and host-<name>.
func (n *Net) VPC(name string, last int) error {
	rtr, ext, host := "rtr-"+name, "ext-"+name, "host-"+name
	if err := n.Add(rtr, ext, host); err != nil {
		return err
	}
	if err := n.Plug(rtr, "wan", "core", "br0", fmt.Sprintf("203.0.113.%d/24", last)); err != nil {
		return err
	}
	return n.lan(rtr, ext, host)
}

// lan wires the inside of a VPC; the router's wan device exists already.
func (n *Net) lan(rtr, ext, host string) error {
	if err := n.IP(rtr, "link add lan type bridge", "addr add 10.10.0.1/24 dev lan", "link set lan up"); err != nil {
		return err
	}
	if err := n.Sysctl(rtr, "net.ipv4.ip_forward=1"); err != nil {
		return err
	}
	if err := n.NFT(rtr, routerRules); err != nil {
		return err
	}
	if err := n.Plug(ext, "eth0", rtr, "lan", ExtAddr+"/24"); err != nil {
		return err
	}
	addrs := make([]string, len(Hosts))
	for i, a := range Hosts {
		addrs[i] = a + "/24"
	}
	if err := n.Plug(host, "eth0", rtr, "lan", addrs...); err != nil {
		return err
	}
	for _, s := range []string{ext, host} {
		if err := n.IP(s, "route add default via 10.10.0.1"); err != nil {
			return err
		}
	}
	return nil
}

// Outgoing replaces the extra rules of a VPC's router for traffic that leaves
// it, one rule per line ("udp dport 443 drop"). No lines: no extra rules.
func (n *Net) Outgoing(vpc string, rules ...string) error {
	script := "flush chain inet vpc outgoing\n"
	for _, r := range rules {
		script += "add rule inet vpc outgoing " + r + "\n"
	}
	return n.NFT("rtr-"+vpc, script)
}

// Listening lists the TCP sockets a namespace listens on, "address:port".
func (n *Net) Listening(short string) ([]string, error) {
	out, err := run("ip", "netns", "exec", n.NS(short), "ss", "-Htln")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) >= 4 {
			found = append(found, f[3])
		}
	}
	return found, nil
}

// VPCBehindHost makes a private network like VPC whose router is joined to
// this machine by the link dev: near is our end's address, far the router's.
func (n *Net) VPCBehindHost(name, dev, near, far string) error {
	rtr, ext, host := "rtr-"+name, "ext-"+name, "host-"+name
	if err := n.Add(rtr, ext, host); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"link", "add", dev, "type", "veth", "peer", "name", "wan", "netns", n.NS(rtr)},
		{"addr", "add", near + "/30", "dev", dev},
		{"link", "set", dev, "up"},
	} {
		if out, err := run("ip", args...); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	if err := n.IP(rtr, "addr add "+far+"/30 dev wan", "link set wan up", "route add default via "+near); err != nil {
		return err
	}
	return n.lan(rtr, ext, host)
}

// PlugHost joins this machine by a cable to a bridge of a namespace: the end
// here is called dev and gets the addresses.
func (n *Net) PlugHost(dev, at, bridge string, addrs ...string) error {
	port := "p" + dev
	lines := [][]string{{"link", "add", dev, "type", "veth", "peer", "name", port, "netns", n.NS(at)}}
	for _, a := range addrs {
		lines = append(lines, []string{"addr", "add", a, "dev", dev})
	}
	for _, args := range append(lines, []string{"link", "set", dev, "up"}) {
		if out, err := run("ip", args...); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return n.IP(at, "link set "+port+" master "+bridge+" up")
}

// HostNFT loads an nftables script on this machine itself.
func HostNFT(script string) error { return runIn(script, "nft", "-f", "-") }

// HostSysctl sets a kernel setting of this machine.
func HostSysctl(setting string) error {
	_, err := run("sysctl", "-q", "-w", setting)
	return err
}

// Forget removes namespaces whose names begin with prefix, with everything
// that runs in them, and links of this machine.
func Forget(prefix string, devs ...string) {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return // no namespace was ever made here
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			killInside(e.Name())
			run("ip", "netns", "del", e.Name())
		}
	}
	for _, dev := range devs {
		run("ip", "link", "del", dev)
	}
}
