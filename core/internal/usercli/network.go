package usercli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"caponier/shared/daemon"
)

type networkCmd struct {
	Open  networkOpen  `cmd:"" help:"Open a network target and hold it until Ctrl-C: your machine then reaches what it opens."`
	Close networkClose `cmd:"" help:"Close a network session."`
	List  networkList  `cmd:"" default:"withargs" help:"List open network sessions."`
	Hold  networkHold  `cmd:"" hidden:"" help:"Hold an open session."`
}

// netSession is a network session as core shows it.
type netSession struct {
	ID            string    `json:"id"`
	State         string    `json:"state"`
	User          string    `json:"user_name"`
	Target        string    `json:"target_name"`
	Client        string    `json:"client_ip"`
	OpenedAt      time.Time `json:"opened_at"`
	PresenceUntil time.Time `json:"presence_until"`
	BytesOut      int64     `json:"bytes_out"`
	BytesIn       int64     `json:"bytes_in"`
	EndReason     string    `json:"end_reason"`
	EndText       string    `json:"end_text"`
	Destinations  []string  `json:"destinations"`
	Total         int       `json:"destinations_total"`
	Instructions  string    `json:"instructions"`
}

type networkOpen struct {
	Reason   string `help:"Why; some targets ask for it." placeholder:"TEXT"`
	ClientIP string `name:"client-ip" help:"For another address than this machine's (administrators)." placeholder:"ADDRESS"`
	Detach   bool   `help:"Return at once and hold the session in the background."`
	Quiet    bool   `short:"q" help:"Show no counters."`
	Target   string `arg:"" help:"Unique name of the network target."`
}

func (o networkOpen) Run(e *env) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	reason := o.Reason
	if reason == "" {
		reason = e.getenv("CAPONIER_REASON")
	}
	in := map[string]string{"target": o.Target, "reason": reason, "client_ip": o.ClientIP}
	for k, v := range in {
		if v == "" {
			delete(in, k)
		}
	}
	var raw json.RawMessage
	if err := c.do(e.ctx, http.MethodPost, "/network-sessions", in, &raw); err != nil {
		if p, ok := errors.AsType[*problem](err); ok && p.Status == http.StatusConflict {
			return &hinted{err: errors.New(p.Detail), hint: "caponier network list shows your open sessions", code: ExitRefused}
		}
		return err
	}
	var s netSession
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if e.json {
		err = e.printJSON(raw)
	} else {
		err = o.announce(e, &s)
	}
	if err != nil {
		return errors.Join(err, closeNetwork(context.WithoutCancel(e.ctx), c, s.ID))
	}
	if o.Detach {
		if err := detach(e, s.ID); err != nil {
			return errors.Join(err, closeNetwork(context.WithoutCancel(e.ctx), c, s.ID))
		}
		return nil
	}
	err = (&holder{e: e, c: c, id: s.ID, show: !e.json && !o.Quiet}).run(e.ctx)
	if e.ctx.Err() == nil {
		return err
	}
	if err := closeNetwork(context.WithoutCancel(e.ctx), c, s.ID); err != nil {
		return err
	}
	if e.json {
		return nil
	}
	return e.printf("\nclosed\n")
}

func (o networkOpen) announce(e *env, s *netSession) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is open for %s (%s)\n", plain(s.Target), s.Client, s.ID)
	for _, d := range s.Destinations {
		fmt.Fprintf(&b, "  %s\n", plain(d))
	}
	if more := s.Total - len(s.Destinations); more > 0 {
		fmt.Fprintf(&b, "  and %d more\n", more)
	}
	for line := range strings.SplitSeq(s.Instructions, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintf(&b, "%s\n", plain(line))
		}
	}
	if o.Detach {
		fmt.Fprintf(&b, "held in the background; close it with: caponier network close %s\n", plain(s.Target))
	} else {
		b.WriteString("close it with Ctrl-C\n")
	}
	return e.printf("%s", b.String())
}

// detach starts this program again to hold the session in the background.
func detach(e *env, id string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("hold the session: %w", err)
	}
	cmd := exec.Command(self, "network", "hold", id)
	cmd.Env = e.Environ
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("hold the session: %w", err)
	}
	return cmd.Process.Release()
}

type networkHold struct {
	ID string `arg:""`
}

func (h networkHold) Run(e *env) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	err = (&holder{e: e, c: c, id: h.ID}).run(e.ctx)
	if e.ctx.Err() != nil {
		return closeNetwork(context.WithoutCancel(e.ctx), c, h.ID)
	}
	return err
}

// holder tells core that the user is there, until the session is over.
type holder struct {
	e    *env
	c    *client
	id   string
	show bool
}

// presenceEvery is how often presence is told when core says nothing shorter;
// retryPresence the pause after core could not be reached.
const (
	presenceEvery = 10 * time.Second
	retryPresence = time.Second
)

