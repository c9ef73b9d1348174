package target

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"caponier/shared/netrule"
)

// NetworkSpec is what a network target opens (FEATURES N1).
type NetworkSpec struct {
	Destinations []netrule.Destination
	// SNAT hides the client behind the router's own address.
	SNAT bool
	// Exclusive: while somebody uses it, nobody else uses what overlaps it.
	Exclusive bool
	// Instructions are shown to users before and while they use it.
	Instructions string
	// Provider and Static are the static configuration that routers of the
	// types exec and sshexec pass on; Static is one JSON object or empty.
	Provider Provider
	Static   json.RawMessage
}

// Provider says which form the static configuration of a network target has.
type Provider string

// The providers.
const (
	NoProvider Provider = ""
	Generic    Provider = "generic" // any JSON object
	NQX        Provider = "NQX"     // type, source_id and source_name
)

// Limits of a network target.
const (
	maxInstructions = 4000    // bytes
	maxStatic       = 8 << 10 // bytes
	// maxRelayed is the most single ports a target behind a site opens: each
	// takes a listener of core while a session lasts.
	maxRelayed = 64
)

// NetworkText is a NetworkSpec as it is stored and as the API shows it: addresses,
// protocols and ports as people write them.
type NetworkText struct {
	Destinations []DestinationText `json:"destinations" nullable:"false" minItems:"1" maxItems:"5000"`
	SNAT         bool              `json:"snat,omitempty" doc:"hide the client behind the router's own address"`
	Exclusive    bool              `json:"exclusive,omitempty" doc:"while somebody uses it, nobody else uses what overlaps it"`
	Instructions string            `json:"instructions,omitempty" maxLength:"4000" doc:"shown to users"`
	Provider     string            `json:"provider,omitempty" enum:",generic,NQX" doc:"form of the static configuration"`
	Static       json.RawMessage   `json:"static,omitempty" doc:"static configuration, a JSON object; for routers of type exec and sshexec"`
}

// DestinationText is one destination of a network target.
type DestinationText struct {
	Addrs    string `json:"addrs" maxLength:"100" doc:"10.20.0.5, 10.20.0.0/24 or 10.20.0.10-10.20.0.19; IPv6 alike"`
	Proto    string `json:"proto,omitempty" enum:"any,tcp,udp" default:"any"`
	Ports    string `json:"ports,omitempty" maxLength:"11" doc:"502 or 8000-8099; every port when left out; only with tcp or udp"`
	DNATAddr string `json:"dnat_addr,omitempty" maxLength:"45" doc:"send there instead; with a site: the address in the site"`
	DNATPort int    `json:"dnat_port,omitempty" minimum:"0" maximum:"65535" doc:"and to this port; 0: it stays"`
}

// read turns one destination into its value; problems are named under field.
func (d *DestinationText) read(field string, p *problems) netrule.Destination {
	var out netrule.Destination
	var err error
	check := func(name string, err error) {
		if err != nil {
			p.add(field+"."+name, "%s", err)
		}
	}
	before := len(*p)
	out.Addrs, err = netrule.ParseRange(d.Addrs)
	check("addrs", err)
	out.Proto, err = netrule.ParseProto(d.Proto)
	check("proto", err)
	out.Ports, err = netrule.ParsePorts(d.Ports)
	check("ports", err)
	if err == nil && out.Proto == netrule.Any && out.Ports != (netrule.Ports{}) {
		p.add(field+".ports", "only tcp and udp have ports")
	}
	if out.Addrs.First.IsMulticast() {
		p.add(field+".addrs", "multicast addresses cannot be opened")
	}
	switch {
	case d.DNATPort < 0 || d.DNATPort > 65535:
		p.add(field+".dnat_port", "must be 1 to 65535")
	case d.DNATAddr == "" && d.DNATPort != 0:
		p.add(field+".dnat_port", "needs dnat_addr")
	case d.DNATAddr != "":
		nat, err := netrule.ParseNAT(d.DNATAddr)
		if err == nil && nat.Port != 0 {
			err = errors.New("give the port in dnat_port")
		}
		check("dnat_addr", err)
		nat.Port = uint16(d.DNATPort)
		out.DNAT = &nat
	}
	if len(*p) == before {
		check("dnat_addr", out.Validate())
	}
	return out.Normal()
}

