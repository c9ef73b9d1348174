package usercli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"caponier/shared/daemon"
)

// groupsCmd is for administrators of access groups (docs/access-groups.md).
type groupsCmd struct {
	List    groupsList    `cmd:"" default:"withargs" help:"List the access groups in which you may do anything."`
	Show    groupsShow    `cmd:"" help:"Show a group and how much is in it."`
	Create  groupsCreate  `cmd:"" help:"Create an empty group, with an SSH authority of its own."`
	Rename  groupsRename  `cmd:"" help:"Change a group's name, or its comment."`
	Delete  groupsDelete  `cmd:"" help:"Delete an empty group and all trust in its SSH authority."`
	Move    groupsMove    `cmd:"" help:"Put a site, target, role or shared secret into a group."`
	Anchors groupsAnchors `cmd:"" help:"Certificates that TLS of a group's targets is verified against."`
}

func (groupsCmd) Help() string {
	return `Examples:
  caponier groups create plant --comment "line 3"
  caponier groups move site vpc-plant plant
  caponier groups move target plc-3 plant
  caponier groups show plant
  caponier groups anchors add plant plant-ca.pem
  caponier groups --output json`
}

// accessGroup is a group as core shows it.
type accessGroup struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Comment   string    `json:"comment"`
	Builtin   bool      `json:"builtin"`
	CreatedAt time.Time `json:"created_at"`
	Version   int64     `json:"version"`
	Counts    struct {
		Sites          int `json:"sites"`
		Targets        int `json:"targets"`
		Roles          int `json:"roles"`
		Secrets        int `json:"secrets"`
		Administrators int `json:"administrator_roles"`
	} `json:"counts"`
}

type groupsList struct{}

func (groupsList) Run(e *env) error {
	return list(e, "/access-groups", nil, maxListed, "NAME ID CREATED COMMENT", func(g accessGroup) []string {
		return []string{g.Name, g.ID, when(g.CreatedAt), g.Comment}
	})
}

// group logs in and finds a group by name or ID, with what is in it.
func (e *env) group(ref string) (c *client, g accessGroup, raw json.RawMessage, err error) {
	if c, _, err = e.session(); err != nil {
		return nil, g, nil, err
	}
	id, err := e.named(c, "/access-groups", ref)
	if err != nil {
		return nil, g, nil, err
	}
	if id == "" {
		return nil, g, nil, &hinted{err: fmt.Errorf("there is no access group %s", ref), hint: "caponier groups lists those in which you may do anything", code: ExitNotFound}
	}
	if err := c.do(e.ctx, http.MethodGet, "/access-groups/"+url.PathEscape(id), nil, &raw); err != nil {
		return nil, g, nil, err
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		return nil, g, nil, fmt.Errorf("read the answer: %w", err)
	}
	return c, g, raw, nil
}

// named is the ID of the item of a list that has the name or the ID, or "".
func (e *env) named(c *client, path, ref string) (string, error) {
	items, err := c.all(e.ctx, path, nil, maxListed)
	if err != nil {
		return "", err
	}
	list, err := decodeAll[struct{ ID, Name string }](items)
	if err != nil {
		return "", err
	}
	for _, v := range list {
		if v.Name == ref || v.ID == ref {
			return v.ID, nil
		}
	}
	return "", nil
}

type groupsShow struct {
	Group string `arg:"" help:"Name or ID of the group."`
}

func (s groupsShow) Run(e *env) error {
	_, g, raw, err := e.group(s.Group)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(raw)
	}
	n := g.Counts
	return e.printf("%s (%s)\n  comment  %s\n  sites    %d\n  targets  %d\n  roles    %d\n  secrets  %d\n  administered by %d roles limited to it\n",
		plain(g.Name), plain(g.ID), plain(g.Comment), n.Sites, n.Targets, n.Roles, n.Secrets, n.Administrators)
}

type groupsCreate struct {
	Name    string `arg:"" help:"Name: a-z 0-9 . _ -"`
	Comment string `help:"What the group is for." placeholder:"TEXT"`
}