// run returns when ctx ends, or with why the session is over. A core that
// cannot be reached is asked again as long as the session may still live.
func (h *holder) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	news := make(chan struct{}, 1)
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		h.follow(ctx, news)
	}()
	defer func() { cancel(); <-followed }()
	until, failed := h.e.now().Add(presenceEvery), 0
	for {
		var p struct {
			State         string    `json:"state"`
			PresenceUntil time.Time `json:"presence_until"`
			EverySeconds  float64   `json:"every_s"`
			BytesOut      int64     `json:"bytes_out"`
			BytesIn       int64     `json:"bytes_in"`
		}
		asked := h.e.now()
		pctx, done := context.WithTimeout(ctx, presenceEvery)
		err := h.c.do(pctx, http.MethodPost, "/network-sessions/"+url.PathEscape(h.id)+"/presence", nil, &p)
		done()
		wait := presenceEvery
		switch pr, refused := errors.AsType[*problem](err); {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			failed = 0
			if every := time.Duration(p.EverySeconds * float64(time.Second)); every > 0 {
				wait = min(wait, every)
				until = asked.Add(4 * every)
			}
			if h.show {
				h.e.printf("\r%s out, %s in   ", size(p.BytesOut), size(p.BytesIn))
			}
		case refused && pr.Status < 500:
			if h.show {
				h.e.printf("\n")
			}
			if pr.Code == "ended" {
				return &hinted{err: errors.New(pr.Detail), code: ExitRefused}
			}
			return err
		case failed > 0 && h.e.now().After(until): // not on the first: the connection may be stale after a pause
			return &hinted{err: fmt.Errorf("core was not reached any more and has closed the session: %w", err), hint: "open it again when core is back", code: ExitUnreachable}
		default:
			failed++
			wait = retryPresence
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-news:
		}
		t.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// follow reads core's event stream and passes on that something about network
// sessions has changed, so that counters and the end are seen at once. Without
// it they are seen with the next presence.
func (h *holder) follow(ctx context.Context, news chan<- struct{}) {
	for ctx.Err() == nil {
		if resp, err := h.c.open(ctx, http.MethodGet, "/events", nil); err == nil {
			stop := context.AfterFunc(ctx, func() { resp.Body.Close() })
			lines := bufio.NewScanner(io.LimitReader(resp.Body, 1<<30))
			for lines.Scan() {
				data, ok := strings.CutPrefix(lines.Text(), "data: ")
				var ev struct {
					Topic string `json:"topic"`
					ID    string `json:"id"`
				}
				if !ok || json.Unmarshal([]byte(data), &ev) != nil || ev.Topic != "network" || ev.ID != "" && ev.ID != h.id {
					continue
				}
				select {
				case news <- struct{}{}:
				default:
				}
			}
			stop()
			resp.Body.Close()
		}
		t := time.NewTimer(3 * time.Second)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// closeNetwork closes a session; one that has ended already is fine.
func closeNetwork(ctx context.Context, c *client, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := c.do(ctx, http.MethodDelete, "/network-sessions/"+url.PathEscape(id), nil, nil)
	if p, ok := errors.AsType[*problem](err); ok && p.Status == http.StatusConflict {
		return nil
	}
	return err
}

type networkClose struct {
	All    bool   `help:"All your sessions."`
	Target string `arg:"" optional:"" help:"Name of the target, or ID of the session."`
}

func (n networkClose) Run(e *env) error {
	if n.All == (n.Target != "") {
		return &daemon.UsageError{Text: "say which session to close", Hint: "name its target, or --all"}
	}
	c, _, err := e.session()
	if err != nil {
		return err
	}
	ids := []string{n.Target}
	if !strings.HasPrefix(n.Target, "con_") {
		list, _, err := ownSessions(e, c, n.Target)
		if err != nil {
			return err
		}
		if ids = ids[:0]; len(list) == 0 && !n.All {
			return &hinted{err: fmt.Errorf("you have no open session to %s", n.Target), hint: "caponier network list shows what is open", code: ExitNotFound}
		}
		for _, s := range list {
			ids = append(ids, s.ID)
		}
	}
	for _, id := range ids {
		if err := closeNetwork(e.ctx, c, id); err != nil {
			return err
		}
	}
	if e.json {
		return e.printJSON(map[string][]string{"closed": ids})
	}
	for _, id := range ids {
		if err := e.printf("%s closed\n", id); err != nil {
			return err
		}
	}
	return nil
}

// ownSessions are the caller's open sessions, of one target or of all.
func ownSessions(e *env, c *client, target string) ([]netSession, []json.RawMessage, error) {
	q := url.Values{"mine": {"true"}}
	if target != "" {
		q.Set("target", target)
	}
	items, err := c.all(e.ctx, "/network-sessions", q, maxListed)
	if err != nil {
		return nil, nil, err
	}
	list, err := decodeAll[netSession](items)
	return list, items, err
}

type networkList struct {
	All bool `help:"Everybody's, as far as you may see them."`
}

func (l networkList) Run(e *env) error {
	q := url.Values{}
	if !l.All {
		q.Set("mine", "true")
	}
	return list(e, "/network-sessions", q, maxListed, "ID TARGET USER CLIENT STATE OPENED OUT IN", func(s netSession) []string {
		return []string{s.ID, s.Target, s.User, s.Client, s.State, when(s.OpenedAt), size(s.BytesOut), size(s.BytesIn)}
	})
}
