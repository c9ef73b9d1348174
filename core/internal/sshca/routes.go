package sshca

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

type infoOut struct {
	Body struct {
		UserCA    string `json:"user_ca" doc:"for TrustedUserCAKeys of targets, one line per key"`
		ClientCA  string `json:"client_ca" doc:"signs people's certificates for the bastion"`
		HostCA    string `json:"host_ca" doc:"for @cert-authority lines in known_hosts"`
		Bastion   string `json:"bastion,omitempty"`
		Separator string `json:"separator,omitempty"`
	}
}

type keysOut struct{ Body []Key }

type keyOut struct{ Body Key }

type renewIn struct {
	Body struct {
		Purpose Purpose `json:"purpose" enum:"target,client,host"`
	}
}

type keyIn struct {
	ID string `path:"id" maxLength:"64"`
}

type signIn struct {
	Body struct {
		PublicKey string `json:"public_key" maxLength:"16384" doc:"an authorized_keys line"`
		Seconds   int64  `json:"ttl_seconds,omitempty" minimum:"60" maximum:"43200" doc:"28800 when absent"`
	}
}

type signOut struct {
	Body struct {
		Certificate string    `json:"certificate"`
		Serial      string    `json:"serial"`
		ExpiresAt   time.Time `json:"expires_at"`
	}
}

type serialIn struct {
	Serial string `path:"serial" pattern:"^[0-9]{1,19}$"`
}

type rulesBody struct {
	Rules string `json:"rules" maxLength:"65536" doc:"one rule per line: [site/]glob-or-cidr kex=+… ciphers=+… macs=+… hostkeys=+…"`
}

type rulesIn struct {
	IfMatch string `header:"If-Match"`
	Body    rulesBody
}

type rulesOut struct {
	ETag string `header:"ETag"`
	Body rulesBody
}

