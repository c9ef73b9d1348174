package signin

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/vault"
)

const (
	sqlSpend      = `insert into spent_proofs (hash, expires_at) values ($1, $2)`
	sqlSpentPurge = `delete from spent_proofs where expires_at < $1`
)

// envelope is what a browser keeps for us, sealed.
type envelope struct {
	Expires time.Time       `json:"e"`
	Value   json.RawMessage `json:"v"`
}

// errStale is a sealed state that is expired, used, or not ours: begin again.
var errStale = &api.Problem{Status: 409, Title: "This sign-in took too long or was used before.", Code: "sign_in_stale", Detail: "Begin again."}

func statePlace(kind string) vault.Place {
	return vault.Place{Table: "signin", Column: "state", Row: kind}
}

// sealState seals v for the browser to bring back within life. States of one
// kind cannot be used as another.
func (s *Service) sealState(kind string, v any, life time.Duration) (string, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("seal %s: %w", kind, err)
	}
	text, err := json.Marshal(envelope{s.now().Add(life), value})
	if err != nil {
		return "", fmt.Errorf("seal %s: %w", kind, err)
	}
	b, err := s.sealer.Seal(statePlace(kind), text)
	if err != nil {
		return "", fmt.Errorf("seal %s: %w", kind, err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

// openState reads what sealState made; errStale if it cannot be used.
func (s *Service) openState(kind, text string, v any) error {
	if len(text) > 8<<10 {
		return errStale
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return errStale
	}
	plain, err := s.sealer.Open(statePlace(kind), b)
	if err != nil {
		return errStale
	}
	var e envelope
	if err := json.Unmarshal(plain, &e); err != nil {
		return errStale
	}
	if !s.now().Before(e.Expires) {
		return errStale
	}
	if err := json.Unmarshal(e.Value, v); err != nil {
		return errStale
	}
	return nil
}

// spend uses a sealed state up: it works once, whichever core it comes to.
func (s *Service) spend(ctx context.Context, q db.Querier, text string, life time.Duration) error {
	h := sha256.Sum256([]byte(text))
	_, err := q.ExecContext(ctx, sqlSpend, hex.EncodeToString(h[:]), s.now().Add(life).UnixMicro())
	if errors.Is(db.Classify(err), db.ErrConflict) {
		return errStale
	}
	if err != nil {
		return fmt.Errorf("use a challenge up: %w", err)
	}
	return nil
}
