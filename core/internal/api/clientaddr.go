package api

import (
	"net/http"
	"net/netip"
	"strings"
)

// TrustedProxies are the proxies in front of core whose X-Forwarded-For is
// believed. The zero value believes nobody.
type TrustedProxies struct {
	// Networks hold the proxies' addresses.
	Networks []netip.Prefix
	// Hops is how many proxies a request passes at most; 0 means 1.
	Hops int
}

func (t TrustedProxies) trusts(a netip.Addr) bool {
	for _, n := range t.Networks {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// ClientAddr is the address a request comes from. It starts at the TCP peer
// and goes back through X-Forwarded-For from the right, one entry per proxy it
// trusts and at most t.Hops of them; what stands left of that was written by
// the client itself and is ignored. An invalid result means: unknown peer.
func ClientAddr(r *http.Request, t TrustedProxies) netip.Addr {
	addr, ok := hostAddr(r.RemoteAddr)
	if !ok {
		return netip.Addr{}
	}
	left := max(t.Hops, 1)
	entries := forwarded(r.Header["X-Forwarded-For"])
	for ; left > 0 && t.trusts(addr); left-- {
		entry, rest, ok := lastEntry(entries)
		if !ok {
			break
		}
		next, ok := hostAddr(entry)
		if !ok {
			break
		}
		addr, entries = next, rest
	}
	return addr
}

// forwarded joins repeated headers (RFC 9110 §5.3), keeping at most the last
// 4 KiB: only entries at the right end count.
func forwarded(lines []string) string {
	all := strings.Join(lines, ",")
	if len(all) > 4096 {
		all = all[len(all)-4096:]
	}
	return all
}

func lastEntry(list string) (entry, rest string, ok bool) {
	if list == "" {
		return "", "", false
	}
	i := strings.LastIndexByte(list, ',')
	if i < 0 {
		return strings.TrimSpace(list), "", true
	}
	return strings.TrimSpace(list[i+1:]), list[:i], true
}

// hostAddr parses an address with or without a port; v4-in-v6 becomes v4 and
// zones are dropped.
func hostAddr(s string) (netip.Addr, bool) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	s = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, false
	}
	return a.Unmap().WithZone(""), true
}
