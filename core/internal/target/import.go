package target

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/group"
)

// Limits of an import.
const (
	maxImportRows  = 50_000
	maxImportBytes = 32 << 20
	maxImportLine  = 64 << 10
)

// Existing says what an import does with a name that is taken.
type Existing string

// The ways.
const (
	ExistingRefuse Existing = "refuse" // a problem of its line
	ExistingSkip   Existing = "skip"
	ExistingUpdate Existing = "update" // address, comment and tags are replaced, accounts added
)

// ImportOptions of one import.
type ImportOptions struct {
	Existing    Existing // empty = refuse
	CreateSites bool     // make sites that do not exist
	DryRun      bool     // check everything, change nothing
	// Group is the access group of what is made; empty = that of a target's
	// site, else the caller's only one, else the default one.
	Group string
}

// Imported counts what an import did, or would do.
type Imported struct {
	ID      string `json:"id" doc:"appears as origin of the targets made"`
	Created int    `json:"created"`
	Updated int    `json:"updated"`
	Skipped int    `json:"skipped"`
	Sites   int    `json:"sites" doc:"sites made"`
	DryRun  bool   `json:"dry_run"`
}

// ImportRow is one target with its accounts and the line it stands on.
type ImportRow struct {
	Line     int
	Target   Target
	Accounts []Account
}

// ParseCSV reads a table with a header line; the columns are name, kind, site,
// host, port, tags, accounts, comment in any order, of which name and host
// must be there. Tags are separated by spaces or semicolons; an account is
// written name[:auth[:secret]]. It returns what it could read and a problem
// for each line it could not.
func ParseCSV(r io.Reader) ([]ImportRow, []api.FieldError) {
	var p problems
	in := csv.NewReader(r)
	in.TrimLeadingSpace, in.ReuseRecord = true, true
	header, err := in.Read()
	if err != nil {
		p.add("line 1", "a header line is needed, such as name,kind,site,host,port,tags,accounts")
		return nil, p
	}
	columns := slices.Clone(header)
	for i, c := range columns {
		c = strings.ToLower(strings.TrimSpace(strings.TrimPrefix(c, "\ufeff")))
		if !slices.Contains(importColumns, c) {
			p.add("line 1", "unknown column %.40q; there are %s", c, strings.Join(importColumns, ", "))
		}
		if slices.Contains(columns[:i], c) {
			p.add("line 1", "column %.40q is there twice", c)
		}
		columns[i] = c
	}
	for _, must := range []string{"name", "host"} {
		if !slices.Contains(columns, must) {
			p.add("line 1", "column %s is missing", must)
		}
	}
	if len(p) > 0 {
		return nil, p
	}
	var rows []ImportRow
	for {
		record, err := in.Read()
		if err == io.EOF {
			return rows, p
		}
		if e, ok := errors.AsType[*csv.ParseError](err); ok && errors.Is(err, csv.ErrFieldCount) {
			p.add(lineField(e.Line, ""), "has %d fields, the header has %d", len(record), len(columns))
			continue
		} else if ok { // a broken quote: where the next line begins is not known
			p.add(lineField(e.Line, ""), "%s", e.Err)
			return rows, p
		} else if err != nil {
			p.add("body", "cannot be read")
			return rows, p
		}
		line, _ := in.FieldPos(0) // only a record that was read has positions
		if len(rows) == maxImportRows {
			p.add(lineField(line, ""), "more than %d targets; split the file", maxImportRows)
			return rows, p
		}
		rows = append(rows, csvRow(line, columns, record, &p))
	}
}

var importColumns = []string{"name", "kind", "site", "host", "port", "tags", "accounts", "comment"}

func lineField(line int, field string) string {
	if field == "" {
		return "line " + strconv.Itoa(line)
	}
	return "line " + strconv.Itoa(line) + ": " + field
}

func csvRow(line int, columns, record []string, p *problems) ImportRow {
	row := ImportRow{Line: line, Target: Target{Kind: SSH}}
	t := &row.Target
	for i, c := range columns {
		v := strings.Clone(strings.TrimSpace(record[i]))
		switch c {
		case "name":
			t.Name = v
		case "kind":
			if v != "" {
				t.Kind = Kind(v)
			}
		case "site":
			t.Site = v
		case "host":
			t.Host = v
		case "port":
			if v == "" {
				continue
			}
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 || n > 65535 {
				p.add(lineField(line, "port"), "must be 1 to 65535")
				n = 1
			}
			t.Port = n
		case "tags":
			t.Tags = splitList(v)
		case "accounts":
			for _, a := range splitList(v) {
				row.Accounts = append(row.Accounts, parseAccount(a))
			}
		case "comment":
			t.Comment = v
		}
	}
	return row
}

