package wire

import (
	"bytes"
	"testing"
)

// A sealed credential opens with the key of its ask and for that ask only.
func TestWebCredentialSeal(t *testing.T) {
	ask := WebCredentialAsk{Session: "con_1", Injection: "pw", URL: "https://wiki.example/login"}
	key, err := NewWebCredentialKey(&ask)
	if err != nil {
		t.Fatal(err)
	}
	plain := []byte(`{"username":"alice","password":"p\"ä"}`)
	sealed, err := SealWebCredential(ask, plain)
	if err != nil || bytes.Contains(sealed, []byte("alice")) {
		t.Fatalf("sealed %q, %v", sealed, err)
	}
	got, err := key.Open(ask, sealed)
	if want := (WebCredential{Username: "alice", Password: `p"ä`}); err != nil || got != want {
		t.Errorf("opened %q and %q, %v", got.Username, got.Password, err)
	}
	other := ask
	other.Injection = "otp"
	if _, err := key.Open(other, sealed); err == nil {
		t.Error("opened for another injection")
	}
	stranger, err := NewWebCredentialKey(&other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.Open(ask, sealed); err == nil {
		t.Error("opened with another key")
	}
	sealed[len(sealed)-1] ^= 1
	if _, err := key.Open(ask, sealed); err == nil {
		t.Error("opened though it was changed")
	}
	if _, err := SealWebCredential(WebCredentialAsk{SealTo: []byte("short")}, plain); err == nil {
		t.Error("sealed for no key")
	}
}
