package target

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

const (
	siteColumns = `id, name, comment, group_id, created_at, version`

	sqlSiteByName = `select ` + siteColumns + ` from sites where name = $1`
	sqlSites      = `select ` + siteColumns + ` from sites where name > $1
 and ($2 = '*' or $2 like '%,' || group_id || ',%') and ($3 = '' or group_id = $3) order by name limit $4`
	sqlSiteInsert = `insert into sites (id, name, comment, group_id, created_at, version) values ($1, $2, $3, $4, $5, 1)`
	sqlSiteUpdate = `update sites set comment = $1, group_id = $2, version = version + 1 where name = $3 and version = $4`
	sqlSiteDelete = `delete from sites where name = $1`
	// A web target also uses the sites that its rules lead through: who makes
	// a site of the same name anew must not be led to.
	siteUsed     = ` from targets where site = $1 or web like '%"site":"' || $1 || '"%'`
	sqlSiteUses  = `select name` + siteUsed + ` order by name limit 10`
	sqlSiteCount = `select count(*)` + siteUsed
)

const (
	targetColumns = `t.id, t.name, t.kind, coalesce(t.site, ''), t.host, t.port, t.comment, t.tags, t.disabled,
 t.machine_id, t.origin, t.host_key_policy, t.host_key_ca, t.ssh_algorithms, t.network, t.web, t.group_id, t.created_at, t.updated_at, t.version`

	sqlTargetByID      = `select ` + targetColumns + ` from targets t where t.id = $1`
	sqlTargetByName    = `select ` + targetColumns + ` from targets t where t.name = $1`
	sqlTargetByAddress = `select ` + targetColumns + ` from targets t
 where t.host = $1 and ($2 = 0 or t.port = $2) and ($3 = '' or t.site = $3) order by t.name limit $4`
	sqlTargetByMachine = `select ` + targetColumns + ` from targets t where coalesce(t.site, '') = $1 and t.machine_id = $2`
	sqlTargetAdoptable = `select ` + targetColumns + ` from targets t
 where coalesce(t.site, '') = $1 and t.host = $2 and t.port = $3 and t.kind = 'ssh' and t.machine_id = '' order by t.name limit 1`
	sqlTargets = `select ` + targetColumns + ` from targets t
 where t.name > $1
   and ($2 = '' or substr(t.name, 1, length($2)) = $2)
   and ($3 = '' or t.name like $3 escape '\' or t.host like $3 escape '\')
   and ($4 = '' or t.site = $4)
   and ($5 = '' or t.kind = $5)
   and ($6 = '' or t.id in (select target_id from target_tags where tag = $6))
   and ($7 = '*' or $7 like '%,' || t.group_id || ',%')
   and ($8 = '' or t.group_id = $8)
 order by t.name limit $9`
	sqlTargetInsert = `insert into targets (id, name, kind, site, host, port, comment, tags, disabled, machine_id,
 origin, host_key_policy, host_key_ca, ssh_algorithms, network, web, group_id, created_at, updated_at, version) values `
	sqlTargetUpdate = `update targets set name = $1, kind = $2, site = $3, host = $4, port = $5, comment = $6, tags = $7,
 disabled = $8, machine_id = $9, host_key_policy = $10, host_key_ca = $11, ssh_algorithms = $12, network = $13, web = $14,
 group_id = $15, updated_at = $16, version = version + 1 where id = $17 and version = $18`
	sqlTargetDelete = `delete from targets where id = $1`
	sqlTagsDelete   = `delete from target_tags where target_id = $1`
	sqlTagInsert    = `insert into target_tags (tag, target_id) values `
)

