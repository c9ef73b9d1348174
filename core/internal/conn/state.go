package conn

// State of a connection.
type State string

// The states (FEATURES R1).
const (
	Requested     State = "requested"
	Connecting    State = "connecting"
	Connected     State = "connected"
	Disconnecting State = "disconnecting"
	Disconnected  State = "disconnected"
	Failed        State = "failed"
)

// Over reports whether s is a final state.
func (s State) Over() bool { return s == Disconnected || s == Failed }

// step is what can happen to a connection.
type step uint8

const (
	stepDial    step = iota + 1 // the destination is being dialled
	stepConnect                 // the destination answered
	stepEnd                     // the order to end was given
	stepClose                   // everything is closed
	stepFail                    // everything is closed and it never worked
)

// next is the state machine. ok is false when the step is not possible in s;
// the state then stays.
func next(s State, e step) (State, bool) {
	switch {
	case e == stepDial && s == Requested:
		return Connecting, true
	case e == stepConnect && (s == Requested || s == Connecting):
		return Connected, true
	case e == stepEnd && (s == Requested || s == Connecting || s == Connected):
		return Disconnecting, true
	case e == stepClose && !s.Over():
		return Disconnected, true
	case e == stepFail && !s.Over():
		return Failed, true
	}
	return s, false
}
