package tunnel

import (
	"context"
)

// Dial opens a tunnel to a core: over the transport named in cfg, or racing
// QUIC against wss and keeping the first that stands.
func Dial(ctx context.Context, cfg DialConfig) (Session, error) {
	timeout := cfg.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return dialWSS(ctx, cfg)
}
