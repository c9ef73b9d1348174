package settings

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
)

// Value is a setting as the API shows it.
type Value struct {
	Name            string    `json:"name" example:"session.idle"`
	Section         string    `json:"section" example:"session"`
	Value           any       `json:"value"`
	Default         any       `json:"default"`
	RestartRequired bool      `json:"restart_required" doc:"A change acts only after core was restarted."`
	ChangedAt       time.Time `json:"changed_at,omitzero"`
	ChangedBy       string    `json:"changed_by,omitempty"`
}

// Schema is a setting's description as the API shows it.
type Schema struct {
	Name            string   `json:"name"`
	Section         string   `json:"section"`
	Scope           string   `json:"scope" enum:"fleet" doc:"All settings hold for every core of the fleet."`
	Type            string   `json:"type" enum:"integer,duration,boolean,string,networks,names"`
	Description     string   `json:"description"`
	Default         any      `json:"default"`
	Minimum         any      `json:"minimum,omitempty"`
	Maximum         any      `json:"maximum,omitempty"`
	Enum            []string `json:"enum,omitempty"`
	RestartRequired bool     `json:"restart_required"`
}

type listOutput struct {
	ETag string `header:"ETag"`
	Body struct {
		Items []Value `json:"items"`
		// RestartRequired is set in the answer to a change.
		RestartRequired bool `json:"restart_required" doc:"In the answer to a change: one of the changed settings acts only after a restart."`
	}
}

type schemaOutput struct {
	Body struct {
		Items []Schema `json:"items"`
	}
}

type putInput struct {
	IfMatch string `header:"If-Match"`
	Body    struct {
		Values map[string]json.RawMessage `json:"values" doc:"New values by name; null goes back to the default. Settings not named stay."`
	}
}

// Routes registers the room's operations.
func (s *Service) Routes(f *api.Frame) {
	api.Register(f, api.Op{Method: http.MethodGet, Path: "/settings", ID: "list-settings",
		Summary: "List all settings with their values", Tag: "settings", Who: api.Needs(api.SettingsView)}, s.handleList)
	api.Register(f, api.Op{Method: http.MethodGet, Path: "/settings/schema", ID: "describe-settings",
		Summary: "Describe all settings: type, limits, default", Tag: "settings", Who: api.Needs(api.SettingsView)}, s.handleSchema)
	api.Register(f, api.Op{Method: http.MethodPut, Path: "/settings", ID: "change-settings",
		Summary: "Change settings, all named ones or none", Tag: "settings", Who: api.Needs(api.SettingsManage)}, s.handlePut)
}

func (s *Service) handleList(ctx context.Context, _ *struct{}) (*listOutput, error) {
	if err := s.Reload(ctx); err != nil {
		return nil, err
	}
	return s.listing(), nil
}

func (s *Service) listing() *listOutput {
	snap := s.current.Load()
	out := &listOutput{ETag: api.ETag(snap.version)}
	for _, d := range All() {
		v := Value{Name: d.Name, Section: section(d.Name), Value: d.Default, Default: d.Default, RestartRequired: d.RestartRequired}
		if r, ok := snap.raw[d.Name]; ok {
			v.Value = json.RawMessage(r.value)
			v.ChangedAt, v.ChangedBy = time.UnixMicro(r.changedAt).UTC(), r.changedBy
		}
		out.Body.Items = append(out.Body.Items, v)
	}
	return out
}

func (s *Service) handleSchema(context.Context, *struct{}) (*schemaOutput, error) {
	out := &schemaOutput{}
	for _, d := range All() {
		out.Body.Items = append(out.Body.Items, Schema{
			Name: d.Name, Section: section(d.Name), Scope: "fleet", Type: d.Type, Description: d.Description,
			Default: d.Default, Minimum: d.Minimum, Maximum: d.Maximum, Enum: d.Enum, RestartRequired: d.RestartRequired,
		})
	}
	return out, nil
}

func (s *Service) handlePut(ctx context.Context, in *putInput) (*listOutput, error) {
	version := s.current.Load().version
	if err := api.CheckMatch(in.IfMatch, version); err != nil {
		// Another core may have moved on; only the stored version decides.
		if rerr := s.Reload(ctx); rerr != nil {
			return nil, rerr
		}
		version = s.current.Load().version
		if err := api.CheckMatch(in.IfMatch, version); err != nil {
			return nil, err
		}
	}
	restart, err := s.Change(ctx, audit.By(api.PrincipalFrom(ctx)), version, in.Body.Values)
	if err != nil {
		return nil, err
	}
	out := s.listing()
	out.Body.RestartRequired = restart
	return out, nil
}
