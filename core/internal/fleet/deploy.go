package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/shared/control"
	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// The script that hosts run. It is POSIX sh, idempotent and can be undone.
//
//go:embed deploy.sh.tmpl
var deployText string

var deployScript = template.Must(template.New("deploy.sh").Option("missingkey=error").Parse(deployText))

// What goes into the script or comes out of it is held to these: nothing in
// them means anything to a shell.
var (
	pinPattern     = regexp.MustCompile(`^sha256//[A-Za-z0-9+/]{43}=$`)
	baseURLPattern = regexp.MustCompile(`^https://(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9.-]{1,253})(:[0-9]{1,5})?$`)
	machinePattern = regexp.MustCompile(`^[0-9a-f]{32,64}$`)
	accountPattern = regexp.MustCompile(`^[a-z_][a-z0-9_.-]{0,31}$`)
)

// headerBase is how an extender tells under which URL a host reached it, and
// headerHost from where.
const (
	headerBase = "Caponier-Base"
	headerHost = "Caponier-Host-Address"
)

// deployKeys are the keys that hosts of the node's site are to trust: those of
// the site's access group.
func (f *Fleet) deployKeys(ctx context.Context, n *node) (string, error) {
	group, err := siteGroup(ctx, f.c.DB, n.row.Load().Site)
	if err != nil {
		return "", err
	}
	return f.c.UserCA.PublicKey(ctx, group)
}

func (f *Fleet) serveDeployCA(w http.ResponseWriter, r *http.Request, n *node) {
	key, err := f.deployKeys(r.Context(), n)
	if err != nil {
		f.log.Error("deployment: ca key", telemetry.KeyErr, err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, strings.TrimSpace(key))
}

func (f *Fleet) serveDeployScript(w http.ResponseWriter, r *http.Request, n *node) {
	base := r.Header.Get(headerBase)
	d := n.hello.Deploy
	if d == nil || !baseURLPattern.MatchString(base) {
		http.Error(w, "ask the extender's deployment listener by https://host:port", http.StatusBadRequest)
		return
	}
	key, err := f.deployKeys(r.Context(), n)
	if err == nil {
		key, err = onlyKeys(key)
	}
	var out bytes.Buffer
	if err == nil {
		err = deployScript.Execute(&out, map[string]string{
			"Base": base, "Pin": d.Pin, "CA": key,
			"Register": wire.PathDeployRegister, "Site": n.row.Load().Site,
		})
	}
	if err != nil {
		f.log.Error("deployment: script", telemetry.KeyErr, err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/x-shellscript; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(out.Bytes())
}

// onlyKeys writes the lines of public keys anew: nothing else may reach the script.
func onlyKeys(text string) (string, error) {
	var lines []string
	for rest := []byte(strings.TrimSpace(text)); len(rest) > 0; {
		pub, _, _, next, err := ssh.ParseAuthorizedKey(rest)
		if err != nil {
			return "", fmt.Errorf("read ca keys: %w", err)
		}
		lines = append(lines, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub))))
		rest = bytes.TrimSpace(next)
	}
	return strings.Join(lines, "\n"), nil
}

// registration is what the script sends.
type registration struct {
	Token     string   `json:"token"`
	MachineID string   `json:"machine_id"`
	Name      string   `json:"name"`
	Address   string   `json:"address"` // empty: as the extender sees it
	Port      int      `json:"port"`
	HostKeys  []string `json:"host_keys"`
	Accounts  []string `json:"accounts"`
}

// registered answers it.
type registered struct {
	TargetID string `json:"target_id"`
	Changed  bool   `json:"changed"`
}

func (f *Fleet) serveDeployRegister(w http.ResponseWriter, r *http.Request, n *node) {
	var reg registration
	if !control.Read(w, r, &reg) {
		return
	}
	e := n.row.Load()
	host, err := reg.host(e.Site, r.Header.Get(headerHost))
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	out, err := f.registerHost(r, n, reg.Token, host)
	if err == nil {
		f.log.Info("host registered", "host", host.Name, "site", host.Site, "changed", out.Changed, telemetry.KeyNode, e.Name)
		control.Reply(w, out)
		return
	}
	if ref, ok := errors.AsType[*tokenRefusal](err); ok {
		f.log.Warn("host registration refused", telemetry.KeyNode, e.Name, "reason", ref.reason)
		if ref.known {
			f.events.put(note{event: &audit.Event{Type: audit.EdgeHostRefused, Outcome: audit.Denied,
				Actor:  audit.Actor{Kind: "anonymous", Name: host.Name, Source: host.Address, Via: "tunnel"},
				Object: audit.Object{Kind: "host", ID: host.MachineID, Name: host.Name},
				Fields: map[string]string{"reason": ref.reason, "extender": n.id}}})
		}
		http.Error(w, ref.wire.Public, http.StatusForbidden)
		return
	}
	f.log.Error("register host", telemetry.KeyNode, e.Name, telemetry.KeyErr, err)
	http.Error(w, "internal error", http.StatusInternalServerError)
}