func viewDestination(d *netrule.Destination) DestinationText {
	v := DestinationText{Addrs: d.Addrs.String(), Proto: d.Proto.String()}
	if d.Ports != (netrule.Ports{}) {
		v.Ports = d.Ports.String()
	}
	if d.DNAT != nil {
		v.DNATAddr, v.DNATPort = d.DNAT.Addr.String(), int(d.DNAT.Port)
	}
	return v
}

// Read turns the text into a NetworkSpec, or says what is wrong with it.
func (v *NetworkText) Read() (*NetworkSpec, error) {
	var p problems
	n := v.read(&p)
	if len(p) == 0 {
		t := Target{Kind: Network, Network: n}
		t.validateNetwork(&p)
	}
	return n, p.err()
}

// read turns the text into a NetworkSpec.
func (v *NetworkText) read(p *problems) *NetworkSpec {
	n := &NetworkSpec{SNAT: v.SNAT, Exclusive: v.Exclusive, Instructions: v.Instructions, Provider: Provider(v.Provider)}
	if len(v.Destinations) > netrule.MaxDestinations {
		p.add("network.destinations", "at most %d destinations", netrule.MaxDestinations)
		return n
	}
	n.Destinations = make([]netrule.Destination, len(v.Destinations))
	for i := range v.Destinations {
		n.Destinations[i] = v.Destinations[i].read(fmt.Sprintf("network.destinations[%d]", i), p)
	}
	if s := bytes.TrimSpace(v.Static); len(s) > 0 && string(s) != "null" {
		n.Static = slices.Clone(s)
	}
	return n
}

// ViewNetwork renders a NetworkSpec.
func ViewNetwork(n *NetworkSpec) *NetworkText {
	v := &NetworkText{SNAT: n.SNAT, Exclusive: n.Exclusive, Instructions: n.Instructions, Provider: string(n.Provider), Static: n.Static}
	v.Destinations = make([]DestinationText, len(n.Destinations))
	for i := range n.Destinations {
		v.Destinations[i] = viewDestination(&n.Destinations[i])
	}
	return v
}

// validateNetwork checks what destinations say together, and the rest.
func (t *Target) validateNetwork(p *problems) {
	n := t.Network
	if t.Host != "" || t.Port != 0 {
		p.add("host", "a network target has destinations, no host and port")
	}
	if n == nil || len(n.Destinations) == 0 {
		p.add("network.destinations", "at least one destination")
		return
	}
	// Destinations may overlap: the first that matches a packet decides about
	// its translation.
	seen := make(map[netrule.Selector]int, len(n.Destinations))
	for i := range n.Destinations {
		first, twice := seen[n.Destinations[i].Selector]
		if twice {
			p.add(fmt.Sprintf("network.destinations[%d]", i), "is the same as destination %d", first+1)
			continue
		}
		seen[n.Destinations[i].Selector] = i
	}
	if len(n.Instructions) > maxInstructions {
		p.add("network.instructions", "at most %d bytes", maxInstructions)
	}
	if t.Site != "" {
		n.validateRelay(p)
	}
	n.validateStatic(p)
}

// Brief is n with the first 20 destinations, for lists.
func (n *NetworkSpec) Brief() *NetworkSpec {
	if n == nil || len(n.Destinations) <= shownDestinations {
		return n
	}
	b := *n
	b.Destinations = n.Destinations[:shownDestinations]
	return &b
}

