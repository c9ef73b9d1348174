package bastion

import (
	"context"
	"io"
	"strings"

	"caponier/core/internal/conn"
)

// gate reads what the user sends and lets nothing through while the
// connection is locked: bytes typed at a terminal are dropped, so that nothing
// typed in the dark runs on unlock; data of programs is held back.
type gate struct {
	src  io.Reader
	live Live
	drop bool
	ctx  context.Context // of the session
}

// Read implements io.Reader.
func (g *gate) Read(p []byte) (int, error) {
	for {
		n, err := g.src.Read(p)
		if n == 0 {
			return n, err
		}
		o, changed := g.live.Oversight()
		if !o.Locked {
			return n, err
		}
		if g.drop {
			if err != nil {
				return 0, err
			}
			continue
		}
		for o.Locked {
			select {
			case <-changed:
				o, changed = g.live.Oversight()
			case <-g.live.Context().Done():
				return 0, context.Cause(g.live.Context())
			case <-g.ctx.Done():
				return 0, context.Cause(g.ctx)
			}
		}
		return n, err
	}
}

// sentence ends a text that somebody typed.
func sentence(t string) string {
	t = strings.TrimSpace(t)
	if t == "" || strings.ContainsAny(t[len(t)-1:], ".!?:;") {
		return t
	}
	return t + "."
}

// oversightLines says what changed, for the user; and the same for the record.
func oversightLines(was, is conn.Oversight) (lines []string, kind string) {
	switch {
	case is.Locked && !was.Locked:
		lines, kind = append(lines, "This session is locked: "+sentence(is.Text)+" What you type is ignored until it is unlocked."), "locked"
	case !is.Locked && was.Locked:
		lines, kind = append(lines, "The session is unlocked. What you type counts again."), "unlocked"
	}
	if w := strings.Join(is.Watchers, ", "); w != strings.Join(was.Watchers, ", ") {
		if w == "" {
			lines = append(lines, "Nobody is watching this session any more.")
		} else {
			lines = append(lines, "This session is being watched by "+w+".")
		}
	}
	return lines, kind
}