func (g groupsCreate) Run(e *env) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	return e.wroteGroup("created", func(out any) error {
		return c.do(e.ctx, http.MethodPost, "/access-groups", map[string]string{"name": g.Name, "comment": g.Comment}, out)
	})
}

// wroteGroup prints the group that a request answers with.
func (e *env) wroteGroup(what string, request func(out any) error) error {
	var raw json.RawMessage
	if err := request(&raw); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(raw)
	}
	var g accessGroup
	if err := json.Unmarshal(raw, &g); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return e.printf("%s (%s) %s\n", plain(g.Name), plain(g.ID), what)
}

type groupsRename struct {
	Group   string  `arg:"" help:"Name or ID of the group."`
	Name    string  `arg:"" optional:"" help:"New name; as it is when left out."`
	Comment *string `help:"New comment; as it is when left out." placeholder:"TEXT"`
}

func (r groupsRename) Run(e *env) error {
	if r.Name == "" && r.Comment == nil {
		return &daemon.UsageError{Text: "say the new name, or --comment", Hint: "caponier groups rename plant factory"}
	}
	c, g, _, err := e.group(r.Group)
	if err != nil {
		return err
	}
	body := map[string]string{"name": g.Name, "comment": g.Comment}
	if r.Name != "" {
		body["name"] = r.Name
	}
	if r.Comment != nil {
		body["comment"] = *r.Comment
	}
	return e.wroteGroup("changed", func(out any) error {
		return c.change(e.ctx, http.MethodPut, "/access-groups/"+url.PathEscape(g.ID), g.Version, body, out)
	})
}

type groupsDelete struct {
	Group string `arg:"" help:"Name or ID of the group; it must be empty."`
}

func (d groupsDelete) Run(e *env) error {
	c, g, _, err := e.group(d.Group)
	if err != nil {
		return err
	}
	if err := c.change(e.ctx, http.MethodDelete, "/access-groups/"+url.PathEscape(g.ID), g.Version, nil, nil); err != nil {
		return err
	}
	return e.done("deleted", g.ID, g.Name, "deleted")
}

type groupsMove struct {
	Kind  string `arg:"" help:"What it is: ${enum}." enum:"site,target,role,secret"`
	Name  string `arg:"" help:"Its name, or ID."`
	Group string `arg:"" help:"Name or ID of the group to put it into."`
}

func (groupsMove) Help() string {
	return `What belongs to it goes along: accounts, host keys and grants with a target, nodes
and tokens with a site. Targets of a site are moved one by one. Give a target's
host the lines of the new group's SSH authority first.

Examples:
  caponier groups move target plc-3 plant
  caponier groups move role plant-admins plant
  caponier groups move site vpc-plant default`
}

// movable says how things of a kind are read and written whole. Core refuses
// what it does not know, so that fields of a newer one are not lost.
var movable = map[string]struct {
	path     string
	byName   bool     // the path takes a name
	shownBut []string // fields that are shown and not written
	part     bool     // PATCH takes the group alone
}{
	"site":   {path: "/sites", byName: true, shownBut: []string{"id", "name", "created_at", "version"}},
	"target": {path: "/targets", byName: true, shownBut: []string{"id", "address", "destinations_total", "machine_id", "origin", "created_at", "updated_at", "version"}},
	"role":   {path: "/roles", shownBut: []string{"id", "builtin", "version"}},
	"secret": {path: "/secrets", part: true},
}

