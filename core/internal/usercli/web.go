package usercli

import (
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/term"

	"caponier/shared/daemon"
)

// webCmd leads to the console's viewer, which opens the session: the picture
// is the console's to show, and the session belongs to the login there.
type webCmd struct {
	Account string `short:"l" help:"Account on the target." placeholder:"NAME"`
	Print   bool   `help:"Print the address and open no browser."`
	Proxy   bool   `help:"Open no browser but a proxy here, for curl and other programs; the target must permit them."`
	Listen  string `help:"[ADDRESS:]PORT of the proxy; a free port of 127.0.0.1 by default." placeholder:"PORT"`
	Reason  string `help:"Why, where the target asks for it; with --proxy." placeholder:"TEXT"`
	Target  string `arg:"" help:"[ACCOUNT@]TARGET."`
}

func (w webCmd) Run(e *env) error {
	c, p, err := e.session()
	if err != nil {
		return err
	}
	target, account, err := webTarget(e, c, w.Target, w.Account)
	if err != nil {
		return err
	}
	if w.Proxy {
		return w.proxy(e, c, target, account)
	}
	at := viewerURL(p.URL, target, account)
	if e.json {
		return e.printJSON(map[string]string{"url": at, "target": target, "account": account})
	}
	if err := e.printf("%s\n", at); err != nil || w.Print || !term.IsTerminal(int(e.In.Fd())) {
		return err
	}
	if open := opener(e); open != nil {
		// The address is printed: where no browser starts, it can be copied.
		cmd := exec.CommandContext(e.ctx, open[0], append(open[1:], at)...)
		cmd.Stdout, cmd.Stderr = nil, nil
		if cmd.Run() != nil {
			return e.printf("no browser could be started: open the address yourself\n")
		}
	}
	return nil
}

// viewerURL is the page of the console that opens a web target.
func viewerURL(base, target, account string) string {
	q := url.Values{"target": {target}}
	if account != "" {
		q.Set("account", account)
	}
	return strings.TrimRight(base, "/") + "/web?" + q.Encode()
}

// opener is the program that shows an address in the user's browser.
func opener(e *env) []string {
	if b := e.getenv("BROWSER"); b != "" {
		return []string{b}
	}
	switch runtime.GOOS {
	case "darwin":
		return []string{"open"}
	case "windows":
		return []string{"rundll32", "url.dll,FileProtocolHandler"}
	}
	if e.getenv("DISPLAY") == "" && e.getenv("WAYLAND_DISPLAY") == "" {
		return nil
	}
	return []string{"xdg-open"}
}

// webTarget finds the web target that is meant, and its account where there
// is a choice.
func webTarget(e *env, c *client, ref, account string) (string, string, error) {
	at, name := split(ref)
	if account == "" {
		account = at
	}
	entries, err := listTargets(e.ctx, c, name)
	if err != nil {
		return "", "", err
	}
	entries = slices.DeleteFunc(entries, func(t entry) bool { return t.Target.Name != name && t.Target.ID != name })
	switch {
	case len(entries) == 0:
		return "", "", &hinted{err: fmt.Errorf("you may not reach %q now, or there is no such target", plain(name)), hint: "caponier targets lists what you may reach; caponier explain says why not", code: ExitRefused}
	case entries[0].Target.Kind != "web":
		return "", "", &daemon.UsageError{Text: plain(name) + " is no web target", Hint: "caponier targets shows what kind it is"}
	}
	var accounts []string
	for _, t := range entries {
		accounts = append(accounts, t.Account)
	}
	switch {
	case account == "" && len(accounts) == 1:
		account = accounts[0]
	case account == "":
		return "", "", &daemon.UsageError{Text: "say which account of " + plain(name) + ": " + strings.Join(accounts, ", "), Hint: "caponier web " + accounts[0] + "@" + name}
	case !slices.Contains(accounts, account):
		return "", "", &hinted{err: errors.New("you may not use the account " + plain(account) + " on " + plain(name)), hint: "caponier targets lists what you may reach", code: ExitRefused}
	}
	return entries[0].Target.Name, account, nil
}
