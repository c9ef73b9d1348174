package user

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/shared/config"
)

// UserView is a user as the API shows him.
type UserView struct {
	ID                  string    `json:"id" example:"usr_lkqk2m5x3v7a"`
	Kind                string    `json:"kind" enum:"person,client"`
	Name                string    `json:"name"`
	DisplayName         string    `json:"display_name,omitempty"`
	Email               string    `json:"email,omitempty"`
	Disabled            bool      `json:"disabled"`
	Locked              bool      `json:"locked"`
	TOTP                bool      `json:"totp" doc:"A second factor is enrolled."`
	HasPassword         bool      `json:"has_password"`
	Passkeys            int       `json:"passkeys" doc:"Passkeys and security keys enrolled; with one, a password needs a second factor."`
	CreatedAt           time.Time `json:"created_at"`
	LastLogin           time.Time `json:"last_login,omitzero"`
	ErasedAt            time.Time `json:"erased_at,omitzero"`
	PasswordPausedUntil time.Time `json:"password_paused_until,omitzero" doc:"Password logins wait until then, after too many failures."`
	Version             int64     `json:"version"`
}

// Show is a user as the API shows him.
func Show(u User) UserView { return showUser(u) }

func showUser(u User) UserView {
	return UserView{ID: u.ID, Kind: string(u.Kind), Name: u.Name, DisplayName: u.DisplayName, Email: u.Email,
		Disabled: u.Disabled, Locked: u.Locked, TOTP: u.TOTP, HasPassword: u.Password, Passkeys: u.Passkeys, CreatedAt: u.CreatedAt,
		LastLogin: u.LastLogin, ErasedAt: u.ErasedAt, PasswordPausedUntil: u.PasswordLockedUntil, Version: u.Version}
}

// RoleView is a role as the API shows it.
type RoleView struct {
	ID          string           `json:"id"`
	Name        string           `json:"name"`
	Comment     string           `json:"comment,omitempty"`
	Permissions []api.Permission `json:"permissions"`
	Group       string           `json:"group" doc:"Access group the role belongs to."`
	LimitedTo   []string         `json:"limited_to,omitempty" doc:"Access groups the permissions hold in; everywhere when absent."`
	Builtin     bool             `json:"builtin"`
	Version     int64            `json:"version"`
}

func showRole(r Role) RoleView {
	v := RoleView(r)
	if v.Permissions == nil {
		v.Permissions = []api.Permission{}
	}
	return v
}

// WindowView is a time window as the API shows it.
type WindowView struct {
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Days      []string  `json:"days,omitempty" nullable:"false" maxItems:"7" doc:"mon, tue, …; all when left out. Hours over midnight belong to the day they begin on."`
	From      string    `json:"from,omitempty" example:"08:30" doc:"Local time in zone; from and to the same = all day."`
	To        string    `json:"to,omitempty" example:"17:00" doc:"May be before from: over midnight."`
	Zone      string    `json:"zone,omitempty" example:"Europe/Berlin" doc:"IANA name; empty = UTC."`
	Floating  string    `json:"floating,omitempty" example:"8h" doc:"Holds for this long from the first use on."`
}

// dayNames are the weekdays as the API writes them, from Sunday as in time.Weekday.
var dayNames = [...]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func showWindow(w access.Window) *WindowView {
	if w.IsZero() {
		return nil
	}
	v := &WindowView{NotBefore: w.NotBefore, NotAfter: w.NotAfter, Zone: w.Zone}
	for _, d := range w.Days {
		v.Days = append(v.Days, dayNames[d])
	}
	if w.From != 0 || w.To != 0 {
		v.From, v.To = clockText(w.From), clockText(w.To)
	}
	if w.Floating != 0 {
		v.Floating = config.Duration(w.Floating).String()
	}
	return v
}

func clockText(minute int) string { return fmt.Sprintf("%02d:%02d", minute/60, minute%60) }

func parseClock(text string) (int, bool) {
	if text == "" {
		return 0, true
	}
	var h, m int
	if n, err := fmt.Sscanf(text, "%2d:%2d", &h, &m); n != 2 || err != nil || clockText(h*60+m) != text || m < 0 || m > 59 || h < 0 || h*60+m > 24*60 {
		return 0, false
	}
	return h*60 + m, true
}

// window reads a window; nil is one without limits.
func (v *WindowView) window() (access.Window, []api.FieldError) {
	if v == nil {
		return access.Window{}, nil
	}
	w := access.Window{Zone: v.Zone}
	var bad []api.FieldError
	if !v.NotBefore.IsZero() {
		w.NotBefore = v.NotBefore.UTC()
	}
	if !v.NotAfter.IsZero() {
		w.NotAfter = v.NotAfter.UTC()
	}
	for i, name := range v.Days {
		d := slices.Index(dayNames[:], name)
		if d < 0 {
			bad = append(bad, api.FieldError{Field: fmt.Sprintf("body.window.days[%d]", i), Message: "must be mon, tue, wed, thu, fri, sat or sun"})
		}
		w.Days = append(w.Days, time.Weekday(d))
	}
	var ok bool
	if w.From, ok = parseClock(v.From); !ok {
		bad = append(bad, api.FieldError{Field: "body.window.from", Message: `must be a time such as "08:30"`})
	}
	if w.To, ok = parseClock(v.To); !ok {
		bad = append(bad, api.FieldError{Field: "body.window.to", Message: `must be a time such as "17:00"`})
	}
	if v.Floating != "" {
		var d config.Duration
		if err := d.UnmarshalText([]byte(v.Floating)); err != nil {
			bad = append(bad, api.FieldError{Field: "body.window.floating", Message: err.Error()})
		}
		w.Floating = d.Std()
	}
	return w, bad
}