func (m groupsMove) Run(e *env) error {
	c, to, _, err := e.group(m.Group)
	if err != nil {
		return err
	}
	how := movable[m.Kind]
	ref := m.Name
	if !how.byName {
		if ref, err = e.named(c, how.path, m.Name); err != nil {
			return err
		}
		if ref == "" {
			return &hinted{err: fmt.Errorf("there is no %s %s", m.Kind, m.Name), code: ExitNotFound}
		}
	}
	path := how.path + "/" + url.PathEscape(ref)
	var have map[string]json.RawMessage
	if err := c.do(e.ctx, http.MethodGet, path, nil, &have); err != nil {
		return err
	}
	version, err := strconv.ParseInt(string(have["version"]), 10, 64)
	if err != nil {
		return fmt.Errorf("read the version of %s %s: %w", m.Kind, m.Name, err)
	}
	method := http.MethodPatch
	body := map[string]json.RawMessage{}
	if !how.part {
		method, body = http.MethodPut, have
		for _, name := range how.shownBut {
			delete(body, name)
		}
		// What a thing of its kind does not have is shown empty, and not taken so.
		maps.DeleteFunc(body, func(name string, v json.RawMessage) bool { return name != "comment" && string(v) == `""` })
	}
	if body["group"], err = json.Marshal(to.ID); err != nil {
		return err
	}
	var raw json.RawMessage
	if err := c.change(e.ctx, method, path, version, body, &raw); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(raw)
	}
	return e.printf("%s %s is in %s now\n", m.Kind, plain(m.Name), plain(to.Name))
}

type groupsAnchors struct {
	List   anchorsList   `cmd:"" default:"withargs" help:"List a group's certificates."`
	Add    anchorsAdd    `cmd:"" help:"Add certificates from a PEM file."`
	Remove anchorsRemove `cmd:"" help:"Take a certificate away."`
}

func (groupsAnchors) Help() string {
	return `Examples:
  caponier groups anchors plant
  caponier groups anchors add plant plant-ca.pem
  caponier groups anchors remove plant ID`
}

type anchorItem struct {
	ID          string    `json:"id"`
	Subject     string    `json:"subject"`
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
}

type anchorsList struct {
	Group string `arg:"" help:"Name or ID of the group."`
}

func (a anchorsList) Run(e *env) error {
	c, g, _, err := e.group(a.Group)
	if err != nil {
		return err
	}
	items, err := c.all(e.ctx, anchorsOf(g), nil, maxListed)
	if err != nil {
		return err
	}
	return e.printAnchors(items)
}

func anchorsOf(g accessGroup) string { return "/access-groups/" + url.PathEscape(g.ID) + "/anchors" }

func (e *env) printAnchors(items []json.RawMessage) error {
	return printItems(e, items, "ID SUBJECT UNTIL SHA-256", func(a anchorItem) []string {
		return []string{a.ID, a.Subject, when(a.NotAfter), a.Fingerprint}
	})
}

type anchorsAdd struct {
	Group string `arg:"" help:"Name or ID of the group."`
	File  string `arg:"" help:"PEM file with one certificate or more."`
}

// maxAnchorFile is what core takes at once, in bytes.
const maxAnchorFile = 400_000

func (a anchorsAdd) Run(e *env) error {
	f, err := os.Open(a.File)
	if err != nil {
		return fmt.Errorf("read certificates: %w", err)
	}
	defer f.Close()
	pem, err := io.ReadAll(io.LimitReader(f, maxAnchorFile+1))
	if err == nil && len(pem) > maxAnchorFile {
		err = errors.New(a.File + " is larger than core takes at once")
	}
	if err != nil {
		return fmt.Errorf("read certificates: %w", err)
	}
	if !strings.Contains(string(pem), "-----BEGIN CERTIFICATE-----") {
		return &daemon.UsageError{Text: a.File + " holds no PEM certificate", Hint: "openssl x509 -in FILE converts from other forms"}
	}
	c, g, _, err := e.group(a.Group)
	if err != nil {
		return err
	}
	var all page
	if err := c.do(e.ctx, http.MethodPost, anchorsOf(g), map[string]string{"certificates": string(pem)}, &all); err != nil {
		return err
	}
	return e.printAnchors(all.Items)
}

type anchorsRemove struct {
	Group string `arg:"" help:"Name or ID of the group."`
	ID    string `arg:"" help:"ID of the certificate, from caponier groups anchors."`
}

func (a anchorsRemove) Run(e *env) error {
	c, g, _, err := e.group(a.Group)
	if err != nil {
		return err
	}
	if err := c.do(e.ctx, http.MethodDelete, anchorsOf(g)+"/"+url.PathEscape(a.ID), nil, nil); err != nil {
		return err
	}
	return e.done("removed", a.ID, a.ID, "removed")
}
