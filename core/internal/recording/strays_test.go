package recording

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// A copy that a core died over goes after a day; one that is being written,
// and one that is kept, stay.
func TestStrayCopies(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		r.limits.FileMax = 1 << 20
		w := r.create("demo")
		copyOf := func(name string) *FileWriter {
			f, err := w.File(t.Context(), Upload, name)
			must(t, err)
			_, err = f.Write([]byte("content"))
			must(t, err)
			return f
		}
		dead, writing := copyOf("/dead"), copyOf("/writing")
		kept, err := copyOf("/kept").Close(t.Context())
		must(t, err)
		path := func(f File) string { return filepath.Join(r.dir, fileName(f.ID, kindFile, f.StoredAt)) }
		old := r.clock.now().Add(-strayAge - time.Minute)
		must(t, os.Chtimes(path(dead.file), old, old), os.Chtimes(path(kept), old, old), os.Chtimes(path(writing.file), r.clock.now(), r.clock.now()))
		must(t, r.dropStrays(t.Context()))
		if _, err := os.Stat(path(dead.file)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the copy nobody finishes: %v", err)
		}
		for name, f := range map[string]File{"being written": writing.file, "kept": kept} {
			if _, err := os.Stat(path(f)); err != nil {
				t.Errorf("the copy %s: %v", name, err)
			}
		}
		_, err = writing.Close(t.Context())
		must(t, err, dead.drop(), w.Close())
	})
}
