package target

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
)

// Limits.
const (
	maxComment  = 1000 // bytes
	maxTags     = 32
	maxAccounts = 256 // per target
	maxSources  = 64
)

var (
	siteName   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	targetName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	tagForm    = regexp.MustCompile(`^[a-z0-9][a-z0-9._/-]{0,62}(=[A-Za-z0-9._/:@-]{1,128})?$`)
	// An account name goes into "user%account%target" and into a grant's list.
	accountName = regexp.MustCompile(`^[A-Za-z0-9_.][A-Za-z0-9._@\\$+-]{0,63}$`)
	hostLabel   = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)
	digits      = regexp.MustCompile(`^[0-9]+$`)
)

// idPrefix starts every target ID and no target name.
const idPrefix = "tgt_"

// problems gathers what is wrong with a request.
type problems []api.FieldError

func (p *problems) add(field, format string, args ...any) {
	*p = append(*p, api.FieldError{Field: field, Message: fmt.Sprintf(format, args...)})
}

// err is nil when there are no problems.
func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return api.Invalid(p...)
}

// NormalHost returns the form in which a host is stored and compared: an
// address in its canonical form, a name in lower case without a final dot.
func NormalHost(host string) (string, error) {
	h := strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if a, err := netip.ParseAddr(h); err == nil {
		a = a.Unmap()
		switch {
		case a.Zone() != "":
			return "", fmt.Errorf("an address with a zone (%%) has no meaning on another machine")
		case a.IsUnspecified() || a.IsMulticast():
			return "", fmt.Errorf("%s is not the address of a host", a)
		}
		return a.String(), nil
	}
	h = strings.ToLower(strings.TrimSuffix(host, "."))
	if h == "" {
		return "", fmt.Errorf("a host name or an IP address is needed")
	}
	if len(h) > 253 {
		return "", fmt.Errorf("a host name has at most 253 characters")
	}
	labels := strings.Split(h, ".")
	for _, l := range labels {
		if !hostLabel.MatchString(l) {
			return "", fmt.Errorf("%.64q is neither an IP address nor a host name", host)
		}
	}
	if digits.MatchString(labels[len(labels)-1]) {
		return "", fmt.Errorf("%.64q is neither an IP address nor a host name", host)
	}
	return h, nil
}

func (s *Site) validate(p *problems) {
	if !siteName.MatchString(s.Name) {
		p.add("name", "a site name has 1 to 63 of a-z 0-9 - and does not begin or end with -")
	}
	checkComment(p, s.Comment)
}

func checkComment(p *problems, c string) {
	if len(c) > maxComment {
		p.add("comment", "at most %d bytes", maxComment)
	}
}

// validate checks and normalises; it fills defaults.
func (t *Target) validate(p *problems) {
	switch {
	case !targetName.MatchString(t.Name):
		p.add("name", "a target name has 1 to 64 of a-z 0-9 . _ - and begins with a letter or digit")
	case strings.HasPrefix(t.Name, idPrefix):
		p.add("name", "names do not begin with %s: that is how IDs begin", idPrefix)
	}
	if t.Kind != SSH && t.Kind != TCP && t.Kind != Network && t.Kind != Web {
		p.add("kind", "must be ssh, tcp, network or web")
	}
	if t.Site != "" && !siteName.MatchString(t.Site) {
		p.add("site", "is not a site name")
	}
	if t.Network != nil && t.Kind != Network {
		p.add("network", "only targets of kind network have destinations")
	}
	if t.Web != nil && t.Kind != Web {
		p.add("web", "only targets of kind web have a start URL")
	}
	switch t.Kind {
	case Network:
		t.validateNetwork(p)
	case Web:
		t.validateWeb(p)
	default:
		t.validateHost(p)
	}
	checkComment(p, t.Comment)
	t.Tags = slices.Compact(slices.Sorted(slices.Values(t.Tags)))
	if len(t.Tags) > maxTags {
		p.add("tags", "at most %d tags", maxTags)
	}
	for i, tag := range t.Tags {
		if !tagForm.MatchString(tag) {
			p.add(fmt.Sprintf("tags[%d]", i), "%.64q is not a tag: write name or name=value, name in lower case", tag)
		}
	}
	t.validateSSH(p)
}

// validateHost checks what ssh and tcp targets have: one host and port.
func (t *Target) validateHost(p *problems) {
	if h, err := NormalHost(t.Host); err != nil {
		p.add("host", "%s", err)
	} else {
		t.Host = h
	}
	if t.Port == 0 && t.Kind == SSH {
		t.Port = 22
	}
	if t.Port < 1 || t.Port > 65535 {
		p.add("port", "must be 1 to 65535")
	}
}

