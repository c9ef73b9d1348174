package fleet

import (
	"fmt"
	"strings"

	"caponier/core/internal/api"
	"caponier/deploy"
	"caponier/shared/wire"
)

// Commands are the texts that make a node, or register a host, with a new
// token. Which there are depends on the kind.
type Commands struct {
	Shell     string `json:"shell,omitempty" doc:"runs in the foreground, as any user"`
	Systemd   string `json:"systemd,omitempty" doc:"for a root shell on the machine; the binary is in /usr/bin"`
	Docker    string `json:"docker,omitempty" doc:"beside the binary"`
	CloudInit string `json:"cloud_init,omitempty" doc:"user data of new machines"`
}

// commands renders the texts for a token. core is the URL nodes dial;
// downloads is where machines fetch the binaries, empty: a place to fill in.
func commands(kind, token, core, downloads string) Commands {
	core = strings.TrimSuffix(core, "/")
	if kind == KindHost {
		return Commands{Shell: "CAPONIER_TOKEN=" + token + " sh caponier-deploy --accounts root"}
	}
	bin := "caponier-" + kind
	c := Commands{
		Shell: fmt.Sprintf("CAPONIER_TOKEN=%s %s run --core %s --state ~/.%s", token, bin, core, bin),
	}
	if unit, err := deploy.Files.ReadFile("systemd/" + bin + ".service"); err == nil {
		c.Systemd = systemdText(kind, bin, token, core, string(unit))
	}
	switch kind {
	case string(wire.Extender):
		c.Docker = dockerText(kind, bin, token, core, "")
	case string(wire.WebProxy):
		// Carriers come in here, by the name that it tells core.
		c.Docker = dockerText(kind, bin, token, core, `  --hostname "$(hostname -f)" --publish 18443:18443 \
`)
	}
	if text, err := deploy.Files.ReadFile("cloud-init/" + kind + ".yaml"); err == nil {
		c.CloudInit = cloudInitText(string(text), token, core, downloads)
	}
	return c
}

func systemdText(kind, bin, token, core, unit string) string {
	account := ""
	if strings.Contains(unit, "\nUser="+bin+"\n") {
		// The one account that is not made by systemd: it may use Docker.
		account = fmt.Sprintf("id -u %[1]s >/dev/null 2>&1 || useradd --system --groups docker --shell /usr/sbin/nologin %[1]s\n", bin)
	}
	return account + fmt.Sprintf(`install -d -m 755 /etc/caponier
cat > /etc/caponier/%[1]s.toml <<'END'
core = "%[4]s"
state = "/var/lib/%[2]s"
END
install -m 600 /dev/stdin /etc/caponier/%[1]s.env <<'END'
CAPONIER_TOKEN=%[3]s
END
[ -e /usr/lib/systemd/system/%[2]s.service ] || cat > /etc/systemd/system/%[2]s.service <<'END'
%[5]s
END
systemctl daemon-reload
systemctl enable --now %[2]s.service &&
  rm -f /etc/caponier/%[1]s.env
`, kind, bin, token, core, strings.TrimRight(unit, "\n"))
}

// dockerText needs no image of ours: the binary is static.
func dockerText(kind, bin, token, core, options string) string {
	return fmt.Sprintf(`install -m 600 /dev/stdin %[1]s.env <<'END'
CAPONIER_TOKEN=%[3]s
END
docker run --detach --name %[2]s --restart always \
  --read-only --cap-drop ALL --security-opt no-new-privileges \
%[5]s  --env-file %[1]s.env --volume %[2]s:/state --volume ./%[2]s:/%[2]s:ro \
  --entrypoint /%[2]s debian:stable-slim run --core %[4]s --state /state/%[1]s
rm -f %[1]s.env
`, kind, bin, token, core, options)
}

// Places in the cloud-init example that are filled in.
const (
	exampleCore      = "https://pam.example.org"
	exampleToken     = "put-the-token-here"
	exampleDownloads = "https://downloads.example.org"
)

func cloudInitText(text, token, core, downloads string) string {
	lines := strings.Split(text, "\n")
	kept := lines[:0]
	for _, l := range lines {
		// What the example tells its reader is done here.
		if strings.HasPrefix(l, "# ") {
			continue
		}
		kept = append(kept, l)
	}
	if downloads == "" {
		downloads = exampleDownloads
	}
	return strings.NewReplacer(exampleCore, core, exampleToken, token, exampleDownloads, strings.TrimSuffix(downloads, "/")).
		Replace(strings.Join(kept, "\n"))
}

// checkDownloads tells whether a text can stand in the commands.
func checkDownloads(url string) []api.FieldError {
	if url == "" || strings.HasPrefix(url, "https://") && !strings.ContainsAny(url, " \t\r\n'\"`$\\;&|<>(){}*?!#") && len(url) <= 500 {
		return nil
	}
	return []api.FieldError{{Field: "downloads", Message: "must be an https:// URL"}}
}
