package conn

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Routes registers the room's operations. Users see and end their own
// connections, others need a permission.
func (m *Manager) Routes(f *api.Frame) {
	const tag = "connections"
	api.Register(f, api.Op{
		Method: "GET", Path: "/connections", ID: "list-connections", Tag: tag, Who: api.Self(),
		Summary: "Search connections, newest first",
	}, m.handleList)
	api.Register(f, api.Op{
		Method: "GET", Path: "/connections/{id}", ID: "get-connection", Tag: tag, Who: api.Self(), Summary: "Show a connection",
	}, m.handleGet)
	api.Register(f, api.Op{
		Method: "GET", Path: "/connections/{id}/channels", ID: "list-connection-channels", Tag: tag, Who: api.Self(),
		Summary: "List what happened inside a connection: shells, commands, file operations, forwards",
	}, m.handleChannels)
	api.Register(f, api.Op{
		Method: "PUT", Path: "/connections/{id}/tags", ID: "set-connection-tags", Tag: tag, Who: api.NeedsSomewhere(api.ConnectionsManage),
		Summary: "Replace the tags of a connection",
	}, m.handleTags)
	api.Register(f, api.Op{
		Method: "DELETE", Path: "/connections/{id}", ID: "terminate-connection", Tag: tag, Who: api.Self(), Status: 204,
		Summary: "End a live connection, on whatever core it runs",
	}, m.handleTerminate)
	api.Register(f, api.Op{
		Method: "POST", Path: "/connections/terminate", ID: "terminate-connections", Tag: tag, Who: api.NeedsSomewhere(api.ConnectionsManage),
		Summary: "End all live connections of a user, to a target, or of both",
	}, m.handleTerminateMany)
	api.Register(f, api.Op{
		Method: "POST", Path: "/connections/{id}/lock", ID: "lock-connection", Tag: tag, Who: api.NeedsSomewhere(api.ConnectionsManage),
		Summary: "Freeze the user's input of a live connection, on whatever core it runs",
	}, m.handleLock)
	api.Register(f, api.Op{
		Method: "POST", Path: "/connections/{id}/unlock", ID: "unlock-connection", Tag: tag, Who: api.NeedsSomewhere(api.ConnectionsManage),
		Summary: "Let input through again and lift the block on new connections",
	}, m.handleUnlock)
	api.Register(f, api.Op{
		Method: "GET", Path: "/connections/{id}/watchers", ID: "list-connection-watchers", Tag: tag, Who: api.NeedsSomewhere(api.ConnectionsView),
		Summary: "List who watches a connection now",
	}, m.handleWatchers)
}

type SearchIn struct {
	api.PageIn
	ID           string    `query:"id" maxLength:"64"`
	Kind         string    `query:"kind" maxLength:"16"`
	State        string    `query:"state" enum:"requested,connecting,connected,disconnecting,disconnected,failed"`
	Live         string    `query:"live" enum:"true,false"`
	Locked       string    `query:"locked" enum:"true,false"`
	User         string    `query:"user" maxLength:"64" doc:"user id or name"`
	Target       string    `query:"target" maxLength:"64" doc:"target id or name"`
	Address      string    `query:"address" maxLength:"300" doc:"address of the target"`
	Account      string    `query:"account" maxLength:"128"`
	Site         string    `query:"site" maxLength:"64"`
	Node         string    `query:"node" maxLength:"64" doc:"edge id or name"`
	Core         string    `query:"core" maxLength:"64"`
	Transport    string    `query:"transport" maxLength:"16"`
	Via          string    `query:"via" maxLength:"16"`
	Source       string    `query:"source" maxLength:"64" doc:"network address of the user"`
	EndReason    string    `query:"end_reason" maxLength:"32"`
	TerminatedBy string    `query:"terminated_by" maxLength:"64" doc:"id or name of who ended it"`
	Recording    string    `query:"recording" maxLength:"64"`
	HasRecording string    `query:"has_recording" enum:"true,false"`
	Role         string    `query:"role" maxLength:"64" doc:"role that allowed it"`
	Grant        string    `query:"grant" maxLength:"64" doc:"grant that allowed it"`
	Tag          string    `query:"tag" maxLength:"64"`
	Group        string    `query:"group" maxLength:"64" doc:"access group"`
	Channel      string    `query:"channel" maxLength:"200" doc:"text in the detail of a channel, for example a command"`
	From         time.Time `query:"from" doc:"requested at or after"`
	To           time.Time `query:"to" doc:"requested before"`
	EndedFrom    time.Time `query:"ended_from"`
	EndedTo      time.Time `query:"ended_to"`
	MinBytes     int64     `query:"min_bytes" minimum:"0" doc:"least bytes in both directions"`
	Text         string    `query:"q" maxLength:"100" doc:"text in the name of user or target, account, address or reason"`
}