// registerHost spends a use of the token on a host not seen before and hands
// the host to the registrar; a known host with the same data changes nothing.
func (f *Fleet) registerHost(r *http.Request, n *node, tokenText string, h Host) (registered, error) {
	ctx := r.Context()
	tok, err := wire.ParseToken(tokenText)
	if err != nil {
		return registered{}, refuseToken("malformed", false, wire.ErrToken.Error())
	}
	digest := h.digest()
	var out registered
	err = f.c.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := tx.Lock(ctx, "edge-host "+h.Site+" "+h.MachineID); err != nil {
			return err
		}
		t, err := checkToken(ctx, tx, tok.ID, tok.Secret, KindHost, f.now())
		if err != nil {
			return err
		}
		if t.Site != h.Site {
			return refuseToken("wrong_site", true, fmt.Sprintf("this token is for site %s, the extender is in %s", t.Site, h.Site))
		}
		h.Token = t.ID
		var known, knownDigest string
		err = tx.QueryRowContext(ctx, qGetHost, h.Site, h.MachineID).Scan(&known, &knownDigest)
		first := errors.Is(db.Classify(err), db.ErrNotFound)
		if err != nil && !first {
			return fmt.Errorf("read host: %w", err)
		}
		if first {
			ok, err := useToken(ctx, tx, t.ID, f.now())
			if err != nil {
				return fmt.Errorf("use token: %w", err)
			}
			if !ok {
				return refuseToken("used_up", true, fmt.Sprintf("this token was used %d of %d times; ask for a new one", t.Uses, t.MaxUses))
			}
		}
		id, changed, err := f.c.Hosts.RegisterHost(ctx, tx, h)
		if err != nil {
			return fmt.Errorf("register host: %w", err)
		}
		out = registered{TargetID: id, Changed: first || changed}
		if !out.Changed && id == known && digest == knownDigest {
			return nil
		}
		if _, err := tx.ExecContext(ctx, qUpsertHost, h.Site, h.MachineID, id, t.ID, digest, micros(f.now())); err != nil {
			return fmt.Errorf("store host: %w", db.Classify(err))
		}
		group, err := siteGroup(ctx, tx, h.Site)
		if err != nil {
			return err
		}
		return f.c.Audit.Append(ctx, tx, audit.Event{Type: audit.TargetHostJoin, Outcome: audit.OK, Group: group,
			Actor:  audit.Actor{Kind: "host", ID: h.MachineID, Name: h.Name, Source: h.Address, Via: "tunnel"},
			Object: audit.Object{Kind: "target", ID: id, Name: h.Name},
			Fields: map[string]string{"token": t.ID, "site": h.Site, "extender": n.id, "accounts": strings.Join(h.Accounts, ","), "first": fmt.Sprint(first)}})
	})
	return out, err
}

// host checks a registration. seen is the address the extender saw.
func (g registration) host(site, seen string) (Host, error) {
	h := Host{Site: site, Name: nodeName(g.Name), Address: g.Address, Port: g.Port, MachineID: g.MachineID}
	if h.Address == "" {
		h.Address = seen
	}
	if h.Port == 0 {
		h.Port = 22
	}
	if a, err := netip.ParseAddr(h.Address); err != nil || a.Zone() != "" {
		return h, errors.New("address: must be an IP address")
	}
	if !machinePattern.MatchString(h.MachineID) {
		return h, errors.New("machine_id: must be 32 to 64 hexadecimal digits")
	}
	if h.Port < 1 || h.Port > 65535 {
		return h, errors.New("port: must be 1 to 65535")
	}
	if len(g.HostKeys) == 0 || len(g.HostKeys) > 16 {
		return h, errors.New("host_keys: must be 1 to 16 public keys")
	}
	for _, k := range g.HostKeys {
		pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(limit(k, 4096)))
		if err != nil {
			return h, errors.New("host_keys: must be public keys as in /etc/ssh/ssh_host_*_key.pub")
		}
		h.HostKeys = append(h.HostKeys, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub))))
	}
	if len(g.Accounts) == 0 || len(g.Accounts) > 64 {
		return h, errors.New("accounts: must be 1 to 64 login names")
	}
	for _, a := range g.Accounts {
		if !accountPattern.MatchString(a) {
			return h, errors.New("accounts: must be login names")
		}
		h.Accounts = append(h.Accounts, a)
	}
	slices.Sort(h.HostKeys)
	slices.Sort(h.Accounts)
	h.HostKeys, h.Accounts = slices.Compact(h.HostKeys), slices.Compact(h.Accounts)
	return h, nil
}

// digest tells whether a host said the same before. The token is not part of it.
func (h Host) digest() string {
	h.Token = ""
	b, err := json.Marshal(h)
	if err != nil { // strings and numbers: cannot fail
		panic(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
