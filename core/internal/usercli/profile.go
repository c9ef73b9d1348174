package usercli

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"caponier/shared/config"
)

// profile is what login keeps, without its secrets.
type profile struct {
	// URL of core, https only.
	URL string `toml:"url"`
	// CAFile verifies core's certificate instead of the system's roots.
	CAFile string `toml:"ca_file"`
	// User is the login name.
	User string `toml:"user"`
	// Bastion is host:port of the SSH front door.
	Bastion string `toml:"bastion"`
	// Separator stands between user, account and target in SSH user names. Default %.
	Separator string `toml:"separator"`
	// Expires is when the token ends, RFC 3339.
	Expires string `toml:"expires"`
}

// The files beside the profile.
const (
	profileFile = "profile.toml"
	tokenFile   = "token"
	caFile      = "ca.pem"
	keyFile     = "id_ed25519"
	certFile    = "id_ed25519-cert.pub"
	knownHosts  = "known_hosts"
)

var errNotLoggedIn = errors.New("not logged in")

func configDir(e *env) (string, error) {
	if d := e.getenv("CAPONIER_CONFIG_DIR"); d != "" {
		return d, nil
	}
	if d := e.getenv("XDG_CONFIG_HOME"); d != "" {
		return filepath.Join(d, "caponier"), nil
	}
	home := e.getenv("HOME")
	if home == "" {
		return "", &hinted{err: errors.New("no home directory"), hint: "set HOME or CAPONIER_CONFIG_DIR", code: ExitConfig}
	}
	return filepath.Join(home, ".config", "caponier"), nil
}

// Validate implements config.Validator.
func (p *profile) Validate() []config.Problem {
	var list []config.Problem
	if u, err := url.Parse(p.URL); p.URL != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		list = append(list, config.Problem{Key: "url", Text: fmt.Sprintf("%q is not an https URL", p.URL), Hint: "write it like https://pam.example.org"})
	}
	if _, err := time.Parse(time.RFC3339, p.Expires); p.Expires != "" && err != nil {
		list = append(list, config.Problem{Key: "expires", Text: fmt.Sprintf("%q is not a time", p.Expires), Hint: "log in again"})
	}
	return list
}

// loadProfile reads the profile; variables of the environment win.
func loadProfile(e *env) (*profile, error) {
	p := &profile{Separator: "%"}
	path := filepath.Join(e.dir, profileFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		path = ""
	}
	if err := config.Load(p, path, nil); err != nil {
		return nil, err
	}
	if v := e.getenv("CAPONIER_URL"); v != "" {
		p.URL = v
		if list := p.Validate(); len(list) > 0 {
			return nil, &config.Problems{File: "the environment (CAPONIER_URL)", List: list}
		}
	}
	if v := e.getenv("CAPONIER_CA_FILE"); v != "" {
		p.CAFile = v
	}
	if p.URL == "" {
		return nil, errNotLoggedIn
	}
	return p, nil
}

// token is the API token: of the environment or of the login.
func (e *env) token() (config.Secret, error) {
	if t := e.getenv("CAPONIER_TOKEN"); t != "" {
		return config.Secret(t), nil
	}
	b, err := os.ReadFile(filepath.Join(e.dir, tokenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", errNotLoggedIn
	}
	if err != nil {
		return "", err
	}
	return config.Secret(strings.TrimSpace(string(b))), nil
}

// save writes the profile.
func (p *profile) save(e *env) error {
	var b strings.Builder
	if err := toml.NewEncoder(&b).Encode(p); err != nil {
		return err
	}
	return e.write(profileFile, b.String())
}

// write replaces a file of the profile's directory, readable by its owner only.
func (e *env) write(name, text string) error {
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(e.dir, "."+name+"-*") // made with mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(text)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(e.dir, name))
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// path names a file of the profile's directory.
func (e *env) path(name string) string { return filepath.Join(e.dir, name) }
