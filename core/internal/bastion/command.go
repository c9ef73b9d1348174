package bastion

import (
	"slices"
	"strings"

	"caponier/core/internal/access"
	"caponier/shared/wire"
)

// start is what a session channel is asked to run.
type start struct {
	kind    string // shell, exec, subsystem
	command string // of exec, or the subsystem's name
}

// program says what a start amounts to for policy and recording.
type program struct {
	want  access.Feature
	kind  string // conn.Spec.Kind and recording.Meta.Kind
	class wire.Class
	// content: what flows is a data format of its own (scp, rsync, git),
	// counted and not kept byte by byte.
	content bool
	name    string // scp, rsync, git, sftp; empty for others
}

// classify looks at what the user wants to run. File transfer is recognised
// by the exact form the clients of scp and rsync send; anything a shell would
// read more into is a plain command, recorded in full (FEATURES C31).
func classify(s start) program {
	switch s.kind {
	case "shell":
		return program{want: access.Shell, kind: "ssh", class: wire.Interactive}
	case "subsystem":
		if s.command == "sftp" {
			return program{want: access.FileTransfer, kind: "sftp", class: wire.Bulk, name: "sftp"}
		}
		return program{want: access.Exec, kind: "exec", class: wire.Interactive}
	}
	words, plain := shellWords(s.command)
	if plain && len(words) > 0 {
		switch {
		case isSCP(words):
			return program{want: access.FileTransfer, kind: "exec", class: wire.Bulk, content: true, name: "scp"}
		case isRsync(words):
			return program{want: access.FileTransfer, kind: "exec", class: wire.Bulk, content: true, name: "rsync"}
		case isSFTPServer(words):
			return program{want: access.FileTransfer, kind: "sftp", class: wire.Bulk, name: "sftp"}
		case isGit(words):
			return program{want: access.Exec, kind: "exec", class: wire.Bulk, content: true, name: "git"}
		}
	}
	return program{want: access.Exec, kind: "exec", class: wire.Interactive}
}

// shellWords splits a command as sh would when nothing in it means more than
// words; plain is false when something might.
func shellWords(s string) (words []string, plain bool) {
	var b strings.Builder
	in := false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == ' ' || c == '\t':
			if in {
				words, in = append(words, b.String()), false
				b.Reset()
			}
		case c == '\'':
			end := strings.IndexByte(s[i+1:], '\'')
			if end < 0 {
				return nil, false
			}
			b.WriteString(s[i+1 : i+1+end])
			in, i = true, i+1+end
		case c == '"':
			end := strings.IndexByte(s[i+1:], '"')
			if end < 0 || strings.ContainsAny(s[i+1:i+1+end], "$`\\!") {
				return nil, false
			}
			b.WriteString(s[i+1 : i+1+end])
			in, i = true, i+1+end
		case c == '\\':
			if i++; i == len(s) || s[i] == '\n' {
				return nil, false
			}
			b.WriteByte(s[i])
			in = true
		case strings.IndexByte(";&|<>()$`\n\r!#{}", c) >= 0 || c < ' ' || c == 0x7f:
			return nil, false
		case c == '=' && len(words) == 0:
			return nil, false // an assignment before the command changes what runs
		default:
			b.WriteByte(c)
			in = true
		}
	}
	if in {
		words = append(words, b.String())
	}
	return words, true
}

// isSCP: scp [-v] [-r] [-p] [-d] [-q] -t|-f [--] PATH, as OpenSSH's scp -O sends it.
func isSCP(w []string) bool {
	if w[0] != "scp" || len(w) < 3 {
		return false
	}
	role := false
	for i, a := range w[1:] {
		switch {
		case a == "--":
			return role && i+2 < len(w)
		case len(a) > 1 && a[0] == '-':
			if strings.Trim(a[1:], "vrpdqtf") != "" {
				return false
			}
			role = role || strings.ContainsAny(a, "tf")
		default:
			return role
		}
	}
	return false
}

// isRsync: rsync --server …, the far end of a transfer. A daemon reads a
// configuration that can name programs to run; it is a plain command.
func isRsync(w []string) bool {
	if w[0] != "rsync" || len(w) < 2 || w[1] != "--server" {
		return false
	}
	return !slices.ContainsFunc(w[2:], func(a string) bool {
		return strings.HasPrefix(a, "--") && (strings.HasPrefix(a, "--d") && strings.HasPrefix("--daemon", a) ||
			strings.HasPrefix(a, "--config") || strings.HasPrefix(a, "--rsh") || strings.HasPrefix(a, "--early-input"))
	})
}

// isSFTPServer: the program in one of its places, word for word. A path that
// only cleans up to one may lead elsewhere by a symbolic link, and a relative
// one to a file the user has put there.
func isSFTPServer(w []string) bool {
	return len(w) == 1 && slices.Contains([]string{"sftp-server", "/usr/lib/sftp-server", "/usr/lib/openssh/sftp-server",
		"/usr/lib/ssh/sftp-server", "/usr/libexec/sftp-server", "/usr/libexec/openssh/sftp-server"}, w[0])
}

// isGit: git-upload-pack, git-receive-pack, git-upload-archive with one path,
// also in the form "git upload-pack".
func isGit(w []string) bool {
	if w[0] == "git" && len(w) == 3 {
		w = []string{"git-" + w[1], w[2]}
	}
	return len(w) == 2 && !strings.HasPrefix(w[1], "-") &&
		slices.Contains([]string{"git-upload-pack", "git-receive-pack", "git-upload-archive"}, w[0])
}
