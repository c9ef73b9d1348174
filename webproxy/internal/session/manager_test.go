package session

import (
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"caponier/shared/tunnel"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// A webproxy that cannot issue certificates takes no session, so that core
// finds another; one it has keeps getting its rules.
func TestPutWhileItCannotServe(t *testing.T) {
	var problem atomic.Value
	problem.Store("no issuing certificate yet")
	m := NewManager(Config{Max: 2, Address: "proxy.test:18443", Problem: func() string { return problem.Load().(string) }, Resolver: net.DefaultResolver,
		System: x509.NewCertPool(), Log: slog.New(slog.DiscardHandler), Tunnel: func() tunnel.Session { return nil }})
	t.Cleanup(func() { m.End(t.Context(), "con_1") })
	rules, err := json.Marshal(webrule.Policy{Own: true})
	if err != nil {
		t.Fatal(err)
	}
	put := func(revision uint64) wire.WebAck {
		return m.Put(wire.WebProxySession{ID: "con_1", Revision: revision, StartURL: "https://wiki.example/", Key: strings.Repeat("k", 43), Policy: rules})
	}
	if ack := put(1); ack.Error == nil || ack.Error.Code != wire.CodeLimit || m.Find("con_1") != nil {
		t.Errorf("%+v while it cannot serve", ack)
	}
	problem.Store("")
	if ack := put(2); ack.Error != nil || m.Find("con_1") == nil {
		t.Errorf("%+v when it can", ack)
	}
	problem.Store("the issuing certificate has run out")
	if ack := put(3); ack.Error != nil || ack.Revision != 3 {
		t.Errorf("%+v for a session it has", ack)
	}
}