type position struct {
	At int64  `json:"a"`
	ID string `json:"i"`
}

// builder collects conditions; each ? becomes the next placeholder.
type builder struct {
	where []string
	args  []any
}

func (b *builder) add(cond string, args ...any) {
	for _, a := range args {
		b.args = append(b.args, a)
		cond = strings.Replace(cond, "?", "$"+strconv.Itoa(len(b.args)), 1)
	}
	b.where = append(b.where, cond)
}

// searchSQL makes the query of a search among the user's own connections and
// those of a scope of access groups.
func searchSQL(in *SearchIn, ownerID string, scope access.Scope, after position, limit int) (string, []any) {
	b := &builder{}
	switch {
	case scope.All():
	case scope.Nowhere():
		b.add("user_id = ?", ownerID)
	default:
		b.add("(user_id = ? or ? like '%,' || group_id || ',%')", ownerID, scope.Text())
	}
	for _, c := range []struct{ cond, value string }{
		{"id = ?", in.ID}, {"kind = ?", in.Kind}, {"state = ?", in.State}, {"target_address = ?", in.Address},
		{"account = ?", in.Account}, {"site = ?", in.Site}, {"core_id = ?", in.Core}, {"transport = ?", in.Transport},
		{"via = ?", in.Via}, {"remote_addr = ?", in.Source}, {"end_reason = ?", in.EndReason}, {"recording_id = ?", in.Recording},
		{"role_id = ?", in.Role}, {"grant_id = ?", in.Grant}, {"group_id = ?", in.Group},
		{"exists (select 1 from connection_tags t where t.connection_id = connections.id and t.tag = ?)", in.Tag},
	} {
		if c.value != "" {
			b.add(c.cond, c.value)
		}
	}
	for _, c := range []struct{ cond, value string }{
		{"(user_id = ? or user_name = ?)", in.User}, {"(target_id = ? or target_name = ?)", in.Target},
		{"(node_id = ? or node_name = ?)", in.Node}, {"(terminated_by_id = ? or terminated_by_name = ?)", in.TerminatedBy},
	} {
		if c.value != "" {
			b.add(c.cond, c.value, c.value)
		}
	}
	switch in.Live {
	case "true":
		b.add(liveStates)
	case "false":
		b.add("state in ('disconnected', 'failed')")
	}
	switch in.Locked {
	case "true":
		b.add("locked_at > 0")
	case "false":
		b.add("locked_at = 0")
	}
	switch in.HasRecording {
	case "true":
		b.add("recording_id <> ''")
	case "false":
		b.add("recording_id = ''")
	}
	for _, c := range []struct {
		cond string
		at   time.Time
	}{
		{"requested_at >= ?", in.From}, {"requested_at < ?", in.To},
		{"ended_at >= ?", in.EndedFrom}, {"ended_at > 0 and ended_at < ?", in.EndedTo},
	} {
		if !c.at.IsZero() {
			b.add(c.cond, c.at.UnixMicro())
		}
	}
	if in.MinBytes > 0 {
		b.add("bytes_in + bytes_out >= ?", in.MinBytes)
	}
	if in.Channel != "" {
		b.add(`exists (select 1 from connection_channels c where c.connection_id = connections.id and lower(c.detail) like ? escape '\')`, like(in.Channel))
	}
	if in.Text != "" {
		t := like(in.Text)
		b.add(`(lower(user_name) like ? escape '\' or lower(target_name) like ? escape '\' or lower(account) like ? escape '\' or lower(target_address) like ? escape '\' or lower(reason) like ? escape '\')`, t, t, t, t, t)
	}
	if after.ID != "" {
		b.add("(requested_at < ? or requested_at = ? and id < ?)", after.At, after.At, after.ID)
	}
	q := `select ` + recordColumns + ` from connections`
	if len(b.where) > 0 {
		q += " where " + strings.Join(b.where, " and ")
	}
	b.args = append(b.args, limit)
	return q + " order by requested_at desc, id desc limit $" + strconv.Itoa(len(b.args)), b.args
}

