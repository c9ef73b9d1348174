package recording

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/vault"
	"caponier/shared/wire"
)

// childEnv makes this test binary a core that records until it is killed.
const childEnv = "CAPONIER_TEST_RECORDER"

// place is where parent and child meet.
type meeting struct {
	DB  db.Config
	Dir string
	KEK string // file
}

func (m meeting) open(ctx context.Context) (*Store, *db.DB, error) {
	d, err := db.Open(ctx, m.DB)
	if err != nil {
		return nil, nil, err
	}
	kek, err := vault.LoadKEK(m.KEK)
	if err != nil {
		return nil, nil, err
	}
	log := slog.New(slog.DiscardHandler)
	v, err := vault.New(ctx, vault.Config{DB: d, Audit: audit.New(d, time.Now), Log: log, KEK: kek})
	if err != nil {
		return nil, nil, err
	}
	s, err := New(Config{
		DB: d, Audit: audit.New(d, time.Now), Keys: v, Dir: m.Dir, CoreID: "cor_test", Now: time.Now, Log: log,
		Limits: func() Limits { return Limits{Retention: time.Hour} },
	})
	return s, d, err
}

// record writes frames of all sizes and says after each batch what is kept.
func record(text string) error {
	var m meeting
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return err
	}
	ctx := context.Background()
	s, _, err := m.open(ctx)
	if err != nil {
		return err
	}
	w, err := s.CreateWeb(ctx, webMeta("demo"))
	if err != nil {
		return err
	}
	go s.Run(ctx)
	fmt.Println(w.ID)
	for seq := uint64(1); ; {
		var recs []wire.WebRecord
		for range rand.IntN(8) + 1 {
			recs = append(recs, frameRecord(seq, time.Now(), killSize(seq)))
			seq++
		}
		if err := w.Append("carrier", 0, recs); err != nil {
			return err
		}
		fmt.Println(w.Next("carrier"))
	}
}

// killSize makes some frames span many blocks.
func killSize(seq uint64) int { return int(seq%7) * int(seq%5) * 20 << 10 }

// A core is killed in the middle of writing: everything it acknowledged is
// there, the recording goes on, and is whole.
func TestWebKilled(t *testing.T) {
	for name, make := range map[string]func(t *testing.T) db.Config{
		"sqlite": func(t *testing.T) db.Config {
			return db.Config{Engine: db.SQLite, Path: filepath.Join(t.TempDir(), "core.db")}
		},
		"postgres": func(t *testing.T) db.Config {
			return db.Config{Engine: db.Postgres, URL: dbtest.PostgresURL(t), AllowPlaintext: true}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := meeting{DB: make(t), Dir: t.TempDir(), KEK: filepath.Join(t.TempDir(), "kek")}
			must(t, vault.WriteKEK(m.KEK, vault.GenerateKEK()))
			d, err := db.Open(t.Context(), m.DB)
			must(t, err)
			_, err = d.Migrate(t.Context())
			must(t, err, d.Close())
			text, err := json.Marshal(m)
			must(t, err)

			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+string(text))
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			must(t, err, cmd.Start())
			lines := bufio.NewScanner(out)
			lines.Scan()
			id := lines.Text()
			var kept uint64
			for range 5 {
				lines.Scan()
			}
			if _, err := fmt.Sscan(lines.Text(), &kept); err != nil || !validID(id) {
				t.Fatalf("child says %q, %q", id, lines.Text())
			}
			must(t, cmd.Process.Kill())
			for lines.Scan() { // what it said in its last moment counts too
				fmt.Sscan(lines.Text(), &kept)
			}
			if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("child: %v", err)
			}

			s, d, err := m.open(t.Context())
			must(t, err)
			defer d.Close()
			w, err := s.ResumeWeb(t.Context(), id)
			must(t, err)
			next := w.Next("carrier")
			if next < kept {
				t.Fatalf("%d frames acknowledged, %d there", kept-1, next-1)
			}
			// A node sends again what it does not know to be kept.
			var again []wire.WebRecord
			for seq := kept; seq < next+3; seq++ {
				again = append(again, frameRecord(seq, time.Now(), killSize(seq)))
			}
			must(t, w.Append("carrier", 0, again), w.Close())

			if v, err := s.Verify(t.Context(), id); err != nil || v.Status != Complete {
				t.Fatalf("verify: %+v, %v", v, err)
			}
			x, err := s.Recording(t.Context(), id)
			must(t, err)
			items, _ := (&rig{Store: s, t: t}).items(x)
			seq, marks := uint64(0), 0
			for _, it := range items {
				if it.Event == EventResumed {
					marks++
					continue
				}
				if seq++; it.Seq != seq || !bytes.Equal(it.Data, noise(seq, killSize(seq))) {
					t.Fatalf("frame %d is number %d with %d bytes", seq, it.Seq, len(it.Data))
				}
			}
			if seq != next+2 || marks != 1 {
				t.Errorf("%d frames, want %d; %d marks", seq, next+2, marks)
			}
		})
	}
}
