package target

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"caponier/core/internal/audit"
	"caponier/core/internal/db/dbtest"
)

// What goes in through the interface comes out of it, and is stored and read
// back the same (FEATURES N1).
func TestNetworkRoundTrip(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		r.site(t, "plant")
		c := newClient(t, r)
		body := `{"name":"plc-line-3","kind":"network","comment":"line 3","tags":["area=3"],"disabled":true,"network":{
 "destinations":[
  {"addrs":"10.20.0.0/24","proto":"tcp","ports":"502","dnat_addr":"10.9.0.1","dnat_port":1502},
  {"addrs":"10.20.1.5-10.20.1.9","proto":"udp","ports":"161-162"},
  {"addrs":"fd00:20::/64","proto":"any"},
  {"addrs":"255.255.255.0-255.255.255.255","proto":"tcp"}],
 "snat":true,"exclusive":true,"instructions":"Ring 4711 first.","provider":"NQX",
 "static":{"type":"combo","source_id":"6f9619ff-8b86-d011-b42d-00c04fc964ff","source_name":"plant"}}}`
		made := c.do("POST", "/targets", body)
		m := made.want(t, 201)
		var in, out struct{ Network map[string]any }
		if err := json.Unmarshal([]byte(body), &in); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(c.do("GET", "/targets/plc-line-3", "").body), &out); err != nil {
			t.Fatal(err)
		}
		in.Network["destinations"].([]any)[3].(map[string]any)["addrs"] = "255.255.255.0/24"
		if d := cmp.Diff(in.Network, out.Network); d != "" {
			t.Errorf("came back as (-sent +got):\n%s", d)
		}
		if m["kind"] != "network" || m["host"] != "" || m["port"] != 0.0 || m["address"] != "10.20.0.0/24 tcp 502 -> 10.9.0.1:1502 and 3 more" || m["destinations_total"] != 4.0 {
			t.Errorf("made %v", m)
		}

		// A change is audited with what was and what is, destinations by name.
		put := `{"name":"plc-line-3","kind":"network","network":{"destinations":[{"addrs":"10.20.0.0/24","proto":"tcp","ports":"502"},{"addrs":"fd00:20::/64"}]}}`
		c.do("PUT", "/targets/plc-line-3", put, "If-Match: "+made.etag).want(t, 200)
		found, err := r.log.After(t.Context(), r.db, audit.Filter{}, 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		f := found[len(found)-1].Fields
		want := map[string]string{
			"old_destinations": "4", "destinations": "2", "old_snat": "true", "snat": "false", "old_exclusive": "true", "exclusive": "false",
			"old_provider": "NQX", "old_instructions": "Ring 4711 first.", "old_disabled": "true", "old_tags": "area=3", "old_comment": "line 3",
			"destinations_added":   "10.20.0.0/24 tcp 502",
			"destinations_removed": "10.20.0.0/24 tcp 502 -> 10.9.0.1:1502; 10.20.1.5-10.20.1.9 udp 161-162; 255.255.255.0/24 tcp",
		}
		for k, v := range want {
			if f[k] != v {
				t.Errorf("audit field %s is %q, want %q", k, f[k], v)
			}
		}
		c.do("POST", "/targets/plc-line-3/accounts", `{"name":"root"}`).want(t, 422)
	})
}

