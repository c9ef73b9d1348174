package edge

import (
	"os"
	"path/filepath"
	"testing"

	"caponier/shared/config"
)

func TestToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(" from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"CAPONIER_TOKEN=from-env"}
	for _, c := range []struct {
		name, flag, file, cfgFile string
		environ                   []string
		want                      config.Secret
	}{
		{"flag wins", "from-flag", file, file, env, "from-flag"},
		{"file", "", file, "", env, "from-file"},
		{"environment", "", "", file, env, "from-env"},
		{"config", "", "", file, nil, "from-file"},
		{"config, file gone", "", "", file + "x", nil, ""},
		{"none", "", "", "", nil, ""},
	} {
		if got, err := FindToken(c.flag, c.file, c.cfgFile, c.environ); got != c.want || err != nil {
			t.Errorf("%s: %q, %v", c.name, got.Reveal(), err)
		}
	}
}
