package target

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"caponier/shared/icap"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// WebSpec is what a web target is: the page a session begins at, what it may
// reach and how it signs in, and what the person in front of it may do. It is
// stored and shown in this form.
type WebSpec struct {
	StartURL string `json:"start_url" minLength:"1" maxLength:"2000" doc:"where sessions begin: https://host[:port]/…"`
	// Insecure permits a start URL with http.
	Insecure bool           `json:"insecure,omitempty" doc:"permits a start_url with http, where everybody on the way can read and change what is sent"`
	Policy   webrule.Policy `json:"policy,omitzero" doc:"what sessions may reach, how they sign in, how servers are believed"`
	Browser  WebBrowser     `json:"browser,omitzero" doc:"what users may do"`
	API      bool           `json:"api,omitempty" doc:"permits sessions for API clients, without a browser: the rules hold for them, limits on clipboard, uploads and downloads do not"`
	ScanURL  string         `json:"scan_url,omitempty" maxLength:"500" doc:"ICAP service that sees every transferred file: icap://host:1344/service; the setting web.scan_url when left out"`
}

// WebBrowser is what the person in front of a web session may do. What is left
// out has a default; 0 forbids.
type WebBrowser struct {
	Mode          string `json:"mode,omitempty" enum:"kiosk,bar,auto" doc:"kiosk: the page alone (default); bar: with address and navigation; auto: the bar while the pointer is at the upper edge"`
	Engine        string `json:"engine,omitempty" enum:"firefox,chromium" doc:"the browser; firefox when left out. Not every carrier has chromium"`
	Popups        string `json:"popups,omitempty" enum:"tab,block" doc:"what becomes of windows that a page opens: tabs that fill the screen (default), or nothing"`
	DevTools      bool   `json:"devtools,omitempty" doc:"users may open the browser's developer tools (F12). They show cookies and everything else the page gets, but no injected credential"`
	Sound         bool   `json:"sound,omitempty" doc:"users can hear what pages play; it is not recorded"`
	ClipboardIn   *int64 `json:"clipboard_in,omitempty" minimum:"0" maximum:"67108864" doc:"bytes per paste into the session; 16 MiB when left out, 0 forbids"`
	ClipboardOut  *int64 `json:"clipboard_out,omitempty" minimum:"0" maximum:"67108864" doc:"bytes per copy out of the session; 16 MiB when left out, 0 forbids"`
	ClipboardText bool   `json:"clipboard_text,omitempty" doc:"record copied texts, not only their size and hash"`
	UploadMax     *int64 `json:"upload_max,omitempty" minimum:"0" maximum:"68719476736" doc:"bytes per uploaded file, for users whose grant has file_transfer; 1 GiB when left out, 0 forbids"`
	DownloadMax   *int64 `json:"download_max,omitempty" minimum:"0" maximum:"68719476736" doc:"bytes per downloaded file, for users whose grant has file_transfer; 1 GiB when left out, 0 forbids"`
	IdleS         int64  `json:"idle_s,omitempty" minimum:"0" maximum:"604800" doc:"seconds without input after which a session ends; 0: what grant and settings say"`
	MaxS          int64  `json:"max_s,omitempty" minimum:"0" maximum:"2592000" doc:"seconds after which a session ends; 0: what grant and settings say"`
	NoticeS       *int64 `json:"notice_s,omitempty" minimum:"0" maximum:"3600" doc:"seconds before either that it is told on the screen; 60 when left out"`
	Watermark     string `json:"watermark,omitempty" maxLength:"300" doc:"drawn over the picture, a line each; {user}, {target}, {account}, {address} and {date} stand for what they say"`
	Extend        bool   `json:"extend,omitempty" doc:"users may extend a session that reaches max_s"`
}

// What becomes of windows that a page opens.
const (
	PopupTab   = "tab"
	PopupBlock = "block"
)

// Defaults of WebBrowser.
const (
	defaultClipboard = 16 << 20 // bytes
	defaultTransfer  = 1 << 30  // bytes
	defaultNotice    = 60       // seconds
	maxWatermark     = 6        // lines
)

// URL is the start URL; nil when it is none.
func (w *WebSpec) URL() *url.URL {
	u, err := url.Parse(w.StartURL)
	if err != nil || u.Host == "" {
		return nil
	}
	return u
}