func TestNetworkProblems(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	r.site(t, "plant")
	c := newClient(t, r)
	one := `"destinations":[{"addrs":"10.20.0.5","proto":"tcp","ports":"502"}]`
	for _, x := range []struct{ name, rest, want string }{
		{"no network", ``, "network.destinations"},
		{"no destinations", `"network":{"destinations":[]}`, "network.destinations"},
		{"host", `"host":"10.0.0.1","network":{` + one + `}`, "host"},
		{"bad address", `"network":{"destinations":[{"addrs":"10.20.0.256"}]}`, "network.destinations[0].addrs"},
		{"bits after prefix", `"network":{"destinations":[{"addrs":"10.20.0.5/24"}]}`, "network.destinations[0].addrs"},
		{"backwards", `"network":{"destinations":[{"addrs":"10.20.0.9-10.20.0.5"}]}`, "network.destinations[0].addrs"},
		{"two families", `"network":{"destinations":[{"addrs":"10.20.0.9-fd00::1"}]}`, "network.destinations[0].addrs"},
		{"multicast", `"network":{"destinations":[{"addrs":"224.0.0.1"}]}`, "network.destinations[0].addrs"},
		{"ports of any", `"network":{"destinations":[{"addrs":"10.20.0.5","ports":"502"}]}`, "network.destinations[0].ports"},
		{"port 0", `"network":{"destinations":[{"addrs":"10.20.0.5","proto":"tcp","ports":"0"}]}`, "network.destinations[0].ports"},
		{"nat family", `"network":{"destinations":[{"addrs":"10.20.0.5","dnat_addr":"fd00::1"}]}`, "network.destinations[0].dnat_addr"},
		{"nat port of any", `"network":{"destinations":[{"addrs":"10.20.0.5","dnat_addr":"10.0.0.1","dnat_port":1}]}`, "network.destinations[0].dnat_addr"},
		{"nat port alone", `"network":{"destinations":[{"addrs":"10.20.0.5","proto":"tcp","dnat_port":1}]}`, "network.destinations[0].dnat_port"},
		{"nat to loopback", `"network":{"destinations":[{"addrs":"10.20.0.5","dnat_addr":"127.0.0.1"}]}`, "network.destinations[0].dnat_addr"},
		{"twice", `"network":{"destinations":[{"addrs":"10.20.0.5"},{"addrs":"10.20.0.5-10.20.0.5","proto":"any"}]}`, "network.destinations[1]"},
		{"range behind a site", `"site":"plant","network":{"destinations":[{"addrs":"10.20.0.0/30","proto":"tcp","ports":"502"}]}`, "network.destinations[0].addrs"},
		{"any behind a site", `"site":"plant","network":{"destinations":[{"addrs":"10.20.0.5"}]}`, "network.destinations[0].ports"},
		{"too many ports behind a site", `"site":"plant","network":{"destinations":[{"addrs":"10.20.0.5","proto":"tcp","ports":"1-65"}]}`, "network.destinations"},
		{"unknown site", `"site":"nowhere","network":{` + one + `}`, "site"},
		{"static without provider", `"network":{` + one + `,"static":{}}`, "network.provider"},
		{"generic without static", `"network":{` + one + `,"provider":"generic"}`, "network.static"},
		{"generic list", `"network":{` + one + `,"provider":"generic","static":[1]}`, "network.static"},
		{"nqx nothing", `"network":{` + one + `,"provider":"NQX"}`, "network.static"},
		{"nqx type", `"network":{` + one + `,"provider":"NQX","static":{"type":"x","source_id":"6f9619ff-8b86-d011-b42d-00c04fc964ff","source_name":"n"}}`, "network.static.type"},
		{"nqx id", `"network":{` + one + `,"provider":"NQX","static":{"type":"tunnel","source_id":"7","source_name":"n"}}`, "network.static.source_id"},
		{"nqx name", `"network":{` + one + `,"provider":"NQX","static":{"type":"l3rules","source_id":"6f9619ff-8b86-d011-b42d-00c04fc964ff"}}`, "network.static.source_name"},
		{"nqx more", `"network":{` + one + `,"provider":"NQX","static":{"type":"combo","source_id":"6f9619ff-8b86-d011-b42d-00c04fc964ff","source_name":"n","x":1}}`, "network.static"},
		{"ssh with network", `"kind":"ssh","host":"h","network":{` + one + `}`, "network"},
	} {
		t.Run(x.name, func(t *testing.T) {
			kind := `"kind":"network",`
			if strings.Contains(x.rest, `"kind"`) {
				kind = ""
			}
			got := c.do("POST", "/targets", strings.Replace(`{"name":"n",`+kind+x.rest+`}`, ",}", "}", 1))
			m := got.want(t, 422)
			errs, _ := m["errors"].([]any)
			for _, e := range errs {
				if e.(map[string]any)["field"] == x.want {
					return
				}
			}
			t.Errorf("no problem with %s in %s", x.want, got.body)
		})
	}
}

// Lists show the beginning of a long target; the target itself shows all of it.
func TestNetworkLarge(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	c := newClient(t, r)
	var b strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&b, `,{"addrs":"10.%d.%d.0/28","proto":"tcp","ports":"%d"}`, i/200, i%200, i+1)
	}
	body := `{"name":"big","kind":"network","network":{"destinations":[` + b.String()[1:] + `]}}`
	c.do("POST", "/targets", body).want(t, 201)
	n := func(m map[string]any) int { return len(m["network"].(map[string]any)["destinations"].([]any)) }
	if got := n(c.do("GET", "/targets/big", "").want(t, 200)); got != 5000 {
		t.Errorf("the target shows %d destinations", got)
	}
	item := c.do("GET", "/targets?kind=network", "").want(t, 200)["items"].([]any)[0].(map[string]any)
	if n(item) != shownDestinations || item["destinations_total"] != 5000.0 {
		t.Errorf("the list shows %d of %v", n(item), item["destinations_total"])
	}
	c.do("POST", "/targets", strings.Replace(body, `"destinations":[`, `"destinations":[{"addrs":"192.0.2.1"},`, 1)).want(t, 422)
}
