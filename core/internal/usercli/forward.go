package usercli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"caponier/shared/daemon"
)

type forwardCmd struct {
	Account string `short:"l" help:"Account on an SSH target." placeholder:"NAME"`
	Target  string `arg:"" help:"[ACCOUNT@]TARGET[:PORT]; the port of a tcp target is its own."`
	Local   string `arg:"" optional:"" help:"[ADDRESS:]PORT to listen on here; the same port on 127.0.0.1 by default, 0 takes a free one."`
}

// maxForwards bounds the connections one forward carries at once.
const maxForwards = 256

func (f forwardCmd) Run(e *env) error {
	c, p, err := e.ready()
	if err != nil {
		return err
	}
	ref, port := f.Target, ""
	if i := strings.LastIndexByte(ref, ':'); i >= 0 {
		ref, port = ref[:i], ref[i+1:]
	}
	login, dest, port, err := f.route(e, c, p, ref, port)
	if err != nil {
		return err
	}
	listen, err := localAddress(f.Local, port)
	if err != nil {
		return err
	}
	conn, err := dialBastion(e, p, login)
	if err != nil {
		return err
	}
	defer conn.Close()
	l, err := (&net.ListenConfig{}).Listen(e.ctx, "tcp", listen)
	if err != nil {
		return &hinted{err: err, hint: "give another local port: caponier forward " + f.Target + " 0"}
	}
	if e.json {
		err = e.printJSON(map[string]string{"listening": l.Addr().String(), "destination": dest})
	} else {
		err = e.printf("%s forwards to %s through %s; stop with Ctrl-C\n", l.Addr(), f.Target, p.Bastion)
	}
	if err != nil {
		return errors.Join(err, l.Close())
	}
	return serveForward(e, conn, l, dest)
}

// route finds the login name for the bastion and the address to ask it for.
func (f forwardCmd) route(e *env, c *client, p *profile, ref, port string) (login, dest, outPort string, err error) {
	account, target := split(ref)
	if f.Account != "" {
		account = f.Account
	}
	if port != "" {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return "", "", "", &daemon.UsageError{Text: fmt.Sprintf("%q is not a port", port), Hint: "write it like db-1:5432"}
		}
	}
	entries, err := listTargets(e.ctx, c, target)
	if err != nil {
		return "", "", "", err
	}
	for _, t := range entries {
		if t.Target.Name != target || t.Target.Kind != "tcp" {
			continue
		}
		if own := strconv.Itoa(t.Target.Port); port == "" {
			port = own
		} else if port != own {
			return "", "", "", &daemon.UsageError{Text: fmt.Sprintf("%s is port %s, not %s", target, own, port), Hint: "leave the port away"}
		}
		return p.User, net.JoinHostPort(target, port), port, nil
	}
	if port == "" {
		return "", "", "", &daemon.UsageError{Text: target + " is not a tcp target, so a port is needed", Hint: "write it like " + target + ":5432"}
	}
	account, target, err = resolve(e, c, target, account)
	if err != nil {
		return "", "", "", err
	}
	return sshUser(p, account, target), net.JoinHostPort("localhost", port), port, nil
}

func localAddress(local, port string) (string, error) {
	if local == "" {
		return net.JoinHostPort("127.0.0.1", port), nil
	}
	host, p, err := net.SplitHostPort(local)
	if err != nil {
		host, p = "127.0.0.1", local
	}
	if n, err := strconv.Atoi(p); err != nil || n < 0 || n > 65535 {
		return "", &daemon.UsageError{Text: fmt.Sprintf("%q is not a local address", local), Hint: "write it like 15432 or 127.0.0.1:15432"}
	}
	return net.JoinHostPort(host, p), nil
}

// dialBastion logs in to the bastion with this login's certificate.
func dialBastion(e *env, p *profile, user string) (*ssh.Client, error) {
	key, err := os.ReadFile(e.path(keyFile))
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(key)
	if err != nil {
		return nil, err
	}
	cert := certificate(e)
	if cert == nil {
		return nil, errNotLoggedIn
	}
	if signer, err = ssh.NewCertSigner(cert, signer); err != nil {
		return nil, err
	}
	check, err := knownhosts.New(e.path(knownHosts))
	if err != nil {
		return nil, err
	}
	tcp, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(e.ctx, "tcp", p.Bastion)
	if err != nil {
		return nil, &hinted{err: err, hint: "check the network; the bastion is " + p.Bastion, code: ExitUnreachable}
	}
	if err := tcp.SetDeadline(e.now().Add(20 * time.Second)); err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	var banner strings.Builder
	conn, chans, reqs, err := ssh.NewClientConn(tcp, hostAlias, &ssh.ClientConfig{
		User: user,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: func(_ string, remote net.Addr, key ssh.PublicKey) error {
			return check(net.JoinHostPort(hostAlias, "22"), remote, key)
		},
		BannerCallback: func(message string) error {
			if banner.Len()+len(message) < 4<<10 {
				banner.WriteString(message)
			}
			return nil
		},
	})
	if err != nil {
		tcp.Close()
		if text := strings.TrimSpace(banner.String()); text != "" {
			err = fmt.Errorf("%w: %s", err, plain(text))
		}
		return nil, &hinted{err: err, hint: "caponier explain says why a target cannot be reached", code: ExitRefused}
	}
	if err := tcp.SetDeadline(time.Time{}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return ssh.NewClient(conn, chans, reqs), nil
}

// serveForward carries connections until the bastion or the user ends it.
func serveForward(e *env, conn *ssh.Client, l net.Listener, dest string) error {
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	lost := make(chan error, 1)
	go func() { lost <- conn.Wait(); cancel() }()
	stop := context.AfterFunc(ctx, func() { l.Close(); conn.Close() })
	defer stop()

	var wg sync.WaitGroup
	defer wg.Wait()
	places := make(chan struct{}, maxForwards)
	for {
		places <- struct{}{}
		local, err := l.Accept()
		if err != nil {
			if e.ctx.Err() != nil {
				return nil // the user's Ctrl-C
			}
			select {
			case err := <-lost:
				return &hinted{err: fmt.Errorf("the bastion closed the connection: %w", err), hint: "caponier explain says why a target cannot be reached"}
			default:
				return err
			}
		}
		wg.Go(func() {
			defer func() { <-places }()
			if err := carry(ctx, conn, local, dest); err != nil && ctx.Err() == nil {
				fmt.Fprintf(e.Err, "caponier: %v\n", err)
			}
		})
	}
}

// carry joins one local connection with one through the bastion, keeping
// half-closes.
func carry(ctx context.Context, conn *ssh.Client, local net.Conn, dest string) error {
	defer local.Close()
	stop := context.AfterFunc(ctx, func() { local.Close() })
	defer stop()
	remote, err := conn.DialContext(ctx, "tcp", dest)
	if err != nil {
		return fmt.Errorf("reach %s: %w", dest, err)
	}
	defer remote.Close()
	var wg sync.WaitGroup
	join := func(to, from net.Conn) {
		io.Copy(to, from) // either side may cut; the other sees it by the close below
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
	}
	wg.Go(func() { join(remote, local) })
	join(local, remote)
	wg.Wait()
	return nil
}
