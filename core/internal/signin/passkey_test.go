package signin

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// authenticator is a WebAuthn authenticator in software (WebAuthn §6), with one
// credential and knobs to misbehave with.
type authenticator struct {
	t       testing.TB
	key     *ecdsa.PrivateKey
	id      []byte
	handle  []byte
	counter uint32
	step    uint32 // how far the counter goes each time
	noUV    bool   // it cannot verify its user
	origin  string
	rpID    string
}

func newAuthenticator(t testing.TB) *authenticator {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := make([]byte, 32)
	rand.Read(id)
	return &authenticator{t: t, key: key, id: id, step: 1, origin: "https://core.test", rpID: "core.test"}
}

// authData is WebAuthn §6.1.
func (a *authenticator) authData(attested []byte) []byte {
	flags := byte(0x01) // user present
	if !a.noUV {
		flags |= 0x04
	}
	if attested != nil {
		flags |= 0x40
	}
	h := sha256.Sum256([]byte(a.rpID))
	out := append(h[:], flags)
	a.counter += a.step
	out = binary.BigEndian.AppendUint32(out, a.counter)
	return append(out, attested...)
}

func (a *authenticator) clientData(kind, challenge string) []byte {
	b, err := json.Marshal(obj{"type": kind, "challenge": challenge, "origin": a.origin, "crossOrigin": false})
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// begun is what a begin operation answers.
type begun struct {
	State   string
	Options struct {
		PublicKey struct {
			Challenge          string
			RPID               string `json:"rpId"`
			UserVerification   string
			User               struct{ ID string }
			AllowCredentials   []struct{ ID string }
			ExcludeCredentials []struct{ ID string }
		}
	}
}

// create answers a registration.
func (a *authenticator) create(o begun) obj {
	a.t.Helper()
	var err error
	if a.handle, err = base64.RawURLEncoding.DecodeString(o.Options.PublicKey.User.ID); err != nil {
		a.t.Fatal(err)
	}
	point, err := a.key.PublicKey.Bytes()
	if err != nil {
		a.t.Fatal(err)
	}
	pub, err := cbor.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: point[1:33], -3: point[33:]})
	if err != nil {
		a.t.Fatal(err)
	}
	attested := make([]byte, 16) // AAGUID
	attested = binary.BigEndian.AppendUint16(attested, uint16(len(a.id)))
	attested = append(append(attested, a.id...), pub...)
	object, err := cbor.Marshal(obj{"fmt": "none", "attStmt": obj{}, "authData": a.authData(attested)})
	if err != nil {
		a.t.Fatal(err)
	}
	return obj{"id": b64(a.id), "rawId": b64(a.id), "type": "public-key", "clientExtensionResults": obj{}, "response": obj{
		"clientDataJSON": b64(a.clientData("webauthn.create", o.Options.PublicKey.Challenge)), "attestationObject": b64(object), "transports": []string{"internal"}}}
}

// get answers an assertion.
func (a *authenticator) get(o begun) obj {
	a.t.Helper()
	data, client := a.authData(nil), a.clientData("webauthn.get", o.Options.PublicKey.Challenge)
	sum := sha256.Sum256(client)
	digest := sha256.Sum256(append(slices.Clone(data), sum[:]...))
	sig, err := ecdsa.SignASN1(rand.Reader, a.key, digest[:])
	if err != nil {
		a.t.Fatal(err)
	}
	return obj{"id": b64(a.id), "rawId": b64(a.id), "type": "public-key", "clientExtensionResults": obj{}, "response": obj{
		"clientDataJSON": b64(client), "authenticatorData": b64(data), "signature": b64(sig), "userHandle": b64(a.handle)}}
}