// BrowserPolicy is what a carrier is told, for a session of user from address.
func (w *WebSpec) BrowserPolicy(user, target, account, address string, now time.Time) wire.BrowserPolicy {
	b := &w.Browser
	p := wire.BrowserPolicy{
		Mode: b.Mode, DevTools: b.DevTools, Sound: b.Sound, ClipboardIn: *b.ClipboardIn, ClipboardOut: *b.ClipboardOut, ClipboardText: b.ClipboardText,
		UploadMax: *b.UploadMax, DownloadMax: *b.DownloadMax, IdleS: b.IdleS, MaxS: b.MaxS, NoticeS: *b.NoticeS, ScanURL: w.ScanURL,
	}
	if b.Watermark != "" {
		says := strings.NewReplacer("{user}", user, "{target}", target, "{account}", account, "{address}", address,
			"{date}", now.UTC().Format("2006-01-02"))
		for line := range strings.SplitSeq(b.Watermark, "\n") {
			if line = strings.TrimSpace(says.Replace(line)); line != "" {
				p.Watermark = append(p.Watermark, line)
			}
		}
	}
	return p
}

// clone copies w as far as validation changes it.
func (w *WebSpec) clone() *WebSpec {
	c := *w
	return &c
}

// brief is w without its policy, for lists.
func (w *WebSpec) brief() *WebSpec {
	if w == nil {
		return nil
	}
	b := *w
	b.Policy = webrule.Policy{}
	return &b
}

// complete fills what was left out.
func (b *WebBrowser) complete() {
	set := func(p **int64, v int64) {
		if *p == nil {
			*p = new(v)
		}
	}
	if b.Mode == "" {
		b.Mode = "kiosk"
	}
	if b.Engine == "" {
		b.Engine = wire.Firefox
	}
	if b.Popups == "" {
		b.Popups = PopupTab
	}
	set(&b.ClipboardIn, defaultClipboard)
	set(&b.ClipboardOut, defaultClipboard)
	set(&b.UploadMax, defaultTransfer)
	set(&b.DownloadMax, defaultTransfer)
	set(&b.NoticeS, defaultNotice)
}

// validateWeb checks a web target and sets host and port from its start URL.
func (t *Target) validateWeb(p *problems) {
	w := t.Web
	if w == nil {
		p.add("web", "a web target needs web with its start_url")
		return
	}
	w.StartURL = strings.TrimSpace(w.StartURL)
	t.Host, t.Port = "", 0
	u, err := url.Parse(w.StartURL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		p.add("web.start_url", "must be https://host[:port]/…")
	case u.User != nil:
		p.add("web.start_url", "must hold no login: attach an account instead")
	case u.Scheme == "http" && !w.Insecure:
		p.add("web.start_url", "is not encrypted; set insecure to permit http")
	default:
		if t.Host, err = NormalHost(u.Hostname()); err != nil {
			p.add("web.start_url", "%s", err)
			break
		}
		if t.Port = 443; u.Scheme == "http" {
			t.Port = 80
		}
		if s := u.Port(); s != "" {
			n, err := strconv.ParseUint(s, 10, 16)
			if err != nil || n == 0 {
				p.add("web.start_url", "the port must be 1 to 65535")
			}
			t.Port = int(n)
		}
		if u.Path == "" {
			u.Path = "/"
		}
		u.Host = strings.ToLower(u.Host)
		w.StartURL = u.String()
	}
	w.Browser.complete()
	w.validateBrowser(p)
	if bad, ok := errors.AsType[*webrule.Invalid](w.Policy.Validate()); ok {
		for _, x := range bad.Problems {
			p.add("web.policy."+x.Field, "%s", x.Text)
		}
	}
	if w.ScanURL != "" {
		if err := icap.CheckURL(w.ScanURL); err != nil {
			p.add("web.scan_url", "%s", err)
		}
	}
}

