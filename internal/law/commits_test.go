package law

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A12. Transactions are committed where the client is asked first whether it
// knows what it wrote.
func TestCommitsAreOfWhatIsKnown(t *testing.T) {
	may := []string{"internal/kafka/ending.go", "pipeline/transform/txn.go"}
	seen, tree := 0, os.DirFS(filepath.Join("..", ".."))
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "benchmarks/") {
			return err
		}
		text, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		if !strings.Contains(string(text), "kgo.TryCommit") {
			return nil
		}
		if seen++; !slices.Contains(may, name) {
			t.Errorf("%s commits a transaction by itself: use kafka.Commit", name)
		}
		return nil
	})
	if err != nil || seen < len(may) {
		t.Errorf("%d files commit: %v", seen, err)
	}
}
