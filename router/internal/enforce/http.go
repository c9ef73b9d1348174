package enforce

import (
	"errors"
	"net/http"
	"time"

	"caponier/shared/control"
	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// errBad is a message that makes no sense.
var errBad = errors.New("the message makes no sense")

// readTimeout is how long a whole state may take to arrive.
const readTimeout = time.Minute

// Control serves core's requests.
func (r *Router) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT "+wire.PathRouterState, func(w http.ResponseWriter, req *http.Request) {
		var in wire.RouterState
		if r.read(w, req, &in) {
			ack, err := r.State(req.Context(), in)
			r.answer(w, ack, err)
		}
	})
	mux.HandleFunc("POST "+wire.PathRouterChanges, func(w http.ResponseWriter, req *http.Request) {
		var in wire.RouterChanges
		if r.read(w, req, &in) {
			ack, err := r.Changes(req.Context(), in)
			r.answer(w, ack, err)
		}
	})
	mux.HandleFunc("POST "+wire.PathRouterLease, func(w http.ResponseWriter, req *http.Request) {
		var in wire.RouterLease
		if control.Read(w, req, &in) {
			control.Reply(w, r.Lease(req.Context(), in))
		}
	})
	mux.HandleFunc("POST "+wire.PathRouterCounters, func(w http.ResponseWriter, req *http.Request) {
		var in wire.RouterCountersAsk
		if r.read(w, req, &in) {
			counts, err := r.c.Backend.Counters(req.Context(), in.Sessions)
			r.answer(w, wire.RouterCounters{Sessions: counts}, err)
		}
	})
	return mux
}

// read takes a large message, and gives the answer the time that the backend
// may need.
func (r *Router) read(w http.ResponseWriter, req *http.Request, v any) bool {
	rc := http.NewResponseController(w)
	now := time.Now()
	if err := errors.Join(rc.SetReadDeadline(now.Add(readTimeout)), rc.SetWriteDeadline(now.Add(readTimeout+applyTimeout+10*time.Second))); err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		r.log.Error("control request", telemetry.KeyErr, err)
		return false
	}
	return control.ReadUpTo(w, req, v, wire.MaxRouterBody)
}

func (r *Router) answer(w http.ResponseWriter, v any, err error) {
	switch {
	case err == nil:
		control.Reply(w, v)
	case errors.Is(err, ErrConflict):
		http.Error(w, ErrConflict.Error(), http.StatusConflict)
	case errors.Is(err, errBad):
		http.Error(w, errBad.Error(), http.StatusUnprocessableEntity)
	default:
		r.log.Error("core's request", telemetry.KeyErr, err)
		http.Error(w, "the router could not do it: its log says why", http.StatusInternalServerError)
	}
}