const (
	accountColumns = `id, target_id, name, auth, secret_id, features, disabled, version`

	sqlAccounts      = `select ` + accountColumns + ` from target_accounts where target_id = $1 order by name`
	sqlAccountByID   = `select ` + accountColumns + ` from target_accounts where target_id = $1 and id = $2`
	sqlAccountByName = `select ` + accountColumns + ` from target_accounts where target_id = $1 and name = $2`
	sqlAccountCount  = `select count(*) from target_accounts where target_id = $1`
	sqlAccountInsert = `insert into target_accounts (id, target_id, name, auth, secret_id, features, disabled, created_at, version) values `
	sqlAccountUpdate = `update target_accounts set name = $1, auth = $2, secret_id = $3, features = $4, disabled = $5,
 version = version + 1 where id = $6 and version = $7`
	sqlAccountDelete = `delete from target_accounts where id = $1`
	sqlSecretUses    = `select t.name, a.name from target_accounts a join targets t on t.id = a.target_id
 where a.secret_id = $1 and a.secret_id <> '' and ($2 = '*' or $2 like '%,' || t.group_id || ',%') order by t.name, a.name limit 10`
	sqlSecretUsed = `select count(*) from target_accounts where secret_id = $1 and secret_id <> ''`
)

const (
	hostKeyColumns = `target_id, fingerprint, algorithm, public_key, state, seen_at, decided_by`

	sqlHostKeys      = `select ` + hostKeyColumns + ` from target_host_keys where target_id = $1 order by state, algorithm, fingerprint`
	sqlHostKeyInsert = `insert into target_host_keys (` + hostKeyColumns + `) values ($1, $2, $3, $4, $5, $6, $7)`
	sqlHostKeyState  = `update target_host_keys set state = $1, decided_by = $2 where target_id = $3 and fingerprint = $4`
	sqlHostKeyDelete = `delete from target_host_keys where target_id = $1 and fingerprint = $2`
)

const (
	grantColumns = `g.id, g.role_id, coalesce(g.target_id, ''), coalesce(g.tag, ''), g.accounts, g.features, g.time_window,
 g.sources, g.require_mfa, g.require_reason, g.no_recording, g.max_duration, g.idle, g.disabled, g.comment, g.created_at, g.version,
 coalesce((select r.group_id from roles r where r.id = g.role_id), ''), coalesce((select o.group_id from targets o where o.id = g.target_id), '')`

	sqlGrantByID = `select ` + grantColumns + ` from grants g where g.id = $1`
	sqlGrants    = `select ` + grantColumns + ` from grants g
 where g.id > $1 and ($2 = '' or g.role_id = $2) and ($3 = '' or g.target_id = $3) and ($4 = '' or g.tag = $4)
   and ($5 = '*' or $5 like '%,' || coalesce((select o.group_id from targets o where o.id = g.target_id),
     (select r.group_id from roles r where r.id = g.role_id)) || ',%')
 order by g.id limit $6`
	sqlGrantInsert = `insert into grants (id, role_id, target_id, tag, accounts, features, time_window, sources,
 require_mfa, require_reason, no_recording, max_duration, idle, disabled, comment, created_at, version)
 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 1)`
	sqlGrantUpdate = `update grants set role_id = $1, target_id = $2, tag = $3, accounts = $4, features = $5, time_window = $6,
 sources = $7, require_mfa = $8, require_reason = $9, no_recording = $10, max_duration = $11, idle = $12, disabled = $13,
 comment = $14, version = version + 1 where id = $15 and version = $16`
	sqlGrantDelete = `delete from grants where id = $1`
)

// What follows reads candidates for many targets at once; %s is a list of
// placeholders (see marks).
const (
	sqlReachable = `select ` + targetColumns + ` from targets t
 where t.id in (
   select g.target_id from grants g where g.role_id in (%[1]s) and g.target_id is not null
   union
   select tt.target_id from grants g join target_tags tt on tt.tag = g.tag where g.role_id in (%[1]s) and g.tag is not null)
   and t.name > $1
   and ($2 = '' or t.name like $2 escape '\' or t.host like $2 escape '\')
   and ($4 = '' or t.kind = $4) and ($5 = '' or t.site = $5)%[2]s
 order by t.name limit $3`
	sqlGrantsOf = `select ` + grantColumns + ` from grants g where g.target_id = $1%[1]s
 union all
 select ` + grantColumns + ` from target_tags tt join grants g on g.tag = tt.tag where tt.target_id = $1%[1]s`
	sqlAccountsOf    = `select ` + accountColumns + ` from target_accounts where target_id in (%[1]s) order by target_id, name`
	sqlGrantsOfRoles = `select ` + grantColumns + ` from grants g where g.role_id in (%[1]s)`
	sqlNamesTaken    = `select name, id, version, group_id from targets where name in (%[1]s)`
)

