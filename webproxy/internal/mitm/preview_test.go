package mitm

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// testPreviewer knows a recipe with a placeholder for each injection, "cp" and
// its ID, and one value that was put in before.
func testPreviewer() *previewer {
	return &previewer{
		injections: []webrule.Injection{{ID: "user", Kind: webrule.Form, Field: "login", Value: webrule.Username}, {ID: "pass", Kind: webrule.JSON, Field: `user.p\.w`, Value: webrule.Password},
			{ID: "123456", Kind: webrule.Form, Field: "second", Value: webrule.TOTP}, {ID: "h", Kind: webrule.Header, Field: "id", Value: webrule.Password}},
		placeholder: func(in webrule.Injection) string {
			if in.Value == webrule.TOTP {
				return in.ID
			}
			return "cp" + in.ID
		},
		mask: func(s string) (string, int) { return strings.ReplaceAll(s, "battery", "********"), 0 },
	}
}

func TestPreview(t *testing.T) {
	for _, x := range []struct{ name, kind, body, want string }{
		{"form", "form", "id=7&name=J%C3%BCrgen+K&empty=&flag", "id = 7\nname = Jürgen K\nempty = \nflag = \n"},
		{"placeholder", "form", "login=cpuser%40caponier.invalid&second=123456&count=123456", "login = {{username}}\nsecond = {{totp}}\ncount = 123456\n"},
		{"typed by hand", "form", "login=alice", "login = ***\n"},
		{"placeholder elsewhere", "form", "note=a+cppass+b", "note = a {{password}} b\n"},
		{"secrets", "form", "new_password=x&apiToken=y&OTP=1&csrf=z&state=closed&key=k&q=aGVsbG8tYWJjMTIzNDU2Nzg5&id=01890a5d-ac96-774b-bcce-b302099a8057",
			"new_password = ***\napiToken = ***\nOTP = ***\ncsrf = ***\nstate = closed\nkey = k\nq = ***\nid = 01890a5d-ac96-774b-bcce-b302099a8057\n"},
		{"known value", "form", "a=the+battery", "a = the ********\n"},
		{"no forged lines", "form", "a=1%0Ab+%3D+2&c+%3D+3%0Ad=4&e=%E2%80%AE%1B%5B31m", "a = 1\\nb = 2\nc \\u{3D} 3\\nd = 4\ne = \\u{202E}\\u{1B}[31m\n"},
		{"broken", "form", "a=%zz", ""},
		{"not UTF-8", "form", "a=%ff", ""},
		{"JSON", "json", `{"id":7,"user":{"p.w":"cppass","name":"a\"b","empty":{}},"list":[1,true,null,"x"],"none":[]}`,
			"{\n  \"id\": 7,\n  \"user\": {\n    \"p.w\": \"{{password}}\",\n    \"name\": \"a\\\"b\",\n    \"empty\": {}\n  },\n  \"list\": [\n    1,\n    true,\n    null,\n    \"x\"\n  ],\n  \"none\": []\n}"},
		{"JSON secrets", "json", `{"password":"x","tokens":[{"a":"b"}],"secret":{"deep":["x"]},"otp":123456,"mutation":"login(password: \"x\")","body":"{\"pwd\":1}","pw":true}`,
			"{\n  \"password\": ***,\n  \"tokens\": ***,\n  \"secret\": ***,\n  \"otp\": ***,\n  \"mutation\": ***,\n  \"body\": ***,\n  \"pw\": true\n}"},
		{"JSON text", "json", `"just text"`, `"just text"`},
		{"JSON twice the same key", "json", `{"a":1,"a":2}`, "{\n  \"a\": 1,\n  \"a\": 2\n}"},
		{"broken JSON", "json", `{"a":1`, ""},
		{"two values", "json", `{} {}`, ""},
		{"parts", "multipart", parts(`name="id"`, "7", `name="password"`, "secret", `name="f"; filename="a/b\".pdf"`, "12345", `name="x = file"`, ""),
			"id = 1 bytes\npassword = 6 bytes\nf = file \"b\\\".pdf\", 5 bytes\nx \\u{3D} file = 0 bytes\n"},
		{"broken parts", "multipart", "--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nabc", ""},
	} {
		p := testPreviewer()
		err := error(nil)
		switch x.kind {
		case "form":
			err = p.form([]byte(x.body))
		case "json":
			err = p.json([]byte(x.body))
		default:
			err = p.multipart([]byte(x.body), "XX")
		}
		if (err != nil) != (x.want == "") || err == nil && p.text.String() != x.want {
			t.Errorf("%s: %q, %v\nwant %q", x.name, p.text.String(), err, x.want)
		}
	}
}

// A body that is too much for a preview is cut where a field ends, and says so.
func TestPreviewIsBounded(t *testing.T) {
	r := newRig(t)
	at := r.origin("app.test", &counter{}, nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	c := r.browser("con_1", false)
	var list []string
	for range 50_000 {
		list = append(list, "field=0123456789")
	}
	for n, x := range []struct{ kind, body, last string }{
		{formType, strings.Join(list, "&"), "… there is more: the body has 849999 bytes"},
		{formType, "a=" + strings.Repeat("x", 100_000), "a = " + strings.Repeat("x", maxPreviewValue) + "… (100000 bytes)"},
		{"text/plain", "field=1", ""},
		{"application/octet-stream", "x", ""},
	} {
		got := r.later(c, "POST", at+"/admin", x.body, "Content-Type", x.kind)
		ask := r.asked(n)
		text := ""
		if ask.Preview != nil {
			text = ask.Preview.Text
		}
		if len(text) > wire.MaxWebPreview || !strings.HasSuffix(text, x.last) || (x.last == "") != (ask.Preview == nil) {
			t.Errorf("%d bytes of %s are shown as %d, ending in %.100q", len(x.body), x.kind, len(text), text[max(0, len(text)-100):])
		}
		r.decide(ask.Hold, wire.ApprovalDenied)
		<-got
	}
}

// Whatever is sent: no control characters, no more than may be, none of what is
// to be hidden, and of JSON every key.
func FuzzPreview(f *testing.F) {
	f.Add("a=1&password=hunter2hunter2")
	f.Add(`{"a":{"password":"hunter2hunter2"},"b":["hunter2hunter2"]}`)
	f.Add(parts(`name="password"`, "hunter2hunter2"))
	f.Fuzz(func(t *testing.T, body string) {
		for _, show := range []func(*previewer) error{
			func(p *previewer) error { return p.form([]byte(body)) },
			func(p *previewer) error { return p.json([]byte(body)) },
			func(p *previewer) error { return p.multipart([]byte(body), "XX") },
			func(p *previewer) error { // a value of any kind under a secret's name is not shown
				b, err := json.Marshal(map[string]any{"password": body})
				if err != nil {
					return err
				}
				err = p.json(b)
				if err == nil && p.text.String() != "{\n  \"password\": ***\n}" {
					t.Errorf("%q", p.text.String())
				}
				return err
			},
		} {
			p := testPreviewer()
			if err := show(p); err != nil && !errors.Is(err, errPreviewFull) {
				continue
			}
			text := p.text.String()
			if len(text) > wire.MaxWebPreview || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool {
				return r != '\n' && unicode.In(r, unicode.C, unicode.Zl, unicode.Zp)
			}) {
				t.Errorf("%q", text)
			}
		}
	})
}
