package api

import (
	"context"
	"strings"
)

type opKey struct{}

func withOp(ctx context.Context, op Op) context.Context { return context.WithValue(ctx, opKey{}, op) }

func opFrom(ctx context.Context) Op {
	op, _ := ctx.Value(opKey{}).(Op)
	return op
}

// missing names what a handler did not find, where it said no more than
// "not found": the parameters of the path are all the caller can have got
// wrong. /roles/{id}/members/{user} may lack either.
func missing(op Op, path string) *Problem {
	want, have := strings.Split(op.Path, "/"), strings.Split(path, "/")
	var names []string
	kind := "thing"
	for i, part := range want {
		if !strings.HasPrefix(part, "{") || i >= len(have) || i == 0 {
			continue
		}
		kind = singular(want[i-1])
		names = append(names, kind+" "+cut(have[i], 100))
	}
	switch len(names) {
	case 0:
		return Missing("thing", "")
	case 1:
		return Missing(kind, strings.TrimPrefix(names[0], kind+" "))
	}
	p := Missing(kind, "")
	p.Detail = "Looked for " + strings.Join(names, ", ") + "."
	return p
}

// singular is the name of one of a resource: "enrolment-tokens" → "enrolment token".
func singular(resource string) string {
	s := strings.ReplaceAll(resource, "-", " ")
	if strings.HasSuffix(s, "sses") {
		return strings.TrimSuffix(s, "es")
	}
	return strings.TrimSuffix(s, "s")
}
