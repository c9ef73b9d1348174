package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// The latch stands outside nftables, in the rules of routing, so that removing
// all tables does not open the router: what is not from the router itself and
// does not carry the packet mark of permitted packets has no route. With the
// first of the four priorities P, for both IP versions:
//
//	P    from the router itself: go to P+3
//	P+1  with the packet mark:   go to P+3
//	P+2  blackhole
//	P+3  nothing: all rules behind go on as they are
//
// What is addressed to the router is delivered before by rule 0 (local).
type latchRule struct {
	priority, mark, target uint32
	action                 byte
	fromSelf               bool
}

func latchRules(p, mark uint32) []latchRule {
	return []latchRule{
		{priority: p + 3, action: unix.FR_ACT_NOP},
		{priority: p, action: unix.FR_ACT_GOTO, target: p + 3, fromSelf: true},
		{priority: p + 1, action: unix.FR_ACT_GOTO, target: p + 3, mark: mark},
		{priority: p + 2, action: unix.FR_ACT_BLACKHOLE},
	}
}

var families = []byte{unix.AF_INET, unix.AF_INET6}

func (r *requests) latchRule(kind, flags uint16, family byte, l latchRule) {
	// struct fib_rule_hdr
	r.begin(kind, flags, family, 0, 0, 0, unix.RT_TABLE_UNSPEC, 0, 0, l.action, 0, 0, 0, 0)
	u32 := func(kind uint16, v uint32) { r.attr(kind, binary.NativeEndian.AppendUint32(nil, v)) }
	u32(unix.FRA_PRIORITY, l.priority)
	if l.fromSelf {
		r.text(unix.FRA_IIFNAME, "lo")
	}
	if l.mark != 0 {
		u32(unix.FRA_FWMARK, l.mark)
		u32(unix.FRA_FWMASK, l.mark)
	}
	if l.target != 0 {
		u32(unix.FRA_GOTO, l.target)
	}
	r.end()
}

// readRules lists the rules of one family as latch rules; what has more to it
// than a latch rule can have is left out.
func readRules(s *socket, family byte) (have map[latchRule]bool, err error) {
	have = map[latchRule]bool{}
	r := s.requests()
	r.begin(unix.RTM_GETRULE, unix.NLM_F_DUMP, family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	r.end()
	err = s.dump(r, func(m message) error {
		if m.kind != unix.RTM_NEWRULE || len(m.data) < 12 || m.data[0] != family {
			return nil
		}
		l := latchRule{action: m.data[7]}
		plain := m.data[1] == 0 && m.data[2] == 0 && m.data[3] == 0 && binary.NativeEndian.Uint32(m.data[8:])&unix.FIB_RULE_INVERT == 0
		var mask uint32
		u32 := func(b []byte) uint32 {
			if len(b) < 4 {
				return 0
			}
			return binary.NativeEndian.Uint32(b)
		}
		for a := range attributes(m.data[12:]) {
			switch a.kind {
			case unix.FRA_PRIORITY:
				l.priority = u32(a.data)
			case unix.FRA_FWMARK:
				l.mark = u32(a.data)
			case unix.FRA_FWMASK:
				mask = u32(a.data)
			case unix.FRA_GOTO:
				l.target = u32(a.data)
			case unix.FRA_IIFNAME:
				l.fromSelf = text(a.data) == "lo"
				plain = plain && l.fromSelf
			case unix.FRA_OIFNAME, unix.FRA_SRC, unix.FRA_DST, unix.FRA_UID_RANGE, unix.FRA_IP_PROTO, unix.FRA_SPORT_RANGE, unix.FRA_DPORT_RANGE, unix.FRA_L3MDEV, unix.FRA_TUN_ID:
				plain = false
			}
		}
		if plain && mask == l.mark {
			have[l] = true
		}
		return nil
	})
	return have, err
}

// ensureLatch adds what is missing of the latch and says whether anything was.
func ensureLatch(s *socket, priority, mark uint32) (added bool, err error) {
	for _, f := range families {
		have, err := dumpAgain(func() (map[latchRule]bool, error) { return readRules(s, f) })
		if f == unix.AF_INET6 && noFamily(err) {
			continue
		}
		if err != nil {
			return added, fmt.Errorf("list ip rules: %w", err)
		}
		for _, l := range latchRules(priority, mark) {
			if have[l] {
				continue
			}
			r := s.requests()
			r.latchRule(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, f, l)
			switch err := s.do(r, nil); {
			case errors.Is(err, syscall.EEXIST):
			case f == unix.AF_INET6 && noFamily(err):
			case err != nil:
				return added, fmt.Errorf("add ip rule %d: %w", l.priority, err)
			}
			added = true
		}
	}
	return added, nil
}

// noFamily reports that the kernel has no IPv6, which is as closed as can be.
func noFamily(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EOPNOTSUPP)
}

func removeLatch(s *socket, priority, mark uint32) error {
	for _, f := range families {
		rules := latchRules(priority, mark)
		for i := len(rules) - 1; i >= 0; i-- { // the blackhole first
			r := s.requests()
			r.latchRule(unix.RTM_DELRULE, unix.NLM_F_ACK, f, rules[i])
			if err := s.do(r, nil); err != nil && !errors.Is(err, syscall.ENOENT) && !(f == unix.AF_INET6 && noFamily(err)) {
				return fmt.Errorf("remove ip rule %d: %w", rules[i].priority, err)
			}
		}
	}
	return nil
}

// dumpAgain repeats a dump that a change interrupted.
func dumpAgain[T any](dump func() (T, error)) (v T, err error) {
	for range maxDumps {
		if v, err = dump(); !errors.Is(err, errInterrupted) {
			return v, err
		}
	}
	return v, err
}
