package usercli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// webCAFile is what programs that use a session's proxy must believe.
const webCAFile = "web-ca.pem"

// clientSession is a web session for programs, as core shows it.
type clientSession struct {
	ID      string    `json:"id"`
	State   string    `json:"state"`
	EndText string    `json:"end_text"`
	EndsAt  time.Time `json:"ends_at"`
}

// clientLogin is how programs sign in to its proxy.
type clientLogin struct {
	Username string `json:"username"`
	Password string `json:"password"`
	CA       string `json:"ca_pem"`
}

// proxy opens a session for programs and listens for them until the user or
// core ends it.
func (w webCmd) proxy(e *env, c *client, target, account string) error {
	listen, err := localAddress(w.Listen, "0")
	if err != nil {
		return err
	}
	var s clientSession
	body := map[string]any{"target_id": target, "account": account, "mode": "api", "reason": w.Reason}
	if err := c.do(e.ctx, http.MethodPost, "/web-sessions", body, &s); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), 10*time.Second)
		defer cancel()
		// One that has ended already is gone as it should be.
		_ = c.do(ctx, http.MethodDelete, "/web-sessions/"+url.PathEscape(s.ID), nil, nil)
	}()
	var login clientLogin
	if err := c.do(e.ctx, http.MethodGet, "/web-sessions/"+url.PathEscape(s.ID)+"/proxy-login", nil, &login); err != nil {
		return err
	}
	if err := e.write(webCAFile, login.CA); err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(e.ctx, "tcp", listen)
	if err != nil {
		return &hinted{err: err, hint: "give another local port: --listen 0"}
	}
	at := &url.URL{Scheme: "http", User: url.UserPassword(login.Username, login.Password), Host: l.Addr().String()}
	if e.json {
		err = e.printJSON(map[string]string{"proxy": at.String(), "ca_file": e.path(webCAFile), "session": s.ID, "target": target})
	} else {
		err = e.printf("export HTTPS_PROXY=%s HTTP_PROXY=%s\nexport SSL_CERT_FILE=%s\n# or: curl --proxy \"$HTTPS_PROXY\" --cacert %s https://…\n# The session lasts until Ctrl-C here. The address holds its key: it is for you alone.\n",
			at, at, e.path(webCAFile), e.path(webCAFile))
	}
	if err != nil {
		return errors.Join(err, l.Close())
	}
	return serveClients(e, c, l, s.ID)
}

// serveClients brings each local connection to the session's proxy, until the
// session ends.
func serveClients(e *env, c *client, l net.Listener, id string) error {
	ctx, cancel := context.WithCancelCause(e.ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() { cancel(sessionEnd(ctx, c, id)) })
	places := make(chan struct{}, maxForwards)
	for {
		places <- struct{}{}
		local, err := l.Accept()
		if err != nil {
			if e.ctx.Err() != nil {
				return nil // the user's Ctrl-C
			}
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
		wg.Go(func() {
			defer func() { <-places }()
			if err := bring(ctx, c, local, id); err != nil && ctx.Err() == nil {
				fmt.Fprintf(e.Err, "caponier: %v\n", err)
			}
		})
	}
}

// sessionEnd waits until the session has ended and says why.
func sessionEnd(ctx context.Context, c *client, id string) error {
	t := time.NewTicker(2 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		var s clientSession
		err := c.do(ctx, http.MethodGet, "/web-sessions/"+url.PathEscape(id), nil, &s)
		if p, ok := errors.AsType[*problem](err); ok && p.Status < 500 && p.Status != http.StatusTooManyRequests {
			return err // signed out, or gone
		}
		if err == nil && s.State == "ended" {
			return &hinted{err: errors.New("the session has ended: " + plain(s.EndText)), hint: "run the command again for a new one"}
		}
	}
}

// bring joins a local connection with one to the session's proxy.
func bring(ctx context.Context, c *client, local net.Conn, id string) error {
	defer local.Close()
	at := "ws" + strings.TrimPrefix(c.base, "http") + "/web-sessions/" + url.PathEscape(id) + "/proxy"
	dctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ws, resp, err := websocket.Dial(dctx, at, &websocket.DialOptions{HTTPClient: c.http, Subprotocols: []string{"binary"}, CompressionMode: websocket.CompressionDisabled,
		HTTPHeader: http.Header{"Authorization": {"Bearer " + string(c.token)}}})
	if err != nil {
		if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols {
			return fmt.Errorf("core answers %d to a connection of the session", resp.StatusCode)
		}
		return fmt.Errorf("connect to core: %w", err)
	}
	defer ws.CloseNow()
	ws.SetReadLimit(1 << 20)
	remote := websocket.NetConn(ctx, ws, websocket.MessageBinary)
	stop := context.AfterFunc(ctx, func() { local.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		io.Copy(remote, local) // either side may cut; the other sees it by the close
		remote.Close()
	})
	io.Copy(local, remote)
	local.Close()
	wg.Wait()
	return nil
}
