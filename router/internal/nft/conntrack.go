package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"caponier/router/internal/ruleset"
)

// Attributes of conntrack (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
const (
	ctSubsys    = unix.NFNL_SUBSYS_CTNETLINK << 8
	ctGet       = 1
	ctDelete    = 2
	ctTupleOrig = 1
	ctMark      = 8
	ctID        = 12
	ctZone      = 18
	ctMarkMask  = 21
)

// forgetFlows deletes the flows that carry a mark of the block, in one walk of
// the kernel's over its table. They are cut already; what this prevents is that
// an old flow is refused for long after its owner may speak again.
func forgetFlows(s *socket, b ruleset.Block) error {
	r := s.requests()
	r.begin(ctSubsys|ctDelete, unix.NLM_F_ACK, header(unix.AF_UNSPEC)...)
	r.be32(ctMark, b.Base)
	r.be32(ctMarkMask, b.Mask())
	r.end()
	if err := s.do(r, nil); err != nil {
		return fmt.Errorf("delete flows by mark: %w", err)
	}
	return nil
}

// forgetDead deletes every flow of ours whose mark is not live: after a crash,
// or when many sessions ended at once. It asks which are after listing them.
func forgetDead(s *socket, living func() (live func(mark uint32) bool, err error)) (n int, err error) {
	type flow struct {
		family          byte
		mark            uint32
		tuple, id, zone []byte
	}
	flows, err := dumpAgain(func() ([]flow, error) {
		var out []flow
		r := s.requests()
		r.begin(ctSubsys|ctGet, unix.NLM_F_DUMP, header(unix.AF_UNSPEC)...)
		r.be32(ctMark, ruleset.MarkBit)
		r.be32(ctMarkMask, ruleset.MarkBit)
		r.end()
		err := s.dump(r, func(m message) error {
			if len(m.data) < 4 {
				return nil
			}
			f := flow{family: m.data[0]}
			for a := range attributes(m.data[4:]) {
				switch a.kind {
				case ctTupleOrig:
					f.tuple = append([]byte(nil), a.data...)
				case ctID:
					f.id = append([]byte(nil), a.data...)
				case ctZone:
					f.zone = append([]byte(nil), a.data...)
				case ctMark:
					f.mark = be32(a.data)
				}
			}
			if f.mark&ruleset.MarkBit != 0 && f.tuple != nil && f.id != nil {
				out = append(out, f)
			}
			return nil
		})
		return out, err
	})
	if err != nil {
		return 0, fmt.Errorf("list flows: %w", err)
	}
	live, err := living()
	if err != nil {
		return 0, err
	}
	for _, f := range flows {
		if live(f.mark) {
			continue
		}
		r := s.requests()
		r.begin(ctSubsys|ctDelete, unix.NLM_F_ACK, header(f.family)...)
		r.attr(ctTupleOrig|unix.NLA_F_NESTED, f.tuple)
		if f.zone != nil {
			r.attr(ctZone, f.zone)
		}
		r.attr(ctID, f.id)
		r.end()
		if err := s.do(r, nil); err != nil && !errors.Is(err, syscall.ENOENT) {
			return n, fmt.Errorf("delete a flow: %w", err)
		}
		n++
	}
	return n, nil
}

// generation is the number of transactions the kernel has seen.
func generation(s *socket) (gen uint32, err error) {
	r := s.requests()
	r.begin(subsys|unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, header(unix.AF_UNSPEC)...)
	r.end()
	err = s.do(r, func(m message) error {
		if len(m.data) < 4 {
			return nil
		}
		for a := range attributes(m.data[4:]) {
			if a.kind == unix.NFTA_GEN_ID && len(a.data) >= 4 {
				gen = binary.BigEndian.Uint32(a.data)
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read nftables generation: %w", err)
	}
	return gen, nil
}