func splitList(v string) []string {
	return strings.FieldsFunc(v, func(r rune) bool { return r == ' ' || r == ';' })
}

func parseAccount(v string) Account {
	name, rest, _ := strings.Cut(v, ":")
	auth, secret, _ := strings.Cut(rest, ":")
	return Account{Name: name, Auth: Auth(auth), SecretID: secret}
}

// ParseLines reads one JSON object per line, in the form targets are created in.
func ParseLines(r io.Reader) ([]ImportRow, []api.FieldError) {
	var p problems
	var rows []ImportRow
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxImportLine)
	line := 0
	for in.Scan() {
		line++
		text := bytes.TrimSpace(in.Bytes())
		if len(text) == 0 {
			continue
		}
		if len(rows) == maxImportRows {
			p.add(lineField(line, ""), "more than %d targets; split the file", maxImportRows)
			return rows, p
		}
		var body NewTarget
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&body); err != nil {
			p.add(lineField(line, ""), "is not a target in JSON: %.200s", err)
			continue
		}
		if d.More() {
			p.add(lineField(line, ""), "more than one JSON value")
			continue
		}
		t, accounts, wrong := body.read()
		for _, w := range wrong {
			p.add(lineField(line, w.Field), "%s", w.Message)
		}
		rows = append(rows, ImportRow{Line: line, Target: t, Accounts: accounts})
	}
	if in.Err() != nil {
		p.add(lineField(line+1, ""), "is longer than %d bytes", maxImportLine)
	}
	return rows, p
}

// Import creates and updates many targets in one transaction: all of them, or
// none and every problem with its line.
func (s *Service) Import(ctx context.Context, format string, body []byte, o ImportOptions) (*Imported, error) {
	parse := ParseCSV
	switch {
	case strings.HasPrefix(format, "application/x-ndjson"), strings.HasPrefix(format, "application/jsonl"):
		parse = ParseLines
	case strings.HasPrefix(format, "text/csv"):
	default:
		return nil, &api.Problem{Status: 415, Title: "This is not a format for imports.", Code: "unsupported_media_type",
			Detail: "Send text/csv with a header line, or application/x-ndjson with one target per line."}
	}
	if len(body) > maxImportBytes {
		return nil, api.Invalid(api.FieldError{Field: "body", Message: fmt.Sprintf("at most %d bytes; split the file", maxImportBytes)})
	}
	rows, wrong := parse(bytes.NewReader(body))
	sum := sha256.Sum256(body)
	im := importer{s: s, o: o, rows: rows, p: wrong, result: Imported{ID: db.NewID("imp_"), DryRun: o.DryRun}}
	im.validate()
	parsed := len(im.p)
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		im.reset(parsed)
		if err := im.check(ctx, tx); err != nil {
			return err
		}
		if err := im.p.err(); err != nil {
			return err
		}
		if o.DryRun {
			return nil
		}
		return im.write(ctx, tx, hex.EncodeToString(sum[:]))
	})
	if errors.Is(err, db.ErrConflict) {
		return nil, api.Conflict("name_taken", "A target with one of these names was made meanwhile. Try again.")
	}
	if err != nil {
		return nil, err
	}
	return &im.result, nil
}

// importer is one import on its way.
type importer struct {
	s    *Service
	o    ImportOptions
	rows []ImportRow
	p    problems

	result   Imported
	existing map[string]taken
	newSites []string
	groupOf  map[string]string // site → access group of what is made in it
}

type taken struct {
	id      string
	version int64
	group   string
}

// reset undoes what a transaction that must run again has noted.
func (im *importer) reset(problems int) {
	im.p = im.p[:problems]
	im.result.Created, im.result.Updated, im.result.Skipped, im.result.Sites = 0, 0, 0, 0
	im.existing, im.newSites, im.groupOf = map[string]taken{}, nil, map[string]string{}
}