// enrol adds a passkey for who is signed in, whose password is the usual one.
func (b *browser) enrol(a *authenticator, name string) (codes []string) {
	b.t.Helper()
	var o begun
	b.call("POST", "/users/me/passkeys/begin", obj{"password": password}).want(200, "").into(&o)
	var made struct {
		Name     string
		Verifies bool
		Codes    []string `json:"recovery_codes"`
	}
	b.call("POST", "/users/me/passkeys", obj{"state": o.State, "credential": a.create(o), "name": name}).want(201, "").into(&made)
	if made.Name != name || made.Verifies == a.noUV {
		b.t.Errorf("added %+v", made)
	}
	return made.Codes
}

func (b *browser) begin(body obj) (o begun) {
	b.t.Helper()
	b.call("POST", "/login/passkey/begin", body).want(200, "").into(&o)
	return o
}

func (b *browser) finish(o begun, credential obj) got {
	b.t.Helper()
	return b.call("POST", "/login/passkey", obj{"state": o.State, "credential": credential, "cookie": true})
}

func TestPasskeySignsIn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		r.person("jane")
		a := newAuthenticator(t)
		b := r.browser(office).signIn("jane")
		if codes := b.enrol(a, "laptop"); len(codes) != 10 {
			t.Errorf("the first second factor came with %d recovery codes", len(codes))
		}
		fresh := r.browser(home)
		o := fresh.begin(obj{})
		if o.Options.PublicKey.UserVerification != "required" || len(o.Options.PublicKey.AllowCredentials) != 0 || o.Options.PublicKey.RPID != "core.test" {
			t.Errorf("options %+v", o.Options)
		}
		answer := a.get(o)
		fresh.finish(o, answer).want(200, "")
		m := fresh.me()
		if m.User.Name != "jane" || !m.MFA || !slices.Equal(m.Methods, []string{"passkey"}) || m.User.Passkeys != 1 {
			t.Errorf("signed in as %+v", m)
		}
		// The same answer does not work twice, from anywhere.
		r.browser(home).finish(o, answer).want(409, "sign_in_stale")
		// Nor after its time.
		o = fresh.begin(obj{})
		r.clock.Add(ceremonyLife + time.Second)
		fresh.finish(o, a.get(o)).want(409, "sign_in_stale")
		if n := r.count(audit.LoginSucceeded, "methods:passkey"); n != 1 {
			t.Errorf("%d logins by passkey audited", n)
		}
	})
}

func TestPasskeyRefusals(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	jane := r.person("jane")
	r.person("mallory")
	r.person("bob")
	a := newAuthenticator(t)
	b := r.browser(office).signIn("jane")
	b.enrol(a, "laptop")
	other := newAuthenticator(t)
	r.browser(office).signIn("mallory").enrol(other, "phone")
	n := 0
	try := func(what string, change func(a *authenticator, o *begun), status int, code string) {
		t.Helper()
		copied := *a
		n++
		from := r.browser(netOf(n))
		o := from.begin(obj{})
		change(&copied, &o)
		res := from.finish(o, copied.get(o))
		a.counter = copied.counter
		if res.StatusCode != status || !bytes.Contains([]byte(res.body), []byte(code)) {
			t.Errorf("%s: %d %s", what, res.StatusCode, res.body)
		}
	}
	try("another origin", func(a *authenticator, _ *begun) { a.origin = "https://core.test.evil.example" }, 401, "passkey_refused")
	try("another relying party", func(a *authenticator, _ *begun) { a.rpID = "evil.example" }, 401, "passkey_refused")
	try("another challenge", func(_ *authenticator, o *begun) { o.Options.PublicKey.Challenge = b64(make([]byte, 32)) }, 401, "passkey_refused")
	try("no verification of the user", func(a *authenticator, _ *begun) { a.noUV = true }, 401, "passkey_refused")
	try("another key", func(a *authenticator, _ *begun) { a.key = other.key }, 401, "passkey_refused")
	try("somebody else's handle", func(a *authenticator, _ *begun) { a.handle = other.handle }, 401, "passkey_refused")
	try("a user who does not exist", func(a *authenticator, _ *begun) { a.handle = []byte("usr_nobody") }, 401, "passkey_refused")
	try("a state of another kind", func(_ *authenticator, o *begun) {
		m := r.browser(office).signIn("bob")
		var reg begun
		m.call("POST", "/users/me/passkeys/begin", obj{"password": password}).want(200, "").into(&reg)
		o.State = reg.State
	}, 409, "sign_in_stale")
	try("a forged state", func(_ *authenticator, o *begun) { o.State = b64([]byte("signin/state/passkey-assertion\x00{}")) }, 409, "sign_in_stale")
	r.browser(home).call("POST", "/login/passkey", obj{"state": r.browser(home).begin(obj{}).State, "credential": obj{"id": "x"}}).want(422, "passkey_refused")
	try("the right one", func(*authenticator, *begun) {}, 200, "")
	// A disabled account is refused although the passkey is good.
	off := true
	if _, err := r.users.Update(t.Context(), tester, jane.ID, func(int64) error { return nil }, userChange(&off)); err != nil {
		t.Fatal(err)
	}
	try("a disabled account", func(*authenticator, *begun) {}, 401, "bad_credentials")
	if n := r.count(audit.LoginFailed, "bad_passkey"); n < 7 {
		t.Errorf("%d refused passkeys audited", n)
	}
}

