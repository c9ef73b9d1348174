package nft

import (
	"testing"

	"caponier/shared/wire"
)

func TestPassesOnlyWhatIsGranted(t *testing.T) {
	r := newRig(t)
	r.echo("target", targetAddr+":502")
	r.echo("target", targetAddr+":503")
	tab := r.start()
	r.blocked(clientAddr, "tcp", targetAddr+":502")
	r.apply(tab, []wire.RouterSession{session(t, "s1", clientAddr, "10.20.0.0/24 tcp 502")})
	t.Log(r.run("router", "nft", "list", "table", "inet", "caponier"))
	r.passes(clientAddr, "tcp", targetAddr+":502")
	r.blocked(clientAddr, "tcp", targetAddr+":503")
	r.blocked(otherAddr, "tcp", targetAddr+":502")
}