func (w *WebSpec) validateBrowser(p *problems) {
	b := &w.Browser
	if b.Mode != "kiosk" && b.Mode != "bar" && b.Mode != "auto" {
		p.add("web.browser.mode", "must be kiosk, bar or auto")
	}
	if b.Engine != wire.Firefox && b.Engine != wire.Chromium {
		p.add("web.browser.engine", "must be firefox or chromium")
	}
	if b.Popups != PopupTab && b.Popups != PopupBlock {
		p.add("web.browser.popups", "must be tab or block")
	}
	for name, v := range map[string]int64{
		"clipboard_in": *b.ClipboardIn, "clipboard_out": *b.ClipboardOut, "upload_max": *b.UploadMax, "download_max": *b.DownloadMax,
		"idle_s": b.IdleS, "max_s": b.MaxS, "notice_s": *b.NoticeS,
	} {
		if v < 0 {
			p.add("web.browser."+name, "must not be negative")
		}
	}
	if b.Extend && b.MaxS == 0 {
		p.add("web.browser.extend", "only with max_s")
	}
	if strings.Count(b.Watermark, "\n") >= maxWatermark || len(b.Watermark) > 300 {
		p.add("web.browser.watermark", "at most %d lines and 300 bytes", maxWatermark)
	}
}

// webAuth checks how an account of a web target signs in: with a stored
// secret, or by its user himself.
func (a *Account) webAuth(p *problems, field string) {
	if a.Auth == "" {
		if a.Auth = AuthAsk; a.SecretID != "" {
			a.Auth = AuthPassword
		}
	}
	if a.Auth != AuthPassword && a.Auth != AuthAsk {
		p.add(field+"auth", "of a web target must be password or ask")
	}
}

// sends says where and how stored secrets go: another text, another way.
func (w *WebSpec) sends() string {
	if w == nil {
		return ""
	}
	// A rule may lead the target's own host through another network, where
	// another server has its address.
	var ways []any
	for _, r := range w.Policy.Allow {
		if r.Site != "" {
			ways = append(ways, r)
		}
	}
	return toJSON([]any{w.StartURL, w.Insecure, w.Policy.Recipe, w.Policy.TLS, ways})
}

// facts are what the audit log keeps.
func (w *WebSpec) facts(f map[string]string) {
	f["start_url"] = cutText(w.StartURL, 500)
	sum := sha256.Sum256([]byte(toJSON(w.Policy)))
	f["policy_sha256"] = hex.EncodeToString(sum[:8])
	f["policy"] = fmt.Sprintf("allow %d, deny %d, own only %t, learn %t", len(w.Policy.Allow), len(w.Policy.Deny), w.Policy.Own, w.Policy.Learn)
	hosts := map[string]bool{}
	for _, r := range w.Policy.Allow {
		hosts[r.Host] = true
	}
	if len(hosts) > 0 {
		f["allowed_hosts"] = cutText(strings.Join(slices.Sorted(maps.Keys(hosts)), ","), 500)
	}
	var injections []string
	for _, i := range w.Policy.Recipe.Injections {
		injections = append(injections, fmt.Sprintf("%s %s %s%s", i.ID, i.Kind, i.Origin, i.Path))
	}
	if len(injections) > 0 {
		f["injections"] = cutText(strings.Join(injections, ", "), 1000)
	}
	if w.Policy.TLS.Unchecked {
		f["certificate"] = "not checked"
	}
	b := w.Browser
	b.ClipboardIn, b.ClipboardOut = nil, nil
	f["browser"] = cutText(toJSON(b), 500)
	if w.Browser.ClipboardIn != nil && w.Browser.ClipboardOut != nil {
		f["clipboard"] = fmt.Sprintf("in %d, out %d", *w.Browser.ClipboardIn, *w.Browser.ClipboardOut)
	}
}

func (t *Target) webJSON() string {
	if t.Web == nil {
		return ""
	}
	return toJSON(t.Web)
}

func readWeb(text string) (*WebSpec, error) {
	if text == "" {
		return nil, nil
	}
	w := &WebSpec{}
	if err := json.Unmarshal([]byte(text), w); err != nil {
		return nil, err
	}
	w.Browser.complete()
	return w, nil
}

// Origin is the scheme, host and port of the start URL, as a browser writes
// them.
func (w *WebSpec) Origin() string {
	u := w.URL()
	if u == nil {
		return ""
	}
	host := u.Host
	if h, port, err := net.SplitHostPort(host); err == nil && (u.Scheme == "https" && port == "443" || u.Scheme == "http" && port == "80") {
		if host = h; strings.Contains(h, ":") {
			host = "[" + h + "]"
		}
	}
	return u.Scheme + "://" + host
}