// Routes registers the room's operations.
func (c *CA) Routes(f *api.Frame) {
	const tag = "ssh-ca"
	view, manage := api.Needs(api.SettingsView), api.Needs(api.SettingsManage)

	api.Register(f, api.Op{Method: "GET", Path: "/ssh-ca", ID: "get-ssh-ca", Tag: tag, Who: api.Public(), Summary: "Public keys of the SSH authorities"}, c.info)
	api.RegisterRaw(f, api.Op{Method: "GET", Path: "/ssh-ca/public-keys/{purpose}", ID: "get-ssh-ca-public-keys", Tag: tag, Who: api.Public(), Type: "text/plain",
		Summary: "Public keys of one authority (target, client or host) as text, one line each; ?group=ID names an access group other than the default one",
	}, func(w http.ResponseWriter, r *http.Request) {
		p := Purpose(r.PathValue("purpose"))
		if !p.known() {
			f.Fail(w, r, api.Missing("authority", ""))
			return
		}
		text, err := c.PublicKeys(r.Context(), p, groupOf(r))
		if err == nil && text == "" {
			err = api.Missing("authority", "")
		}
		if err != nil {
			f.Fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Write([]byte(text))
	})
	api.RegisterRaw(f, api.Op{Method: "GET", Path: "/ssh-ca/krl", ID: "get-ssh-ca-krl", Tag: tag, Who: api.Public(), Type: "application/octet-stream",
		Summary: "Revoked certificates and keys in OpenSSH's format, for RevokedKeys; ?group=ID names an access group other than the default one",
	}, func(w http.ResponseWriter, r *http.Request) {
		b, err := c.KRL(r.Context(), groupOf(r))
		if err != nil {
			f.Fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(b)
	})

	api.Register(f, api.Op{Method: "GET", Path: "/ssh-ca/keys", ID: "list-ssh-ca-keys", Tag: tag, Who: view, Summary: "All generations of the authorities' keys; those of other access groups are at /access-groups/{id}/ssh-ca"},
		func(ctx context.Context, _ *struct{}) (*keysOut, error) {
			keys, err := c.Keys(ctx, access.DefaultGroup)
			return &keysOut{keys}, err
		})
	api.Register(f, api.Op{Method: "POST", Path: "/ssh-ca/keys", ID: "renew-ssh-ca", Tag: tag, Who: manage, Status: 201,
		Summary: "Make the next key of an authority; it is published and does not sign yet",
	}, func(ctx context.Context, in *renewIn) (*keyOut, error) {
		return one(c.Renew(ctx, in.Body.Purpose, access.DefaultGroup, audit.By(api.PrincipalFrom(ctx))))
	})
	api.Register(f, api.Op{Method: "POST", Path: "/ssh-ca/keys/{id}/activate", ID: "activate-ssh-ca-key", Tag: tag, Who: manage,
		Summary: "Make the next key sign; the former one stays trusted until it is revoked",
	}, func(ctx context.Context, in *keyIn) (*keyOut, error) {
		return one(c.Activate(ctx, access.DefaultGroup, in.ID, audit.By(api.PrincipalFrom(ctx))))
	})
	api.Register(f, api.Op{Method: "POST", Path: "/ssh-ca/keys/{id}/revoke", ID: "revoke-ssh-ca-key", Tag: tag, Who: manage, Summary: "End all trust in a key that does not sign any more"},
		func(ctx context.Context, in *keyIn) (*keyOut, error) {
			return one(c.RevokeKey(ctx, access.DefaultGroup, in.ID, audit.By(api.PrincipalFrom(ctx))))
		})

	c.groupRoutes(f)
	api.Register(f, api.Op{Method: "POST", Path: "/ssh-certificates", ID: "sign-ssh-certificate", Tag: tag, Who: api.Self(), Status: 201,
		Summary: "A certificate of the caller's public key for logins at the bastion",
	}, c.signOwn)
	api.Register(f, api.Op{Method: "DELETE", Path: "/ssh-certificates/{serial}", ID: "revoke-ssh-certificate", Tag: tag, Who: api.Self(),
		Summary: "Revoke a certificate: one's own, or any with settings:manage",
	}, c.revokeOne)

	api.Register(f, api.Op{Method: "GET", Path: "/ssh-ca/algorithms", ID: "get-ssh-algorithms", Tag: tag, Who: view, Summary: "Ordered rules that change what is offered to old hosts"},
		func(ctx context.Context, _ *struct{}) (*rulesOut, error) {
			text, version, err := c.rules(ctx, c.c.DB)
			return &rulesOut{api.ETag(version), rulesBody{text}}, err
		})
	api.Register(f, api.Op{Method: "PUT", Path: "/ssh-ca/algorithms", ID: "set-ssh-algorithms", Tag: tag, Who: manage, Summary: "Replace the rules"}, c.setRules)
}

// groupOf is the access group a request names, or the default one.
func groupOf(r *http.Request) string {
	if g := r.URL.Query().Get("group"); g != "" {
		return g
	}
	return access.DefaultGroup
}

func one(k *Key, err error) (*keyOut, error) {
	if err != nil {
		return nil, err
	}
	return &keyOut{*k}, nil
}

func (c *CA) info(ctx context.Context, _ *struct{}) (*infoOut, error) {
	out := &infoOut{}
	out.Body.Bastion = c.c.Bastion
	if c.c.Separator != nil {
		out.Body.Separator = c.c.Separator()
	}
	for p, text := range map[Purpose]*string{ForTargets: &out.Body.UserCA, ForClients: &out.Body.ClientCA, ForHosts: &out.Body.HostCA} {
		var err error
		if *text, err = c.PublicKeys(ctx, p, access.DefaultGroup); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (c *CA) signOwn(ctx context.Context, in *signIn) (*signOut, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(in.Body.PublicKey))
	if err != nil {
		return nil, api.Invalid(api.FieldError{Field: "public_key", Message: "must be one line of an authorized_keys or .pub file"})
	}
	cert, err := c.SignClient(ctx, api.PrincipalFrom(ctx), key, time.Duration(in.Body.Seconds)*time.Second)
	if err != nil {
		return nil, err
	}
	out := &signOut{}
	out.Body.Certificate = authorized(cert, cert.KeyId)
	out.Body.Serial = strconv.FormatUint(cert.Serial, 10)
	out.Body.ExpiresAt = time.Unix(int64(cert.ValidBefore), 0).UTC()
	return out, nil
}

func (c *CA) revokeOne(ctx context.Context, in *serialIn) (*struct{}, error) {
	p := api.PrincipalFrom(ctx)
	missing := api.Missing("certificate", in.Serial)
	serial, err := strconv.ParseUint(in.Serial, 10, 63)
	if err != nil {
		return nil, missing
	}
	f, err := readCert(ctx, c.c.DB, serial)
	if errors.Is(err, db.ErrNotFound) {
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	if !p.Can(api.SettingsManage) && (f.user == "" || f.user != p.UserID) {
		return nil, missing
	}
	return nil, c.Revoke(ctx, serial, audit.By(p))
}

const (
	rulesSQL    = `select rules, version from sshca_rules where id = 1`
	setRulesSQL = `update sshca_rules set rules = $1, version = version + 1, changed_at = $2 where id = 1`
)

func (c *CA) rules(ctx context.Context, q db.Querier) (text string, version int64, err error) {
	if err := q.QueryRowContext(ctx, rulesSQL).Scan(&text, &version); err != nil {
		return "", 0, fmt.Errorf("read algorithm rules: %w", db.Classify(err))
	}
	return text, version, nil
}

func (c *CA) setRules(ctx context.Context, in *rulesIn) (*rulesOut, error) {
	if _, err := ParseRules(in.Body.Rules); err != nil {
		return nil, api.Invalid(api.FieldError{Field: "rules", Message: err.Error()})
	}
	var version int64
	err := c.change(ctx, func(tx *db.Tx) error {
		_, have, err := c.rules(ctx, tx)
		if err != nil {
			return err
		}
		if err := api.CheckMatch(in.IfMatch, have); err != nil {
			return err
		}
		version = have + 1
		if _, err := tx.ExecContext(ctx, setRulesSQL, in.Body.Rules, c.c.Now().UnixMicro()); err != nil {
			return fmt.Errorf("store algorithm rules: %w", err)
		}
		if err := tx.Notify(ctx, "setting", "ssh-algorithms"); err != nil {
			return err
		}
		return c.c.Audit.Append(ctx, tx, audit.Event{
			Type: audit.CARules, Outcome: audit.OK, Actor: audit.By(api.PrincipalFrom(ctx)),
			Object: audit.Object{Kind: "setting", ID: "ssh-algorithms"}, Fields: map[string]string{"version": fmt.Sprint(version)},
		})
	})
	if err != nil {
		return nil, err
	}
	return &rulesOut{api.ETag(version), in.Body}, nil
}

// Algorithms returns what to offer a target: the defaults, changed by the
// first matching rule of the installation and then by the target's own text.
func (c *CA) Algorithms(ctx context.Context, site, host, targetRule string) (Algorithms, error) {
	text, _, err := c.rules(ctx, c.c.DB)
	if err != nil {
		return Algorithms{}, err
	}
	rules, err := ParseRules(text)
	if err != nil {
		return Algorithms{}, fmt.Errorf("algorithm rules: %w", err)
	}
	a, err := rules.For(site, host)
	if err != nil {
		return Algorithms{}, fmt.Errorf("algorithms for %s: %w", host, err)
	}
	own, err := ParseTargetRule(targetRule)
	if err != nil {
		return Algorithms{}, fmt.Errorf("algorithms of target %s: %w", host, err)
	}
	if a, err = a.With(own); err != nil {
		return Algorithms{}, fmt.Errorf("algorithms of target %s: %w", host, err)
	}
	return a, nil
}