// like makes a pattern that matches text anywhere, ignoring the case of ASCII.
func like(text string) string {
	return "%" + strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(strings.ToLower(text)) + "%"
}

type listOut struct{ Body api.Page[*Record] }

func (m *Manager) handleList(ctx context.Context, in *SearchIn) (*listOut, error) {
	p := api.PrincipalFrom(ctx)
	owner := p.UserID
	var after position
	if err := api.DecodeCursor(in.Cursor, &after); err != nil {
		return nil, err
	}
	q, args := searchSQL(in, owner, p.Scope(api.ConnectionsView), after, in.Limit+1)
	xs, err := m.records(ctx, m.cfg.DB, q, args...)
	if err != nil {
		return nil, err
	}
	for _, x := range xs {
		x.reduce(p)
	}
	return &listOut{Body: api.Paged(xs, in.Limit, func(x *Record) any {
		return position{At: x.RequestedAt.UnixMicro(), ID: x.ID}
	})}, nil
}

// visible returns a record the caller may see with perm, or because it is his
// own; others are missing to him.
func (m *Manager) visible(ctx context.Context, id string, perm api.Permission) (*Record, *api.Principal, error) {
	p := api.PrincipalFrom(ctx)
	x, err := m.Get(ctx, id)
	if errors.Is(err, db.ErrNotFound) || err == nil && x.UserID != p.UserID && !access.Sees(p.Scope(perm), access.Scope{}, x.Group) {
		return nil, nil, api.Missing("connection", id)
	}
	if err == nil {
		x.reduce(p)
	}
	return x, p, err
}

// reduce takes away what tells of other access groups: the names of all roles
// the user had.
func (x *Record) reduce(p *api.Principal) {
	if x.UserID != p.UserID && !p.Can(api.ConnectionsView) {
		x.UserRoles = []string{}
	}
}

type recordOut struct{ Body *Record }

func (m *Manager) handleGet(ctx context.Context, in *api.IDIn) (*recordOut, error) {
	x, _, err := m.visible(ctx, in.ID, api.ConnectionsView)
	if err != nil {
		return nil, err
	}
	return &recordOut{Body: x}, nil
}

// ChannelEntry is one thing that happened inside a connection.
type ChannelEntry struct {
	Seq    int       `json:"seq"`
	At     time.Time `json:"at"`
	Kind   string    `json:"kind"`
	Detail string    `json:"detail"`
}

type channelsIn struct {
	api.IDIn
	api.PageIn
}

type channelsOut struct{ Body api.Page[ChannelEntry] }