// maxRows bounds what one statement asks for at once.
const maxRows = 200

// marks is "$n, $n+1, …" for count values.
func marks(n, count int) string {
	var b strings.Builder
	for i := range count {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n + i))
	}
	return b.String()
}

// maxArgs bounds the values of one insert: SQLite takes quadratic time to
// read many numbered placeholders.
const maxArgs = 256

// insertRows inserts rows of equal width with few statements.
func insertRows(ctx context.Context, tx *db.Tx, insert string, rows [][]any) error {
	if len(rows) == 0 {
		return nil
	}
	n := min(len(rows), max(1, maxArgs/len(rows[0])))
	st, err := tx.PrepareContext(ctx, insert+values(n, len(rows[0])))
	if err != nil {
		return err
	}
	defer st.Close()
	for ; len(rows) >= n; rows = rows[n:] {
		if _, err := st.ExecContext(ctx, slices.Concat(rows[:n]...)...); err != nil {
			return err
		}
	}
	if len(rows) > 0 {
		_, err = tx.ExecContext(ctx, insert+values(len(rows), len(rows[0])), slices.Concat(rows...)...)
	}
	return err
}

// values is "($1, $2), ($3, $4)" for rows of a width.
func values(rows, width int) string {
	list := make([]string, rows)
	for i := range list {
		list[i] = "(" + marks(1+i*width, width) + ")"
	}
	return strings.Join(list, ", ")
}

// exactly turns the result of a guarded write into a conflict when it wrote
// nothing: somebody else changed the row since it was read.
func exactly(r sql.Result, err error) error {
	if err != nil {
		return db.Classify(err)
	}
	n, err := r.RowsAffected()
	if err != nil {
		return err
	}
	if n != 1 {
		return api.Conflict("changed", "It was changed meanwhile. Read it again and repeat.")
	}
	return nil
}

func micros(t time.Time) int64 { return t.UnixMicro() }

func fromMicros(us int64) time.Time { return time.UnixMicro(us).UTC() }

func nullable(s string) sql.NullString { return sql.NullString{String: s, Valid: s != ""} }

// contains is the pattern of a like that finds text anywhere.
func contains(text string) string {
	if text == "" {
		return ""
	}
	return "%" + strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(strings.ToLower(text)) + "%"
}

func scanSite(r db.Scanner) (Site, error) {
	var s Site
	var created int64
	err := r.Scan(&s.ID, &s.Name, &s.Comment, &s.Group, &created, &s.Version)
	s.CreatedAt = fromMicros(created)
	return s, db.Classify(err)
}

func scanTarget(r db.Scanner) (Target, error) {
	var t Target
	var tags, network, web string
	var created, updated int64
	err := r.Scan(&t.ID, &t.Name, &t.Kind, &t.Site, &t.Host, &t.Port, &t.Comment, &tags, &t.Disabled,
		&t.MachineID, &t.Origin, &t.HostKeyPolicy, &t.HostKeyCA, &t.SSHAlgorithms, &network, &web, &t.Group, &created, &updated, &t.Version)
	if err != nil {
		return t, db.Classify(err)
	}
	if t.Network, err = readNetwork(network); err != nil {
		return t, fmt.Errorf("network of target %s: %w", t.ID, err)
	}
	if t.Web, err = readWeb(web); err != nil {
		return t, fmt.Errorf("web of target %s: %w", t.ID, err)
	}
	if tags != "[]" {
		if err := json.Unmarshal([]byte(tags), &t.Tags); err != nil {
			return t, fmt.Errorf("tags of target %s: %w", t.ID, err)
		}
	}
	t.CreatedAt, t.UpdatedAt = fromMicros(created), fromMicros(updated)
	return t, nil
}

