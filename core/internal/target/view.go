package target

import (
	"fmt"
	"net/netip"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
)

// What the REST interface reads and shows. Secrets appear by ID only.

type siteView struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Comment   string    `json:"comment"`
	Group     string    `json:"group" doc:"access group"`
	CreatedAt time.Time `json:"created_at"`
	Version   int64     `json:"version"`
}

func viewSite(s *Site) siteView {
	return siteView{ID: s.ID, Name: s.Name, Comment: s.Comment, Group: s.Group, CreatedAt: s.CreatedAt, Version: s.Version}
}

// Settings are what an administrator may set of a target.
type Settings struct {
	Name          string   `json:"name" doc:"unique, a-z 0-9 . _ -" maxLength:"64"`
	Kind          string   `json:"kind,omitempty" enum:"ssh,tcp,network,web" default:"ssh"`
	Site          string   `json:"site,omitempty" doc:"empty: dialled by core itself; of a network target: reached by the router itself" maxLength:"63"`
	Host          string   `json:"host,omitempty" doc:"name or address as the site knows it; not for network targets, of a web target that of its start URL" maxLength:"260"`
	Port          int      `json:"port,omitempty" doc:"22 for ssh when left out" minimum:"0" maximum:"65535"`
	Comment       string   `json:"comment,omitempty" maxLength:"1000" doc:"shown to the target's users"`
	Group         string   `json:"group,omitempty" maxLength:"64" doc:"access group; when left out: of a new target its site's, else the only one of the caller's or the default one; of a changed target the one it is in"`
	Tags          []string `json:"tags,omitempty" nullable:"false" doc:"name or name=value" maxItems:"32"`
	Disabled      bool     `json:"disabled,omitempty"`
	HostKeyPolicy string   `json:"host_key_policy,omitempty" enum:"tofu,pinned,ca" doc:"ssh only; tofu when left out"`
	HostKeyCA     string   `json:"host_key_ca,omitempty" doc:"public key of the CA, with policy ca" maxLength:"16384"`
	SSHAlgorithms string   `json:"ssh_algorithms,omitempty" doc:"overrides the offered algorithms for old hosts" maxLength:"1000"`
	// Network is what a network target opens.
	Network *NetworkText `json:"network,omitempty" doc:"what a network target opens; only for kind network"`
	Web     *WebSpec     `json:"web,omitempty" doc:"only for kind web"`
}

// apply sets t to what b says; what of a network cannot be read is a problem.
func (b *Settings) apply(t *Target, p *problems) {
	kind := Kind(b.Kind)
	if kind == "" {
		kind = SSH
	}
	t.Name, t.Kind, t.Site, t.Host, t.Port, t.Comment = b.Name, kind, b.Site, b.Host, b.Port, b.Comment
	t.Tags, t.Disabled, t.Group = b.Tags, b.Disabled, b.Group
	t.HostKeyPolicy, t.HostKeyCA, t.SSHAlgorithms = HostKeyPolicy(b.HostKeyPolicy), b.HostKeyCA, b.SSHAlgorithms
	t.Network = nil
	if b.Network != nil {
		t.Network = b.Network.read(p)
	}
	t.Web = nil
	if b.Web != nil {
		t.Web = b.Web.clone()
	}
}

// NewTarget is the body that creates a target, and a line of an import.
type NewTarget struct {
	Settings
	Accounts []AccountSettings `json:"accounts,omitempty" nullable:"false" maxItems:"256"`
}

func (b *NewTarget) read() (Target, []Account, problems) {
	var p problems
	var t Target
	b.apply(&t, &p)
	accounts := make([]Account, len(b.Accounts))
	for i := range b.Accounts {
		if err := b.Accounts[i].apply(&accounts[i]); err != nil {
			p.add(fmt.Sprintf("accounts[%d].features", i), "%s", err)
		}
	}
	return t, accounts, p
}