func TestClonedPasskeyIsBlocked(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	r.person("jane")
	a := newAuthenticator(t)
	r.browser(office).signIn("jane").enrol(a, "laptop")
	thief := *a
	b := r.browser(home)
	for range 3 {
		o := b.begin(obj{})
		b.finish(o, a.get(o)).want(200, "")
	}
	o := b.begin(obj{})
	b.finish(o, thief.get(o)).want(401, "passkey_cloned")
	// Nobody knows which of the two is the thief: neither comes in.
	o = b.begin(obj{})
	b.finish(o, a.get(o)).want(401, "passkey_refused")
	if n := r.count(audit.UserPasskeyCloned); n != 1 {
		t.Errorf("%d warnings of a copy", n)
	}
}

// TestSynchronisedPasskey has no counter, as those that live in an account.
func TestSynchronisedPasskey(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	r.person("jane")
	a := newAuthenticator(t)
	a.step = 0
	r.browser(office).signIn("jane").enrol(a, "laptop")
	for range 2 {
		b := r.browser(home)
		o := b.begin(obj{})
		b.finish(o, a.get(o)).want(200, "")
	}
}

func TestPasskeyAsSecondFactor(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		r.person("jane")
		r.person("bob")
		a := newAuthenticator(t)
		a.noUV = true // a plain security key
		b := r.browser(office).signIn("jane")
		codes := b.enrol(a, "key ring")
		names := obj{"username": "jane", "password": password}
		r.browser(home).call("POST", "/login", names).want(401, "code_needed")
		fresh := r.browser(home)
		fresh.call("POST", "/login/passkey/begin", obj{"username": "jane", "password": "not the password"}).want(401, "bad_credentials")
		fresh.call("POST", "/login/passkey/begin", obj{"username": "bob", "password": password}).want(409, "no_second_factor")
		o := fresh.begin(names)
		if n := len(o.Options.PublicKey.AllowCredentials); n != 1 || o.Options.PublicKey.UserVerification != "preferred" {
			t.Errorf("options %+v", o.Options)
		}
		fresh.finish(o, a.get(o)).want(200, "")
		if m := fresh.me(); !m.MFA || !slices.Equal(m.Methods, []string{"password", "passkey"}) {
			t.Errorf("signed in as %+v", m)
		}
		// Alone it does not get in: it does not verify its user.
		o = fresh.begin(obj{})
		fresh.finish(o, a.get(o)).want(401, "passkey_refused")
		// A recovery code stands in for it, once.
		names["code"], names["cookie"] = codes[0], true
		r.browser(home).call("POST", "/login", names).want(200, "")
		r.browser(home).call("POST", "/login", names).want(401, "bad_credentials")
	})
}

