package usercli

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"caponier/shared/daemon"
)

// maxListed bounds what one list command prints.
const maxListed = 10_000

// entry is one account of a target the user may use now.
type entry struct {
	Target struct {
		ID   string `json:"id"`
		Name string `json:"name"`
		Kind string `json:"kind"`
		Site string `json:"site"`
		Host string `json:"host"`
		Port int    `json:"port"`
		// Address is how the target is reached; of a network its destinations.
		Address string `json:"address"`
	} `json:"target"`
	Account    string   `json:"account"`
	Features   []string `json:"features"`
	Record     bool     `json:"record"`
	NeedMFA    bool     `json:"need_mfa"`
	NeedReason bool     `json:"need_reason"`
}

func listTargets(ctx context.Context, c *client, search string) ([]entry, error) {
	q := url.Values{}
	if search != "" {
		q.Set("search", search)
	}
	items, err := c.all(ctx, "/me/targets", q, maxListed)
	if err != nil {
		return nil, err
	}
	return decodeAll[entry](items)
}

type targetsCmd struct {
	Search string `arg:"" optional:"" help:"Show only targets whose name, address or comment holds this."`
}

func (t targetsCmd) Run(e *env) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	entries, err := listTargets(e.ctx, c, t.Search)
	if err != nil {
		return err
	}
	if e.json {
		if entries == nil {
			entries = []entry{}
		}
		return e.printJSON(entries)
	}
	rows := make([][]string, len(entries))
	for i, t := range entries {
		address := t.Target.Host + ":" + strconv.Itoa(t.Target.Port)
		if t.Target.Site != "" {
			address = t.Target.Site + "/" + address
		}
		if t.Target.Kind == "network" {
			address = t.Target.Address
		}
		var notes []string
		if t.Record {
			notes = append(notes, "recorded")
		}
		if t.NeedMFA {
			notes = append(notes, "second factor")
		}
		if t.NeedReason {
			notes = append(notes, "reason")
		}
		rows[i] = []string{t.Target.Name, t.Target.Kind, t.Account, address, strings.Join(t.Features, ","), strings.Join(notes, ",")}
	}
	return e.table("TARGET KIND ACCOUNT ADDRESS ALLOWED NOTES", rows)
}

type explainCmd struct {
	Account string `short:"l" help:"Account on the target." placeholder:"NAME"`
	User    string `help:"Explain for another user (administrators)." placeholder:"NAME"`
	Target  string `arg:"" help:"[ACCOUNT@]TARGET."`
}

// explanation is the answer to "why (not)?".
type explanation struct {
	Allowed bool    `json:"allowed"`
	Works   bool    `json:"works"`
	Reason  string  `json:"reason"`
	Target  string  `json:"target"`
	Account string  `json:"account"`
	Stages  []stage `json:"stages"`
}

type stage struct {
	Name    string  `json:"name"`
	OK      bool    `json:"ok"`
	Skipped bool    `json:"skipped"`
	MS      float64 `json:"ms"`
	Text    string  `json:"text"`
	Fix     string  `json:"fix"`
}

func (x explainCmd) Run(e *env) error {
	account, target := split(x.Target)
	if x.Account != "" {
		account = x.Account
	}
	if target == "" {
		return &daemon.UsageError{Text: "no target given", Hint: "caponier explain db-1"}
	}
	c, _, err := e.session()
	if err != nil {
		return err
	}
	if account == "" && x.User == "" {
		// The first account one may use; with none, core says why.
		entries, err := listTargets(e.ctx, c, target)
		if err != nil {
			return err
		}
		for _, t := range entries {
			if t.Target.Name == target {
				account = t.Account
				break
			}
		}
	}
	q := url.Values{}
	for k, v := range map[string]string{"account": account, "user": x.User} {
		if v != "" {
			q.Set(k, v)
		}
	}
	path := "/targets/" + url.PathEscape(target) + "/explain"
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	var answer explanation
	if err := c.do(e.ctx, http.MethodGet, path, nil, &answer); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(answer)
	}
	for _, s := range answer.Stages {
		mark := "ok  "
		switch {
		case s.Skipped:
			mark = "-   "
		case !s.OK:
			mark = "FAIL"
		}
		if err := e.printf("%s  %-11s %8.1f ms  %s\n", mark, plain(s.Name), s.MS, plain(s.Text)); err != nil {
			return err
		}
		if s.Fix != "" {
			if err := e.printf("%31sfix: %s\n", "", plain(s.Fix)); err != nil {
				return err
			}
		}
	}
	if !answer.Works {
		return &hinted{err: fmt.Errorf("%s cannot be reached", plain(target)), code: ExitRefused}
	}
	return nil
}