// summary is the first destination and how many more there are.
func (n *NetworkSpec) summary() string {
	if len(n.Destinations) == 0 {
		return ""
	}
	s := n.Destinations[0].String()
	if more := len(n.Destinations) - 1; more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// validateRelay checks that every packet to a target behind a site has one
// place to go: core cannot see what address a packet had before the router
// rewrote it.
func (n *NetworkSpec) validateRelay(p *problems) {
	ports := 0
	for i := range n.Destinations {
		d := &n.Destinations[i]
		field := fmt.Sprintf("network.destinations[%d]", i)
		if d.Addrs.First != d.Addrs.Last {
			p.add(field+".addrs", "with a site a destination is one address")
		}
		if d.Proto == netrule.Any || d.Ports == (netrule.Ports{}) {
			p.add(field+".ports", "with a site a destination needs tcp or udp and its ports")
			continue
		}
		ports += int(d.Ports.Last) - int(d.Ports.First) + 1
	}
	if ports > maxRelayed {
		p.add("network.destinations", "with a site at most %d single ports", maxRelayed)
	}
}

// nqxID is what NQX takes for a source: a UUID.
var nqxID = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// validateStatic checks the static configuration against its provider.
func (n *NetworkSpec) validateStatic(p *problems) {
	const field = "network.static"
	if len(n.Static) > maxStatic {
		p.add(field, "at most %d bytes", maxStatic)
		return
	}
	var object map[string]json.RawMessage
	if len(n.Static) > 0 && (json.Unmarshal(n.Static, &object) != nil || object == nil) {
		p.add(field, "must be one JSON object")
		return
	}
	switch n.Provider {
	case NoProvider:
		if len(n.Static) > 0 {
			p.add("network.provider", "say generic or NQX for the static configuration")
		}
	case Generic:
		if len(n.Static) == 0 {
			p.add(field, "provider generic needs a JSON object")
		}
	case NQX:
		n.validateNQX(field, object, p)
	default:
		p.add("network.provider", "must be generic or NQX")
		return
	}
	if len(n.Static) > 0 {
		var b bytes.Buffer
		if json.Compact(&b, n.Static) == nil {
			n.Static = b.Bytes()
		}
	}
}

func (n *NetworkSpec) validateNQX(field string, object map[string]json.RawMessage, p *problems) {
	if len(n.Static) == 0 {
		p.add(field, `provider NQX needs {"type", "source_id", "source_name"}`)
		return
	}
	text := func(key string) string {
		var s string
		raw, ok := object[key]
		if ok && json.Unmarshal(raw, &s) != nil {
			p.add(field+"."+key, "must be a text")
		}
		delete(object, key)
		return s
	}
	switch text("type") {
	case "l3rules", "tunnel", "combo":
	default:
		p.add(field+".type", "must be l3rules, tunnel or combo")
	}
	if !nqxID.MatchString(text("source_id")) {
		p.add(field+".source_id", "must be a UUID")
	}
	if name := text("source_name"); name == "" || len(name) > 255 {
		p.add(field+".source_name", "must be 1 to 255 bytes")
	}
	for key := range object {
		p.add(field, "NQX does not know %.64q", key)
	}
}

// networkJSON is the stored form; empty for other kinds.
func (t *Target) networkJSON() string {
	if t.Network == nil {
		return ""
	}
	return toJSON(ViewNetwork(t.Network))
}

func readNetwork(stored string) (*NetworkSpec, error) {
	if stored == "" {
		return nil, nil
	}
	var v NetworkText
	if err := json.Unmarshal([]byte(stored), &v); err != nil {
		return nil, err
	}
	var p problems
	n := v.read(&p)
	if len(p) > 0 {
		return nil, fmt.Errorf("%s: %s", p[0].Field, p[0].Message)
	}
	return n, nil
}

// facts adds what the audit log keeps of a network target. Destinations
// are told by their number; a change tells those added and removed (see
// networkDiff).
func (n *NetworkSpec) facts(f map[string]string) {
	f["destinations"] = strconv.Itoa(len(n.Destinations))
	f["snat"], f["exclusive"] = strconv.FormatBool(n.SNAT), strconv.FormatBool(n.Exclusive)
	if n.Instructions != "" {
		f["instructions"] = cutText(n.Instructions, 500)
	}
	if n.Provider != NoProvider {
		f["provider"], f["static"] = string(n.Provider), cutText(string(n.Static), 2000)
	}
}

// networkDiff adds the destinations that came and went to an event.
func networkDiff(f map[string]string, old, now *NetworkSpec) {
	lines := func(n *NetworkSpec) map[string]bool {
		m := map[string]bool{}
		if n != nil {
			for i := range n.Destinations {
				m[n.Destinations[i].String()] = true
			}
		}
		return m
	}
	was, is := lines(old), lines(now)
	diff := func(key string, a, b map[string]bool) {
		var only []string
		for l := range a {
			if !b[l] {
				only = append(only, l)
			}
		}
		if len(only) > 0 {
			slices.Sort(only)
			f[key] = listText(only)
		}
	}
	diff("destinations_added", is, was)
	diff("destinations_removed", was, is)
}

// listText writes lines with semicolons, at most about 2,000 bytes.
func listText(lines []string) string {
	var b strings.Builder
	for i, l := range lines {
		if b.Len() > 2000 {
			fmt.Fprintf(&b, "; and %d more", len(lines)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(l)
	}
	return b.String()
}

func cutText(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