func (t *Target) validateSSH(p *problems) {
	if t.Kind != SSH {
		if t.HostKeyPolicy != "" || t.HostKeyCA != "" || t.SSHAlgorithms != "" {
			p.add("host_key_policy", "only SSH targets have host keys and algorithms")
		}
		return
	}
	if t.HostKeyPolicy == "" {
		t.HostKeyPolicy = HostKeyTOFU
	}
	switch t.HostKeyPolicy {
	case HostKeyTOFU, HostKeyPinned:
		if t.HostKeyCA != "" {
			p.add("host_key_ca", "only with host_key_policy ca")
		}
	case HostKeyCA:
		key, _, err := parseKey(t.HostKeyCA)
		if err != nil {
			p.add("host_key_ca", "must be one public key of the CA in authorized_keys form")
		} else {
			t.HostKeyCA = key
		}
	default:
		p.add("host_key_policy", "must be tofu, pinned or ca")
	}
	if len(t.SSHAlgorithms) > 1000 {
		p.add("ssh_algorithms", "at most 1000 bytes")
	}
}

// parseKey reads one authorized_keys line without options and returns it
// normalised, without comment.
func parseKey(line string) (string, ssh.PublicKey, error) {
	if len(line) > 16<<10 {
		return "", nil, fmt.Errorf("a public key has at most 16 KiB")
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(options) != 0 || len(rest) != 0 {
		return "", nil, fmt.Errorf("not one public key in authorized_keys form (algorithm, base64)")
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), key, nil
}

// HasAccounts reports whether targets of the kind have logins.
func (k Kind) HasAccounts() bool { return k == SSH || k == Web }

// Features are the uses that make sense for the kind.
func (k Kind) Features() access.Features {
	switch k {
	case SSH:
		return access.Shell | access.Exec | access.FileTransfer | access.Forward | access.RemoteForward | access.X11 | access.AgentForward
	case TCP:
		return access.Forward
	case Web:
		return access.Web | access.FileTransfer
	case Network:
		return access.Network
	default:
		return 0
	}
}

func (a *Account) validate(p *problems, field string) {
	if !accountName.MatchString(a.Name) {
		p.add(field+"name", "an account name has 1 to 64 letters, digits or . _ @ \\ $ + -")
	}
	if a.Auth == "" {
		a.Auth = AuthCertificate
	}
	switch a.Auth {
	case AuthCertificate, AuthAsk:
		if a.SecretID != "" {
			p.add(field+"secret", "auth %s takes no stored secret", a.Auth)
		}
	case AuthPassword, AuthKey:
		if a.SecretID == "" {
			p.add(field+"secret", "auth %s needs the ID of a stored secret", a.Auth)
		}
	default:
		p.add(field+"auth", "must be certificate, password, key or ask")
	}
	if a.Features&^access.AllFeatures != 0 {
		p.add(field+"features", "unknown feature")
	}
}

func (g *Grant) validate(p *problems) {
	if g.Role == "" {
		p.add("role", "the ID of a role is needed")
	}
	if (g.Target == "") == (g.Tag == "") {
		p.add("target", "name either a target or a tag")
	}
	if g.Tag != "" && !tagForm.MatchString(g.Tag) {
		p.add("tag", "is not a tag: write name or name=value")
	}
	if len(g.Accounts) > maxAccounts {
		p.add("accounts", "at most %d accounts", maxAccounts)
	}
	for i, a := range g.Accounts {
		if a != "*" && !accountName.MatchString(a) {
			p.add(fmt.Sprintf("accounts[%d]", i), "%.64q is not an account name; * means every account", a)
		}
	}
	if g.Features == 0 || g.Features&^access.AllFeatures != 0 {
		p.add("features", "at least one of %s", access.AllFeatures)
	}
	if err := g.Window.Validate(); err != nil {
		p.add("window", "%s", err)
	}
	if g.Window.Floating != 0 {
		p.add("window.floating", "only a role membership can start at its first use")
	}
	if len(g.Sources) > maxSources {
		p.add("sources", "at most %d networks", maxSources)
	}
	for i, n := range g.Sources {
		if !n.IsValid() {
			p.add(fmt.Sprintf("sources[%d]", i), "is not a network such as 10.0.0.0/8")
		}
	}
	if g.MaxDuration < 0 || g.Idle < 0 {
		p.add("max_duration", "limits must not be negative")
	}
	checkComment(p, g.Comment)
}

// toJSON renders what cannot fail to render.
func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain strings, numbers and times only
	}
	return string(b)
}