// validate checks each row by itself, and rows against each other.
func (im *importer) validate() {
	seen := make(map[string]int, len(im.rows))
	for i := range im.rows {
		r := &im.rows[i]
		var p problems
		r.Target.validate(&p)
		if len(r.Accounts) > 0 && !r.Target.Kind.HasAccounts() && r.Target.Kind == TCP {
			p.add("accounts", "targets of kind %s have no accounts", r.Target.Kind)
		}
		names := map[string]bool{}
		for j := range r.Accounts {
			a := &r.Accounts[j]
			if a.Features == 0 {
				a.Features = r.Target.Kind.Features()
			}
			a.validate(&p, fmt.Sprintf("accounts[%d].", j))
			if names[a.Name] {
				p.add(fmt.Sprintf("accounts[%d].name", j), "is there twice")
			}
			names[a.Name] = true
		}
		if first, dup := seen[r.Target.Name]; dup {
			p.add("name", "%s stands on line %d already", r.Target.Name, first)
		} else {
			seen[r.Target.Name] = r.Line
		}
		for _, w := range p {
			im.p.add(lineField(r.Line, w.Field), "%s", w.Message)
		}
	}
}

// check compares the rows with what is stored.
func (im *importer) check(ctx context.Context, tx *db.Tx) error {
	if err := im.checkSites(ctx, tx); err != nil {
		return err
	}
	if err := im.checkSecrets(ctx, tx); err != nil {
		return err
	}
	for at := 0; at < len(im.rows); at += maxRows {
		part := im.rows[at:min(at+maxRows, len(im.rows))]
		names := make([]any, len(part))
		for i := range part {
			names[i] = part[i].Target.Name
		}
		rows, err := tx.QueryContext(ctx, fmt.Sprintf(sqlNamesTaken, marks(1, len(names))), names...)
		if err != nil {
			return fmt.Errorf("read names of targets: %w", err)
		}
		for rows.Next() {
			var name string
			var t taken
			if err := rows.Scan(&name, &t.id, &t.version, &t.group); err != nil {
				rows.Close()
				return err
			}
			im.existing[name] = t
		}
		if err := rows.Close(); err != nil {
			return err
		}
	}
	for i := range im.rows {
		r := &im.rows[i]
		have, exists := im.existing[r.Target.Name]
		mine := api.PrincipalFrom(ctx) == nil || api.Sees(ctx, api.TargetsManage).Has(have.group)
		switch {
		case !exists:
			im.result.Created++
		case !mine: // somebody else's: the name is taken, that is all
			im.p.add(lineField(r.Line, "name"), "there is a target %s already", r.Target.Name)
		case im.o.Existing == ExistingSkip:
			im.result.Skipped++
		case im.o.Existing == ExistingUpdate:
			im.result.Updated++
		default:
			im.p.add(lineField(r.Line, "name"), "there is a target %s already", r.Target.Name)
		}
	}
	return nil
}