func (t *Target) row() []any {
	return []any{t.ID, t.Name, string(t.Kind), nullable(t.Site), t.Host, t.Port, t.Comment, tagsJSON(t.Tags), t.Disabled,
		t.MachineID, t.Origin, string(t.HostKeyPolicy), t.HostKeyCA, t.SSHAlgorithms, t.networkJSON(), t.webJSON(), t.Group,
		micros(t.CreatedAt), micros(t.UpdatedAt), int64(1)}
}

func tagsJSON(tags []string) string {
	if len(tags) == 0 {
		return "[]"
	}
	return toJSON(tags)
}

func scanAccount(r db.Scanner) (Account, error) {
	var a Account
	err := r.Scan(&a.ID, &a.TargetID, &a.Name, &a.Auth, &a.SecretID, &a.Features, &a.Disabled, &a.Version)
	return a, db.Classify(err)
}

func (a *Account) row(now time.Time) []any {
	return []any{a.ID, a.TargetID, a.Name, string(a.Auth), a.SecretID, int64(a.Features), a.Disabled, micros(now), int64(1)}
}

func scanHostKey(r db.Scanner) (HostKey, error) {
	var k HostKey
	var seen int64
	err := r.Scan(&k.TargetID, &k.Fingerprint, &k.Algorithm, &k.Key, &k.State, &seen, &k.DecidedBy)
	k.SeenAt = fromMicros(seen)
	return k, db.Classify(err)
}

func scanGrant(r db.Scanner) (Grant, error) {
	var g Grant
	var accounts, window, sources string
	var created, maxDuration, idle int64
	err := r.Scan(&g.ID, &g.Role, &g.Target, &g.Tag, &accounts, &g.Features, &window, &sources, &g.RequireMFA,
		&g.RequireReason, &g.NoRecording, &maxDuration, &idle, &g.Disabled, &g.Comment, &created, &g.Version, &g.Group, &g.targetGroup)
	if err != nil {
		return g, db.Classify(err)
	}
	if accounts == `["*"]` {
		g.Accounts = []string{"*"}
	} else if err := json.Unmarshal([]byte(accounts), &g.Accounts); err != nil {
		return g, fmt.Errorf("accounts of grant %s: %w", g.ID, err)
	}
	if window != "{}" {
		if err := json.Unmarshal([]byte(window), &g.Window); err != nil {
			return g, fmt.Errorf("window of grant %s: %w", g.ID, err)
		}
	}
	if sources != "[]" {
		if err := json.Unmarshal([]byte(sources), &g.Sources); err != nil {
			return g, fmt.Errorf("sources of grant %s: %w", g.ID, err)
		}
	}
	g.MaxDuration, g.Idle = time.Duration(maxDuration)*time.Microsecond, time.Duration(idle)*time.Microsecond
	g.CreatedAt = fromMicros(created)
	return g, nil
}

// values are the columns of a grant after its ID, in the order of sqlGrantUpdate.
func (g *Grant) values() []any {
	accounts, sources := g.Accounts, g.Sources
	if accounts == nil {
		accounts = []string{}
	}
	if sources == nil {
		sources = []netip.Prefix{}
	}
	return []any{g.Role, nullable(g.Target), nullable(g.Tag), toJSON(accounts), int64(g.Features), toJSON(g.Window),
		toJSON(sources), g.RequireMFA, g.RequireReason, g.NoRecording,
		g.MaxDuration.Microseconds(), g.Idle.Microseconds(), g.Disabled, g.Comment}
}

func accessGrants(gs []Grant) []access.Grant {
	out := make([]access.Grant, len(gs))
	for i := range gs {
		out[i] = gs[i].Grant
	}
	return out
}
