package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

var openapiOut = flag.String("openapi", "", "write core's OpenAPI document to this file, for `make api`")

// The console's client is made from the interface as it is now.
func TestConsoleClientIsFresh(t *testing.T) {
	s, err := New(t.Context(), testConfig(t), Deps{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.frame.Close()
		s.listen.close()
		s.db.Close()
	})
	w := httptest.NewRecorder()
	s.frame.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "https://core.test/api/v1/openapi.json", nil))
	var doc map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != 200 {
		t.Fatalf("%d %v", w.Code, err)
	}
	doc["info"].(map[string]any)["version"] = "any" // of the build, not of the interface
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if *openapiOut != "" {
		if err := os.WriteFile(*openapiOut, text, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	client, err := os.ReadFile(filepath.Join("..", "webui", "src", "api", "schema.d.ts"))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	if !bytes.Contains(client, []byte("// sha256 "+hex.EncodeToString(sum[:])+"\n")) {
		t.Error("core/internal/webui/src/api/schema.d.ts is older than the interface: run `make api` (needs Node)")
	}
}