func (m *Manager) handleChannels(ctx context.Context, in *channelsIn) (*channelsOut, error) {
	x, _, err := m.visible(ctx, in.ID, api.ConnectionsView)
	if err != nil {
		return nil, err
	}
	var after struct {
		Seq int `json:"s"`
	}
	if err := api.DecodeCursor(in.Cursor, &after); err != nil {
		return nil, err
	}
	rows, err := m.cfg.DB.QueryContext(ctx, channelsSQL, x.ID, after.Seq, in.Limit+1)
	if err != nil {
		return nil, fmt.Errorf("list channels of %s: %w", x.ID, err)
	}
	defer rows.Close()
	var out []ChannelEntry
	for rows.Next() {
		var e ChannelEntry
		var at int64
		if err := rows.Scan(&e.Seq, &at, &e.Kind, &e.Detail); err != nil {
			return nil, fmt.Errorf("list channels of %s: %w", x.ID, err)
		}
		e.At = db.FromMicro(at)
		out = append(out, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list channels of %s: %w", x.ID, err)
	}
	return &channelsOut{Body: api.Paged(out, in.Limit, func(e ChannelEntry) any {
		after.Seq = e.Seq
		return after
	})}, nil
}

type tagsIn struct {
	api.IDIn
	Body struct {
		Tags []string `json:"tags" maxItems:"32"`
	}
}

var tagPattern = regexp.MustCompile(`^[\pL\pN][\pL\pN ._:=/@-]{0,63}$`)

func (m *Manager) handleTags(ctx context.Context, in *tagsIn) (*recordOut, error) {
	for i, t := range in.Body.Tags {
		if !tagPattern.MatchString(t) {
			return nil, api.Invalid(api.FieldError{
				Field: fmt.Sprintf("tags[%d]", i), Message: "1 to 64 letters, digits, spaces and . _ : = / @ -, beginning with a letter or digit",
			})
		}
	}
	tags := slices.Compact(slices.Sorted(slices.Values(in.Body.Tags)))
	x, p, err := m.visible(ctx, in.ID, api.ConnectionsManage)
	if err != nil {
		return nil, err
	}
	err = m.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := tx.ExecContext(ctx, dropTagsSQL, x.ID); err != nil {
			return err
		}
		for _, t := range tags {
			if _, err := tx.ExecContext(ctx, addTagSQL, x.ID, t); err != nil {
				return err
			}
		}
		if err := api.Notify(ctx, tx, TopicConnection, x.ID, x.Group); err != nil {
			return err
		}
		return m.cfg.Audit.Append(ctx, tx, audit.Event{
			Type: audit.ConnectionTagged, Outcome: audit.OK, Actor: audit.By(p), Connection: x.ID,
			Object: audit.Object{Kind: "connection", ID: x.ID},
			Fields: map[string]string{"old": strings.Join(x.Tags, ","), "new": strings.Join(tags, ",")},
		})
	})
	if err != nil {
		return nil, fmt.Errorf("tag connection %s: %w", x.ID, err)
	}
	x.Tags = tags
	if tags == nil {
		x.Tags = []string{}
	}
	return &recordOut{Body: x}, nil
}

type terminateIn struct {
	api.IDIn
	Reason string `query:"reason" maxLength:"500" doc:"shown to the user"`
}

func (m *Manager) handleTerminate(ctx context.Context, in *terminateIn) (*struct{}, error) {
	x, p, err := m.visible(ctx, in.ID, api.ConnectionsManage)
	if err != nil {
		return nil, err
	}
	reason := in.Reason
	if reason == "" && x.UserID == p.UserID {
		reason = "You closed the connection."
	}
	return nil, ended(m.Terminate(ctx, x.ID, p, reason))
}

// ended makes the answer of an order that came too late.
func ended(err error) error {
	if errors.Is(err, db.ErrConflict) {
		return api.Conflict("ended", "The connection has ended already.")
	}
	return err
}

type terminateManyIn struct {
	Body struct {
		UserID   string `json:"user_id,omitempty" maxLength:"64"`
		TargetID string `json:"target_id,omitempty" maxLength:"64"`
		Reason   string `json:"reason,omitempty" maxLength:"500" doc:"shown to the users"`
	}
}

type terminateManyOut struct {
	Body struct {
		Terminated int `json:"terminated"`
	}
}