// View is a target as shown.
type View struct {
	ID            string   `json:"id"`
	Name          string   `json:"name"`
	Kind          string   `json:"kind"`
	Site          string   `json:"site"`
	Host          string   `json:"host"`
	Port          int      `json:"port"`
	Address       string   `json:"address" doc:"site/host:port"`
	Comment       string   `json:"comment"`
	Group         string   `json:"group" doc:"access group"`
	Tags          []string `json:"tags" nullable:"false"`
	Disabled      bool     `json:"disabled"`
	HostKeyPolicy string   `json:"host_key_policy"`
	HostKeyCA     string   `json:"host_key_ca"`
	SSHAlgorithms string   `json:"ssh_algorithms"`
	// Network is there for kind network. In lists destinations are cut.
	Network           *NetworkText `json:"network,omitempty"`
	DestinationsTotal int          `json:"destinations_total,omitempty" doc:"of a network target; lists show the first 20 only"`
	// Web is there for kind web. In lists it is without its policy.
	Web       *WebSpec  `json:"web,omitempty"`
	MachineID string    `json:"machine_id"`
	Origin    string    `json:"origin"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	Version   int64     `json:"version"`
}

// NewView renders a target.
func NewView(t *Target) View {
	tags := t.Tags
	if tags == nil {
		tags = []string{}
	}
	v := View{
		ID: t.ID, Name: t.Name, Kind: string(t.Kind), Site: t.Site, Host: t.Host, Port: t.Port, Address: t.FullAddress(),
		Comment: t.Comment, Group: t.Group, Tags: tags, Disabled: t.Disabled, HostKeyPolicy: string(t.HostKeyPolicy), HostKeyCA: t.HostKeyCA,
		SSHAlgorithms: t.SSHAlgorithms, MachineID: t.MachineID, Origin: t.Origin,
		CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt, Version: t.Version,
	}
	if t.Network != nil {
		v.Network, v.DestinationsTotal = ViewNetwork(t.Network), len(t.Network.Destinations)
	}
	v.Web = t.Web
	return v
}

// shownDestinations bounds the destinations of one target in a list.
const shownDestinations = 20

// briefView is NewView for lists.
func briefView(t *Target) View {
	short := *t
	short.Network = t.Network.Brief()
	short.Web = t.Web.brief()
	v := NewView(&short)
	if t.Network != nil {
		v.DestinationsTotal = len(t.Network.Destinations)
	}
	return v
}

// AccountSettings are what an administrator may set of an account.
type AccountSettings struct {
	Name     string   `json:"name" doc:"login on the target" maxLength:"64"`
	Auth     string   `json:"auth,omitempty" enum:"certificate,password,key,ask" doc:"certificate when left out; of web targets password with a secret, else ask"`
	Secret   string   `json:"secret,omitempty" doc:"ID of the stored password or key" maxLength:"64"`
	Features []string `json:"features,omitempty" nullable:"false" doc:"uses the account permits at all; all when left out"`
	Disabled bool     `json:"disabled,omitempty"`
}

func (b *AccountSettings) apply(a *Account) error {
	f, err := access.ParseFeatures(b.Features)
	if len(b.Features) == 1 && b.Features[0] == "all" {
		f = 0 // what the kind knows
	}
	a.Name, a.Auth, a.SecretID, a.Features, a.Disabled = b.Name, Auth(b.Auth), b.Secret, f, b.Disabled
	return err
}

type accountView struct {
	ID       string   `json:"id"`
	TargetID string   `json:"target_id"`
	Name     string   `json:"name"`
	Auth     string   `json:"auth"`
	Secret   string   `json:"secret,omitempty" doc:"ID of the stored password or key; never its value"`
	Features []string `json:"features" nullable:"false"`
	Disabled bool     `json:"disabled"`
	Version  int64    `json:"version"`
}

func viewAccount(a *Account) accountView {
	return accountView{ID: a.ID, TargetID: a.TargetID, Name: a.Name, Auth: string(a.Auth), Secret: a.SecretID,
		Features: a.Features.Names(), Disabled: a.Disabled, Version: a.Version}
}

type hostKeyView struct {
	Algorithm   string    `json:"algorithm"`
	Fingerprint string    `json:"fingerprint"`
	Key         string    `json:"key"`
	State       string    `json:"state" enum:"accepted,pending,rejected"`
	SeenAt      time.Time `json:"seen_at"`
	DecidedBy   string    `json:"decided_by"`
}

func viewHostKey(k *HostKey) hostKeyView {
	return hostKeyView{Algorithm: k.Algorithm, Fingerprint: k.Fingerprint, Key: k.Key, State: string(k.State), SeenAt: k.SeenAt, DecidedBy: k.DecidedBy}
}

// windowView is a time window with hours a person can read.
type windowView struct {
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Days      []string  `json:"days,omitempty" nullable:"false" maxItems:"7" doc:"mon, tue, …; all when left out. Hours over midnight belong to the day they begin on"`
	From      string    `json:"from,omitempty" doc:"local time, 08:30"`
	To        string    `json:"to,omitempty" doc:"local time, exclusive, 17:00; before from: over midnight"`
	Zone      string    `json:"zone,omitempty" doc:"IANA time zone; UTC when left out" maxLength:"64"`
}

var dayNames = [...]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func (v *windowView) read(p *problems) access.Window {
	w := access.Window{NotBefore: v.NotBefore, NotAfter: v.NotAfter, Zone: v.Zone}
	for i, name := range v.Days {
		found := false
		for d, n := range dayNames {
			if n == name {
				w.Days, found = append(w.Days, time.Weekday(d)), true
			}
		}
		if !found {
			p.add(fmt.Sprintf("window.days[%d]", i), "must be mon, tue, wed, thu, fri, sat or sun")
		}
	}
	w.From = readClock(v.From, "window.from", p)
	w.To = readClock(v.To, "window.to", p)
	return w
}

func readClock(s, field string, p *problems) int {
	if s == "" || s == "00:00" {
		return 0
	}
	if s == "24:00" {
		return 24 * 60
	}
	t, err := time.Parse("15:04", s)
	if err != nil {
		p.add(field, "must be a time of day such as 08:30")
		return 0
	}
	return t.Hour()*60 + t.Minute()
}

func viewWindow(w *access.Window) windowView {
	v := windowView{NotBefore: w.NotBefore, NotAfter: w.NotAfter, Zone: w.Zone}
	for _, d := range w.Days {
		v.Days = append(v.Days, dayNames[d])
	}
	if w.From != 0 || w.To != 0 {
		v.From, v.To = clock(w.From), clock(w.To)
	}
	return v
}

func clock(minute int) string { return fmt.Sprintf("%02d:%02d", minute/60, minute%60) }

// GrantSettings are what an administrator may set of a grant.
type GrantSettings struct {
	Role          string     `json:"role" doc:"role ID" maxLength:"64"`
	Target        string     `json:"target,omitempty" doc:"target ID or name; or give a tag" maxLength:"64"`
	Tag           string     `json:"tag,omitempty" doc:"every target with this tag in the access group of the role" maxLength:"200"`
	Accounts      []string   `json:"accounts,omitempty" nullable:"false" maxItems:"256" doc:"account names; * means every account; may be empty for targets without accounts"`
	Features      []string   `json:"features" nullable:"false" doc:"shell, exec, file_transfer, forward, remote_forward, x11, agent_forward, web, network, or all"`
	Window        windowView `json:"window,omitzero"`
	Sources       []string   `json:"sources,omitempty" nullable:"false" maxItems:"64" doc:"networks the user must come from; anywhere when empty"`
	RequireMFA    bool       `json:"require_mfa,omitempty"`
	RequireReason bool       `json:"require_reason,omitempty"`
	NoRecording   bool       `json:"no_recording,omitempty" doc:"permit unrecorded sessions"`
	MaxDuration   int64      `json:"max_duration_seconds,omitempty" minimum:"0" maximum:"31536000" doc:"0: no limit"`
	Idle          int64      `json:"idle_seconds,omitempty" minimum:"0" maximum:"31536000" doc:"0: no limit"`
	Disabled      bool       `json:"disabled,omitempty"`
	Comment       string     `json:"comment,omitempty" maxLength:"1000"`
}

// read turns the body into a grant.
func (b *GrantSettings) read() (Grant, error) {
	var p problems
	features, err := access.ParseFeatures(b.Features)
	if err != nil {
		p.add("features", "%s", err)
	}
	g := Grant{Comment: b.Comment, Grant: access.Grant{
		Role: b.Role, Target: b.Target, Tag: b.Tag, Accounts: b.Accounts, Features: features, Window: b.Window.read(&p),
		RequireMFA: b.RequireMFA, RequireReason: b.RequireReason, NoRecording: b.NoRecording, Disabled: b.Disabled,
		MaxDuration: time.Duration(b.MaxDuration) * time.Second, Idle: time.Duration(b.Idle) * time.Second,
	}}
	for i, s := range b.Sources {
		n, err := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); err != nil && aerr == nil && a.Zone() == "" {
			n, err = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
		}
		if err != nil {
			p.add(fmt.Sprintf("sources[%d]", i), "%.64q is not a network such as 10.0.0.0/8", s)
			continue
		}
		g.Sources = append(g.Sources, n.Masked())
	}
	return g, p.err()
}

type grantView struct {
	ID string `json:"id"`
	GrantSettings
	Group     string    `json:"group" doc:"access group it is in: that of its target, or of its role when it names a tag"`
	CreatedAt time.Time `json:"created_at"`
	Version   int64     `json:"version"`
}

func viewGrant(g *Grant) grantView {
	v := grantView{ID: g.ID, Group: g.AccessGroup(), CreatedAt: g.CreatedAt, Version: g.Version, GrantSettings: GrantSettings{
		Role: g.Role, Target: g.Target, Tag: g.Tag, Accounts: g.Accounts, Features: g.Features.Names(), Window: viewWindow(&g.Window),
		RequireMFA: g.RequireMFA, RequireReason: g.RequireReason, NoRecording: g.NoRecording, Disabled: g.Disabled, Comment: g.Comment,
		MaxDuration: int64(g.MaxDuration / time.Second), Idle: int64(g.Idle / time.Second),
	}}
	for _, n := range g.Sources {
		v.Sources = append(v.Sources, n.String())
	}
	return v
}

// matching is the If-Match check of the frame as a Match.
func matching(ifMatch string) Match {
	return func(version int64) error { return api.CheckMatch(ifMatch, version) }
}