// MemberView is a membership as the API shows it.
type MemberView struct {
	RoleID    string      `json:"role_id"`
	RoleName  string      `json:"role_name"`
	UserID    string      `json:"user_id"`
	UserName  string      `json:"user_name"`
	UserKind  string      `json:"user_kind" enum:"person,client"`
	Window    *WindowView `json:"window,omitempty"`
	Sources   []string    `json:"sources,omitempty" doc:"Networks the user must come from; none = anywhere."`
	FirstUse  time.Time   `json:"first_use,omitzero" doc:"When a floating window began."`
	CreatedAt time.Time   `json:"created_at"`
	CreatedBy string      `json:"created_by,omitempty"`
	Version   int64       `json:"version"`
}

func showMember(m Member) MemberView {
	v := MemberView{RoleID: m.RoleID, RoleName: m.RoleName, UserID: m.UserID, UserName: m.UserName, UserKind: string(m.UserKind),
		Window: showWindow(m.Window), FirstUse: m.FirstUse, CreatedAt: m.CreatedAt, CreatedBy: m.CreatedBy, Version: m.Version}
	for _, p := range m.Sources {
		v.Sources = append(v.Sources, p.String())
	}
	return v
}

func parseSources(texts []string) ([]netip.Prefix, []api.FieldError) {
	var list []netip.Prefix
	var bad []api.FieldError
	for i, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil {
			bad = append(bad, api.FieldError{Field: fmt.Sprintf("body.sources[%d]", i), Message: "must be a network such as 10.1.0.0/16"})
			continue
		}
		list = append(list, p)
	}
	return list, bad
}

// KeyView is an SSH key as the API shows it.
type KeyView struct {
	ID          string    `json:"id"`
	Fingerprint string    `json:"fingerprint"`
	Algorithm   string    `json:"algorithm"`
	PublicKey   string    `json:"public_key"`
	Comment     string    `json:"comment,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
	LastUsed    time.Time `json:"last_used,omitzero"`
}

func showKey(k Key) KeyView {
	return KeyView{ID: k.ID, Fingerprint: k.Fingerprint, Algorithm: k.Algorithm, PublicKey: k.PublicKey,
		Comment: k.Comment, CreatedAt: k.CreatedAt, LastUsed: k.LastUsed}
}

// TokenView is a token as the API shows it.
type TokenView struct {
	ID         string    `json:"id"`
	UserID     string    `json:"user_id"`
	Name       string    `json:"name"`
	CreatedAt  time.Time `json:"created_at"`
	ExpiresAt  time.Time `json:"expires_at"`
	LastUsed   time.Time `json:"last_used,omitzero"`
	LastSource string    `json:"last_source,omitempty"`
	RevokedAt  time.Time `json:"revoked_at,omitzero"`
}

func showToken(t Token) TokenView {
	return TokenView{ID: t.ID, UserID: t.UserID, Name: t.Name, CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt,
		LastUsed: t.LastUsed, LastSource: t.LastSource, RevokedAt: t.RevokedAt}
}

// SessionView is a session as the API shows it.
type SessionView struct {
	ID        string    `json:"id"`
	Kind      string    `json:"kind" enum:"cookie,bearer"`
	Methods   []string  `json:"methods"`
	Source    string    `json:"source"`
	Agent     string    `json:"agent,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	SeenAt    time.Time `json:"seen_at"`
	ExpiresAt time.Time `json:"expires_at"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	Current   bool      `json:"current,omitempty" doc:"It is the session of this request."`
}

func showSession(v Session) SessionView {
	return SessionView{ID: v.ID, Kind: string(v.Kind), Methods: v.Methods, Source: addrText(v.Source), Agent: v.Agent,
		CreatedAt: v.CreatedAt, SeenAt: v.SeenAt, ExpiresAt: v.ExpiresAt, RevokedAt: v.RevokedAt}
}

// ClientView is an API client as the API shows it.
type ClientView struct {
	ID          string    `json:"id" doc:"The client_id of POST /oauth/token."`
	Name        string    `json:"name"`
	Comment     string    `json:"comment,omitempty"`
	Disabled    bool      `json:"disabled"`
	Locked      bool      `json:"locked"`
	CreatedAt   time.Time `json:"created_at"`
	CreatedBy   string    `json:"created_by,omitempty"`
	SecretSetAt time.Time `json:"secret_set_at"`
	Version     int64     `json:"version"`
}

func showClient(c APIClient) ClientView {
	return ClientView{ID: c.ID, Name: c.Name, Comment: c.Comment, Disabled: c.Disabled, Locked: c.Locked,
		CreatedAt: c.CreatedAt, CreatedBy: c.CreatedBy, SecretSetAt: c.SecretSetAt, Version: c.Version}
}