func (m *Manager) handleTerminateMany(ctx context.Context, in *terminateManyIn) (*terminateManyOut, error) {
	if in.Body.UserID == "" && in.Body.TargetID == "" {
		return nil, api.Invalid(api.FieldError{Field: "user_id", Message: "name a user, a target or both"})
	}
	out := &terminateManyOut{}
	var err error
	out.Body.Terminated, err = m.TerminateAll(ctx, in.Body.UserID, in.Body.TargetID, api.PrincipalFrom(ctx), in.Body.Reason)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// TerminateAll ends all live connections of a user, to a target, or of the user
// to the target, in the access groups where by manages connections; an empty id
// means any. It returns how many it ended.
func (m *Manager) TerminateAll(ctx context.Context, userID, targetID string, by *api.Principal, public string) (int, error) {
	rows, err := m.cfg.DB.QueryContext(ctx, liveIDsSQL, userID, targetID, by.Scope(api.ConnectionsManage).Text())
	if err != nil {
		return 0, fmt.Errorf("list live connections: %w", err)
	}
	defer rows.Close()
	var ids []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return 0, fmt.Errorf("list live connections: %w", err)
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		return 0, fmt.Errorf("list live connections: %w", err)
	}
	rows.Close()
	n := 0
	for _, id := range ids {
		err := m.Terminate(ctx, id, by, public)
		switch {
		case err == nil:
			n++
		case !errors.Is(err, db.ErrConflict) && !errors.Is(err, db.ErrNotFound):
			return n, err
		}
	}
	return n, nil
}

type lockIn struct {
	api.IDIn
	Body struct {
		Reason   string `json:"reason,omitempty" maxLength:"500" doc:"shown to the user"`
		BlockNew Block  `json:"block_new,omitempty" enum:"none,target,user" default:"none" doc:"new connections of the user to refuse until it is unlocked: none, those to the same target, all"`
	}
}

func (m *Manager) handleLock(ctx context.Context, in *lockIn) (*recordOut, error) {
	x, p, err := m.visible(ctx, in.ID, api.ConnectionsManage)
	if err != nil {
		return nil, err
	}
	if ok, text := MayOversee(p, x.UserID, x.Group, OrderLock); !ok {
		return nil, api.Denied("own_connection", text)
	}
	if in.Body.BlockNew == BlockUser && !p.Can(api.ConnectionsManage) {
		return nil, api.Denied("outside_group", "This would refuse the user connections in other access groups too. Block the target instead.")
	}
	switch err := m.Lock(ctx, x.ID, p, in.Body.Reason, in.Body.BlockNew); {
	case errors.Is(err, ErrNotLockable):
		return nil, api.Conflict("not_lockable", "A connection of this kind cannot be locked; it can be terminated.")
	case errors.Is(err, db.ErrConflict):
		return nil, api.Conflict("not_live", "The connection has ended or is locked already.")
	case err != nil:
		return nil, err
	}
	return m.handleGet(ctx, &in.IDIn)
}

func (m *Manager) handleUnlock(ctx context.Context, in *api.IDIn) (*recordOut, error) {
	x, p, err := m.visible(ctx, in.ID, api.ConnectionsManage)
	if err != nil {
		return nil, err
	}
	if ok, text := MayOversee(p, x.UserID, x.Group, OrderUnlock); !ok {
		return nil, api.Denied("own_connection", text)
	}
	switch err := m.Unlock(ctx, x.ID, p); {
	case errors.Is(err, db.ErrConflict):
		return nil, api.Conflict("not_locked", "The connection is not locked.")
	case err != nil:
		return nil, err
	}
	return m.handleGet(ctx, in)
}

type watchersOut struct {
	Body struct {
		Items []Watcher `json:"items"`
	}
}

func (m *Manager) handleWatchers(ctx context.Context, in *api.IDIn) (*watchersOut, error) {
	if _, _, err := m.visible(ctx, in.ID, api.ConnectionsView); err != nil {
		return nil, err
	}
	ws, err := m.Watchers(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	out := &watchersOut{}
	out.Body.Items = ws
	return out, nil
}
