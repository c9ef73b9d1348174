package recording

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
)

type ListIn struct {
	api.PageIn
	Connection string    `query:"connection" maxLength:"64"`
	User       string    `query:"user" maxLength:"64" doc:"user id or name"`
	Target     string    `query:"target" maxLength:"64" doc:"target id or name"`
	Account    string    `query:"account" maxLength:"128"`
	Kind       string    `query:"kind" maxLength:"16"`
	Status     string    `query:"status" enum:"recording,complete,incomplete,damaged,expired"`
	Group      string    `query:"group" maxLength:"64" doc:"access group"`
	From       time.Time `query:"from" doc:"started at or after"`
	To         time.Time `query:"to" doc:"started before"`
}

type listOut struct{ Body api.Page[*Recording] }

type searchAllIn struct {
	ListIn
	Query string `query:"q" required:"true" minLength:"1" maxLength:"200" doc:"text to find in transcripts, ignoring case"`
}

// Found is a recording and the places in it where a search matched.
type Found struct {
	Recording *Recording `json:"recording"`
	Hits      []Hit      `json:"hits"`
}

type searchAllOut struct {
	Body struct {
		api.Page[Found]
		// Searched says how many recordings the search has read; when more
		// could match, next goes on from there.
		Searched int `json:"searched,omitempty"`
	}
}

// Bounds of one search over many recordings.
const (
	searchMost  = 500
	searchFor   = 8 * time.Second
	hitsPerItem = 20
)

type position struct {
	At int64  `json:"a"`
	ID string `json:"i"`
}

// query builds the list query of what p may see.
func (s *Store) query(ctx context.Context, p *api.Principal, in *ListIn, readable bool, after position, limit int) (string, []any, error) {
	var where []string
	var args []any
	add := func(cond string, vs ...any) {
		for _, v := range vs {
			args = append(args, v)
			cond = strings.Replace(cond, "?", "$"+strconv.Itoa(len(args)), 1)
		}
		where = append(where, cond)
	}
	if !p.Can(api.RecordingsView) {
		var either []string
		var vs []any
		if scope := p.Scope(api.RecordingsView); !scope.Nowhere() {
			either, vs = append(either, "? like '%,' || group_id || ',%'"), append(vs, scope.Text())
		}
		if s.cfg.Limits().OwnView {
			either, vs = append(either, "user_id = ?"), append(vs, p.UserID)
		}
		if s.cfg.RolesOf != nil {
			roles, err := s.cfg.RolesOf(ctx, p.UserID)
			if err != nil {
				return "", nil, fmt.Errorf("read roles of %s: %w", p.UserID, err)
			}
			for _, r := range roles[:min(len(roles), 200)] {
				either = append(either, "exists (select 1 from recording_roles g where g.recording_id = recordings.id and g.role_id = ?)")
				vs = append(vs, r)
			}
		}
		if len(either) == 0 {
			either = []string{"1 = 0"}
		}
		add("("+strings.Join(either, " or ")+")", vs...)
	}
	for _, c := range []struct{ cond, v string }{
		{"connection_id = ?", in.Connection}, {"account = ?", in.Account}, {"kind = ?", in.Kind}, {"status = ?", in.Status}, {"group_id = ?", in.Group},
	} {
		if c.v != "" {
			add(c.cond, c.v)
		}
	}
	if in.User != "" {
		add("(user_id = ? or user_name = ?)", in.User, in.User)
	}
	if in.Target != "" {
		add("(target_id = ? or target_name = ?)", in.Target, in.Target)
	}
	if !in.From.IsZero() {
		add("started_at >= ?", in.From.UnixMicro())
	}
	if !in.To.IsZero() {
		add("started_at < ?", in.To.UnixMicro())
	}
	if readable {
		add("status <> ?", string(Expired))
	}
	if after.ID != "" {
		add("(started_at < ? or started_at = ? and id < ?)", after.At, after.At, after.ID)
	}
	q := `select ` + columns + ` from recordings`
	if len(where) > 0 {
		q += " where " + strings.Join(where, " and ")
	}
	args = append(args, limit)
	return q + " order by started_at desc, id desc limit $" + strconv.Itoa(len(args)), args, nil
}

func (s *Store) handleList(ctx context.Context, in *ListIn) (*listOut, error) {
	p := api.PrincipalFrom(ctx)
	var after position
	if err := api.DecodeCursor(in.Cursor, &after); err != nil {
		return nil, err
	}
	q, args, err := s.query(ctx, p, in, false, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	rs, err := s.list(ctx, s.cfg.DB, q, args...)
	if err != nil {
		return nil, err
	}
	return &listOut{Body: api.Paged(rs, in.Limit, at)}, nil
}

// at is the sort key of r in lists.
func at(r *Recording) any { return position{At: r.StartedAt.UnixMicro(), ID: r.ID} }

func (s *Store) handleSearchAll(ctx context.Context, in *searchAllIn) (*searchAllOut, error) {
	p := api.PrincipalFrom(ctx)
	var after position
	if err := api.DecodeCursor(in.Cursor, &after); err != nil {
		return nil, err
	}
	out := &searchAllOut{}
	q, args, err := s.query(ctx, p, &in.ListIn, true, after, searchMost+1)
	if err != nil {
		return nil, err
	}
	rs, err := s.list(ctx, s.cfg.DB, q, args...)
	if err != nil {
		return nil, err
	}
	out.Body.Items = []Found{}
	until := time.Now().Add(searchFor)
	for i, r := range rs {
		if i == searchMost || len(out.Body.Items) == in.Limit || i > 0 && time.Now().After(until) {
			out.Body.Next = api.EncodeCursor(at(rs[i-1]))
			break
		}
		out.Body.Searched++
		hits, err := s.Search(ctx, r, in.Query, 0, hitsPerItem)
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			// One unreadable recording does not hide the others.
			s.cfg.Log.Warn("recording not searched", "recording", r.ID, "err", err)
			continue
		}
		if len(hits) > 0 {
			out.Body.Items = append(out.Body.Items, Found{Recording: r, Hits: hits})
		}
	}
	if err := s.note(ctx, audit.RecordingSearched, p, &Recording{}, map[string]string{
		"searched": strconv.Itoa(out.Body.Searched), "found": strconv.Itoa(len(out.Body.Items)),
	}); err != nil {
		return nil, err
	}
	return out, nil
}