// checkSites notes sites that are missing.
func (im *importer) checkSites(ctx context.Context, tx *db.Tx) error {
	lines := map[string][]int{}
	for i := range im.rows {
		if site := im.rows[i].Target.Site; siteName.MatchString(site) {
			lines[site] = append(lines[site], im.rows[i].Line)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		_, err := im.s.Site(ctx, tx, name)
		switch {
		case err == nil:
		case !errors.Is(err, db.ErrNotFound):
			return err
		case im.o.CreateSites:
			im.newSites = append(im.newSites, name)
		default:
			for _, line := range lines[name] {
				im.p.add(lineField(line, "site"), "there is no site %s; create it first or import with create_sites", name)
			}
		}
	}
	im.result.Sites = len(im.newSites)
	return nil
}

// checkSecrets notes secrets that are missing.
func (im *importer) checkSecrets(ctx context.Context, tx *db.Tx) error {
	exists := map[string]bool{}
	for i := range im.rows {
		for _, a := range im.rows[i].Accounts {
			if a.SecretID == "" {
				continue
			}
			if err := mayPlaceSecret(ctx); err != nil {
				return err
			}
			ok, known := exists[a.SecretID]
			if !known {
				err := im.s.c.Secrets.SecretExists(ctx, tx, a.SecretID)
				if err != nil && !errors.Is(err, db.ErrNotFound) {
					return fmt.Errorf("check secret: %w", err)
				}
				ok = err == nil
				exists[a.SecretID] = ok
			}
			if !ok {
				im.p.add(lineField(im.rows[i].Line, "accounts"), "account %s: there is no such secret", a.Name)
			}
		}
	}
	return nil
}

// write makes sites, targets, tags and accounts, with one audit event for the
// whole import: its ID is the origin of every target it made.
func (im *importer) write(ctx context.Context, tx *db.Tx, sum string) error {
	s := im.s
	for _, name := range im.newSites {
		site := &Site{Name: name}
		var err error
		if site.Group, err = api.PlaceNew(ctx, api.TargetsManage, im.o.Group); err != nil {
			return err
		}
		if err := site.guarded().Administer(ctx, "", site.Group); err != nil {
			return err
		}
		if err := s.insertSite(ctx, tx, site); err != nil {
			return err
		}
	}
	now := s.now()
	var targets, tags, accounts [][]any
	groups := map[string]bool{}
	for i := range im.rows {
		r := &im.rows[i]
		t := &r.Target
		if _, exists := im.existing[t.Name]; exists {
			if im.o.Existing == ExistingUpdate {
				if err := im.update(ctx, tx, r); err != nil {
					return err
				}
			}
			continue
		}
		if t.Group = im.o.Group; t.Group == "" {
			t.Group = im.groupOf[t.Site]
		}
		if err := s.placeNew(ctx, tx, t); err != nil {
			return err
		}
		if im.o.Group == "" {
			im.groupOf[t.Site] = t.Group
		}
		if err := s.mayPlace(ctx, tx, nil, t, r.Accounts); err != nil {
			return err
		}
		if !groups[t.Group] {
			if err := group.Check(ctx, tx, t.Group); err != nil {
				return err
			}
			groups[t.Group] = true
		}
		t.ID, t.CreatedAt, t.UpdatedAt, t.Version = db.NewID(idPrefix), now, now, 1
		t.Origin = "import " + im.result.ID
		targets = append(targets, t.row())
		for _, tag := range t.Tags {
			tags = append(tags, []any{tag, t.ID})
		}
		for _, a := range r.Accounts {
			a.ID, a.TargetID = db.NewID("acc_"), t.ID
			accounts = append(accounts, a.row(now))
		}
	}
	if err := insertRows(ctx, tx, sqlTargetInsert, targets); err != nil {
		return fmt.Errorf("import targets: %w", db.Classify(err))
	}
	if err := insertRows(ctx, tx, sqlTagInsert, tags); err != nil {
		return fmt.Errorf("import tags: %w", err)
	}
	if err := insertRows(ctx, tx, sqlAccountInsert, accounts); err != nil {
		return fmt.Errorf("import accounts: %w", err)
	}
	return s.wrote(ctx, tx, audit.Event{
		Type: audit.TargetImported, Object: audit.Object{Kind: "import", ID: im.result.ID},
		Fields: map[string]string{
			"sha256": sum, "created": strconv.Itoa(im.result.Created), "updated": strconv.Itoa(im.result.Updated),
			"skipped": strconv.Itoa(im.result.Skipped), "sites": strings.Join(im.newSites, ","),
		},
	}, TopicTarget, im.result.ID, slices.Sorted(maps.Keys(groups))...)
}

// update brings an existing target to what its row says; accounts are only added.
func (im *importer) update(ctx context.Context, tx *db.Tx, r *ImportRow) error {
	s := im.s
	old, err := s.Get(ctx, tx, im.existing[r.Target.Name].id)
	if err != nil {
		return err
	}
	t := *old
	t.Site, t.Host, t.Port, t.Comment, t.Tags = r.Target.Site, r.Target.Host, r.Target.Port, r.Target.Comment, r.Target.Tags
	t.Network = r.Target.Network
	if r.Target.Kind != old.Kind {
		return api.Invalid(api.FieldError{Field: lineField(r.Line, "kind"), Message: "target " + t.Name + " is of kind " + string(old.Kind) + " and keeps it"})
	}
	if err := s.mayPlace(ctx, tx, old, &t, r.Accounts); err != nil {
		return err
	}
	if redirects(old, &t) {
		if err := s.mayRedirect(ctx, tx, t.ID); err != nil {
			return err
		}
	}
	if t.FullAddress() != old.FullAddress() || t.networkJSON() != old.networkJSON() || t.Comment != old.Comment || tagsJSON(t.Tags) != tagsJSON(old.Tags) {
		if err := s.update(ctx, tx, old, &t, audit.TargetChanged, actor(ctx)); err != nil {
			return err
		}
	}
	have, err := s.Accounts(ctx, tx, t.ID)
	if err != nil {
		return err
	}
	for _, a := range r.Accounts {
		if slices.ContainsFunc(have, func(x Account) bool { return x.Name == a.Name }) {
			continue
		}
		a.ID, a.TargetID = db.NewID("acc_"), t.ID
		if err := insertRows(ctx, tx, sqlAccountInsert, [][]any{a.row(s.now())}); err != nil {
			return fmt.Errorf("import account of %s: %w", t.ID, err)
		}
		if err := s.wrote(ctx, tx, a.event(&t, audit.AccountCreated), TopicTarget, t.ID, t.Group); err != nil {
			return err
		}
	}
	return nil
}
