package sites

import (
	"strings"

	"caponier/shared/webrule"
)

// Recipe is how a web session signs in to a site of a kind at its origin; other
// is Config.Other.
func Recipe(kind Kind, own, other string) webrule.Recipe {
	body := func(id string, kind webrule.Kind, path, field string, v webrule.Value) webrule.Injection {
		return webrule.Injection{ID: id, Kind: kind, Origin: own, Method: "POST", Path: path + "$", Field: field, Value: v, Insecure: strings.HasPrefix(own, "http:")}
	}
	fill := func(path, submit string, fields ...webrule.FillField) webrule.Fill {
		return webrule.Fill{Origin: own, Path: path + "$", Fields: fields, Submit: submit}
	}
	field := func(selector string, v webrule.Value, injection string) webrule.FillField {
		return webrule.FillField{Selector: selector, Value: v, Injection: injection}
	}
	name, password := field("username", webrule.Username, "user"), field("password", webrule.Password, "pw")
	form := func(how webrule.Kind, page, to string) webrule.Recipe {
		return webrule.Recipe{
			Injections: []webrule.Injection{body("user", how, to, "username", webrule.Username), body("pw", how, to, "password", webrule.Password)},
			Fills:      []webrule.Fill{fill(page, "button", name, password)},
		}
	}
	switch kind {
	case Form, CSRF:
		return form(webrule.Form, "/login", "/login")
	case Multi:
		return form(webrule.Multipart, "/login", "/login")
	case Frame:
		return form(webrule.Form, "/login/form", "/login")
	case Foreign:
		own = other
		return form(webrule.Form, "/login/form", "/login")
	case JSON:
		return webrule.Recipe{
			Injections: []webrule.Injection{body("user", webrule.JSON, "/api/login", "user.name", webrule.Username), body("pw", webrule.JSON, "/api/login", "user.password", webrule.Password)},
			Fills:      []webrule.Fill{fill("/login", "#go", field("name", webrule.Username, "user"), field("pass", webrule.Password, "pw"))},
		}
	case Pages:
		return webrule.Recipe{
			Injections: []webrule.Injection{body("user", webrule.Form, "/login/user", "username", webrule.Username), body("pw", webrule.Form, "/login", "password", webrule.Password)},
			Fills:      []webrule.Fill{fill("/login", "button", name), fill("/login/password", "button", password)},
		}
	case TOTP:
		r := form(webrule.Form, "/login", "/login")
		r.Injections = append(r.Injections, body("code", webrule.Form, "/login/code", "code", webrule.TOTP))
		r.Fills = append(r.Fills, fill("/login/code", "button", field("code", webrule.TOTP, "code")))
		return r
	case Hashed:
		return webrule.Recipe{Login: &webrule.Login{Cookie: "sid", Steps: []webrule.Step{
			{Method: "GET", URL: "/login", Extract: map[string]string{"salt": `data-salt="(\w+)"`}},
			{Method: "POST", URL: "/login", Headers: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, Body: "username={{username}}&response={{sha256 salt password}}"},
		}}}
	case Basic, Digest, Bearer:
		return webrule.Recipe{Injections: []webrule.Injection{{ID: "auth", Kind: webrule.Kind(kind), Origin: own}}}
	}
	return webrule.Recipe{}
}
