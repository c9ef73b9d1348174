package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
	"caponier/shared/webrule"
)

// runDir is where the demo's carrier keeps its sockets.
const runDir = "/run/capdemo"

// webTargets are the private web applications, each at an address of vpc-a.
var webTargets = []struct {
	name    string
	kind    sites.Kind
	addr    string
	comment string
}{
	{"wiki", sites.Form, harness.Hosts[2], "a web application with a login form"},
	{"metrics", sites.Basic, harness.Hosts[3], "a web application with HTTP Basic"},
	{"tickets", sites.JSON, harness.Hosts[4], "a page of script that signs in with JSON"},
}

// chromium reports whether the demo has Chromium: CAPONIER_IMAGES says so.
func chromium() bool {
	return slices.Contains(strings.Fields(os.Getenv("CAPONIER_IMAGES")), "chromium")
}

// web starts three web applications inside vpc-a, a Docker daemon of the demo's
// own, a webproxy and a carrier, and makes the targets.
func (d *demo) web(ctx context.Context) error {
	anchors, password, err := d.webSites(ctx)
	if err != nil {
		return err
	}
	d.say("starting a Docker daemon of the demo's own (no bridge, no firewall rules)")
	docker, err := harness.StartDocker(ctx, harness.DockerRoot(), true)
	if err != nil {
		return err
	}
	d.state.Docker = docker.Root()
	if err := d.note(docker.Proc()); err != nil {
		return err
	}
	d.say("the browser's image: built once, a minute or two")
	if err := docker.Image(ctx, d.root, func(line string) { d.say("%s", line) }); err != nil {
		return err
	}
	d.say("enrolling a webproxy and a carrier")
	proxy, err := d.webEdge(ctx, "webproxy", "address = \"127.0.0.1:18443\"\n")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(runDir, 0o711); err != nil {
		return err
	}
	toml := fmt.Sprintf("docker = %q\nrun_dir = %q\n", docker.Host, runDir)
	if chromium() {
		toml += "chromium_image = \"caponier-chromium\"\n"
	}
	carrier, err := d.webEdge(ctx, "carrier", toml)
	if err != nil {
		return err
	}
	secret, err := d.core.Admin.Secret(ctx, "ann at the web applications of vpc-a", "password", password)
	if err != nil {
		return err
	}
	for _, t := range webTargets {
		origin := "https://" + t.addr
		browser := map[string]any{"watermark": "{user} · {date}"}
		if t.kind == sites.Basic && chromium() {
			browser["engine"] = "chromium"
		}
		if _, err := d.core.Admin.Create(ctx, "/targets", harness.WebTarget{Name: t.name, Kind: "web", Site: "vpc-a", Comment: t.comment, Tags: []string{"demo"},
			Accounts: []harness.Account{{Name: "ann", Auth: "password", Secret: secret}},
			Web: harness.Web{StartURL: origin + "/", Policy: webrule.Policy{Recipe: sites.Recipe(t.kind, origin, ""), TLS: webrule.TLS{Anchors: anchors}},
				Browser: browser}}); err != nil {
			return err
		}
		d.access.Targets = append(d.access.Targets, target{Name: t.name, Kind: "web", Site: "vpc-a", Host: t.addr, Port: 443, Accounts: []string{"ann"}, Comment: t.comment})
	}
	for _, e := range []struct {
		node *harness.EdgeNode
		warm int
	}{{proxy, 0}, {carrier, 1}} {
		if _, err := d.core.Admin.WebReady(ctx, 90*time.Second, e.node, harness.HasRoom(e.warm)); err != nil {
			return err
		}
	}
	return d.proveWeb(ctx)
}

// webSites starts the applications and returns whom their certificates are to
// be believed by, and the password of ann.
func (d *demo) webSites(ctx context.Context) (anchors, password string, err error) {
	d.say("starting web applications inside vpc-a: login form, HTTP Basic, JSON")
	dir := filepath.Join(d.state.Scratch, "sites")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	// The program was built beside this one, and goes when this one does.
	self, err := os.Executable()
	if err != nil {
		return "", "", err
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(self), "serve"))
	if err != nil {
		return "", "", err
	}
	bin := filepath.Join(dir, "serve")
	if err := os.WriteFile(bin, text, 0o755); err != nil {
		return "", "", err
	}
	args := []string{"--cert-dir", dir}
	for _, t := range webTargets {
		args = append(args, fmt.Sprintf("%s=%s:443", t.kind, t.addr))
	}
	password = rand.Text()
	cmd := d.net.Command(context.WithoutCancel(ctx), "host-a", bin, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", "", err
	}
	p, err := harness.Start("sites", d.dir, cmd, true)
	if err != nil {
		return "", "", err
	}
	if err := d.note(p); err != nil {
		return "", "", err
	}
	if _, err := io.WriteString(in, "ann "+password+"\n"); err != nil {
		return "", "", err
	}
	if err := errors.Join(in.Close(), p.WaitOutput(ctx, 20*time.Second, `"ready":true`)); err != nil {
		return "", "", err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	return string(bytes.TrimSpace(ca)) + "\n", password, err
}

func (d *demo) webEdge(ctx context.Context, kind, toml string) (*harness.EdgeNode, error) {
	_, token, err := d.core.Admin.EnrolmentToken(ctx, map[string]any{"kind": kind})
	if err != nil {
		return nil, err
	}
	e, err := harness.StartEdge(ctx, nil, filepath.Join(d.root, "bin", "caponier-"+kind), filepath.Join(d.dir, kind),
		harness.EdgeConfig{Name: kind + "-1", URL: d.core.Ready.URL, Token: token, TOML: toml, Keep: true})
	if err != nil {
		return nil, err
	}
	return e, d.note(e.Proc)
}

// proveWeb opens the wiki as demo, waits until it is on the screen, signed in,
// and closes it.
func (d *demo) proveWeb(ctx context.Context) error {
	api := d.core.Admin.As(d.access.User.Token)
	began := time.Now()
	s, err := api.OpenWeb(ctx, webTargets[0].name)
	if err != nil {
		return err
	}
	screen, err := api.Screen(ctx, s.ID, false)
	if err != nil {
		return err
	}
	defer screen.Close()
	if err := screen.Shows(ctx, 30*time.Second, "the wiki, signed in", sites.Demo[0]); err != nil {
		return err
	}
	d.say("proved: the wiki inside vpc-a is on the screen, signed in, %v after the click", time.Since(began).Round(10*time.Millisecond))
	return api.EndWeb(ctx, s.ID)
}