func TestOwnPasskeys(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	jane := r.person("jane")
	r.person("bob")
	a, second := newAuthenticator(t), newAuthenticator(t)
	b := r.browser(office).signIn("jane")
	b.call("POST", "/users/me/passkeys/begin", obj{"password": "not the password"}).want(403, "bad_credentials")
	b.enrol(a, "laptop")
	// Now a second factor is needed; he signs in with it and adds another.
	b = r.browser(office)
	o := b.begin(obj{})
	b.finish(o, a.get(o)).want(200, "")
	if codes := b.enrol(second, "phone"); codes != nil {
		t.Errorf("new recovery codes %v; the old ones must stay good", codes)
	}
	var list struct{ Items []PasskeyView }
	b.call("GET", "/users/me/passkeys", nil).want(200, "").into(&list)
	if len(list.Items) != 2 || list.Items[0].Name != "laptop" || list.Items[0].LastUsed.IsZero() {
		t.Fatalf("listed %+v", list.Items)
	}
	var reg begun
	b.call("POST", "/users/me/passkeys/begin", obj{"password": password}).want(200, "").into(&reg)
	if n := len(reg.Options.PublicKey.ExcludeCredentials); n != 2 {
		t.Errorf("%d passkeys excluded from registration, want 2", n)
	}
	b.call("POST", "/users/me/passkeys", obj{"state": reg.State, "credential": a.create(reg), "name": "again"}).want(409, "passkey_known")
	path := "/users/me/passkeys/" + list.Items[0].ID
	b.call("PATCH", path, obj{"name": "old laptop"}).want(200, "")
	b.call("PATCH", path, obj{"name": ""}).want(422, "invalid")
	b.call("DELETE", path, nil).want(409, "needs_proof")
	bob := r.browser(office).signIn("bob")
	bob.call("GET", "/users/"+jane.ID+"/passkeys", nil).want(403, "permission_missing")
	bob.call("DELETE", "/users/"+jane.ID+"/passkeys/"+list.Items[0].ID, nil).want(403, "permission_missing")
	bob.call("POST", "/users/me/passkeys/"+list.Items[0].ID+"/remove", obj{"password": password}).want(404, "not_found")
	bob.call("POST", "/users/"+jane.ID+"/passkeys/"+list.Items[0].ID+"/remove", obj{"password": password}).want(403, "own_only")
	elsewhere := r.browser(home)
	o = elsewhere.begin(obj{})
	elsewhere.finish(o, second.get(o)).want(200, "")
	b.call("POST", path+"/remove", obj{"password": password}).want(204, "")
	b.me() // this session stays
	elsewhere.call("GET", "/me", nil).want(401, "unauthenticated")
	o = elsewhere.begin(obj{})
	elsewhere.finish(o, a.get(o)).want(401, "passkey_refused")
	// An administrator takes the other away: the password is enough again.
	r.admin().call("DELETE", "/users/"+jane.ID+"/passkeys/"+list.Items[1].ID, nil).want(204, "")
	r.browser(home).signIn("jane")
}

func TestPasskeysAreExportedAndErased(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	jane := r.person("jane")
	a := newAuthenticator(t)
	r.browser(office).signIn("jane").enrol(a, "laptop")
	root := r.admin()
	export := root.call("GET", "/users/"+jane.ID+"/export", nil).want(200, "")
	if !bytes.Contains([]byte(export.body), []byte(`"laptop"`)) || bytes.Contains([]byte(export.body), []byte("publicKey")) {
		t.Errorf("export: %s", export.body)
	}
	root.call("DELETE", "/users/"+jane.ID, nil, "If-Match", "*").want(204, "")
	b := r.browser(home)
	o := b.begin(obj{})
	b.finish(o, a.get(o)).want(401, "passkey_refused")
}
