package user

import (
	"context"
	"encoding/json"
	"net/http"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

// Bounds of what the console may keep for a user.
const (
	maxPreferences = 40
	maxPreference  = 16 << 10 // bytes of JSON
)

const (
	sqlPreferences      = `select name, value from user_preferences where user_id = $1 order by name`
	sqlPreferencePut    = `insert into user_preferences (user_id, name, value) values ($1, $2, $3) on conflict (user_id, name) do update set value = excluded.value`
	sqlPreferenceCount  = `select count(*) from user_preferences where user_id = $1 and name <> $2`
	sqlPreferencesErase = `delete from user_preferences where user_id = $1`
)

type preferencesOutput struct {
	Body struct {
		Values map[string]json.RawMessage `json:"values"`
	}
}

type preferenceInput struct {
	Name string `path:"name" maxLength:"40" pattern:"^[a-z][a-z0-9._-]*$"`
	Body struct {
		Value json.RawMessage `json:"value" doc:"Any JSON value."`
	}
}

// preferenceRoutes keep small things of the console for a user, such as his
// favourite targets. They are no settings: nothing in core acts on them.
func (s *Service) preferenceRoutes(f *api.Frame) {
	api.Register(f, api.Op{Method: http.MethodGet, Path: "/me/preferences", ID: "list-preferences", Tag: "users", Who: api.Self(),
		Summary: "What the console keeps for you"}, s.handlePreferences)
	api.Register(f, api.Op{Method: http.MethodPut, Path: "/me/preferences/{name}", ID: "set-preference", Tag: "users", Who: api.Self(),
		MaxBody: 2 * maxPreference, Summary: "Keep one value for you; null forgets it"}, s.handleSetPreference)
}

func (s *Service) preferences(ctx context.Context, q db.Querier, userID string) (map[string]json.RawMessage, error) {
	type row struct{ name, value string }
	rows, err := query(ctx, q, func(r scanner) (row, error) {
		var x row
		return x, r.Scan(&x.name, &x.value)
	}, sqlPreferences, userID)
	if err != nil {
		return nil, err
	}
	out := make(map[string]json.RawMessage, len(rows))
	for _, r := range rows {
		out[r.name] = json.RawMessage(r.value)
	}
	return out, nil
}

func (s *Service) handlePreferences(ctx context.Context, _ *struct{}) (out *preferencesOutput, err error) {
	out = &preferencesOutput{}
	out.Body.Values, err = s.preferences(ctx, s.db, api.PrincipalFrom(ctx).UserID)
	return out, err
}

func (s *Service) handleSetPreference(ctx context.Context, in *preferenceInput) (*struct{}, error) {
	value := string(in.Body.Value)
	if len(value) > maxPreference {
		return nil, api.Invalid(api.FieldError{Field: "body.value", Message: "is longer than 16 KiB"})
	}
	if value == "" {
		value = "null"
	}
	userID := api.PrincipalFrom(ctx).UserID
	return nil, s.db.Tx(ctx, func(tx *db.Tx) error {
		var others int
		if err := tx.QueryRowContext(ctx, sqlPreferenceCount, userID, in.Name).Scan(&others); err != nil {
			return err
		}
		if others >= maxPreferences {
			return api.Conflict("too_many", "At most 40 values are kept for a user.")
		}
		if _, err := tx.ExecContext(ctx, sqlPreferencePut, userID, in.Name, value); err != nil {
			return err
		}
		return tx.Notify(ctx, "preference", userID)
	})
}
