package webaccess

import (
	"slices"

	"caponier/core/internal/target"
	"caponier/shared/webrule"
)

// rules are a target's rules, ready for decisions.
type rules struct {
	target *target.Target
	all    *webrule.Compiled
	// bySite are the rules that lead to another site than the target's.
	bySite map[string]*webrule.Compiled
	// never are hosts to which every request is denied.
	never *webrule.Compiled
}

// compile makes a target's rules ready.
func compile(t *target.Target) (*rules, error) {
	p := t.Web.Policy
	all, err := p.Compile(t.Web.StartURL)
	if err != nil {
		return nil, err
	}
	r := &rules{target: t, all: all, bySite: map[string]*webrule.Compiled{}}
	part := func(list []webrule.Rule) (*webrule.Compiled, error) {
		return webrule.Policy{Allow: list, Own: true}.Compile(t.Web.StartURL)
	}
	bySite := map[string][]webrule.Rule{}
	for _, a := range p.Allow {
		bySite[a.Site] = append(bySite[a.Site], a)
	}
	for site, list := range bySite {
		if r.bySite[site], err = part(list); err != nil {
			return nil, err
		}
	}
	never := slices.DeleteFunc(slices.Clone(p.Deny), func(d webrule.Rule) bool { return len(d.Methods) > 0 || d.Path != "" })
	r.never, err = part(never)
	return r, err
}
