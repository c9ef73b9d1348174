package display

import "time"

// pace decides how many frames may be on their way to a viewer that takes them
// without asking (continuous updates). Each frame is followed by a fence; its
// answer says that the viewer has drawn the frame. On a fast line several
// frames travel at once, on a slow one a frame waits until the last arrived, so
// what is shown is recent and no queue grows anywhere.
type pace struct {
	window int
	sent   []time.Time
	best   time.Duration // shortest time a frame took
}

const maxWindow = 8

func newPace() pace { return pace{window: 2} }

// ready reports whether another frame may be sent.
func (p *pace) ready() bool { return len(p.sent) < p.window }

func (p *pace) send(now time.Time) { p.sent = append(p.sent, now) }

// answer takes the answer to the oldest fence; false: none was expected.
func (p *pace) answer(now time.Time) bool {
	if len(p.sent) == 0 {
		return false
	}
	took := now.Sub(p.sent[0])
	p.sent = p.sent[1:]
	if p.best == 0 || took < p.best {
		p.best = took
	}
	if took <= 2*p.best+30*time.Millisecond {
		p.window = min(p.window+1, maxWindow)
	} else {
		p.window = max(p.window/2, 1)
	}
	return true
}
