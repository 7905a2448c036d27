package embedded

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func fakeArchive(t *testing.T, a *artifact, lib []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, body := range map[string][]byte{"package/libchdb.so": lib, "package/package.json": []byte("{}"), "package/other.node": []byte("x"), "../../escape": []byte("x")} {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(body)), Mode: 0o755, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	h := sha512.Sum512(b.Bytes())
	*a = artifact{goos: "linux", goarch: "amd64", pkg: "@x/y", integrity: sum(h[:]), member: "package/libchdb.so", size: int64(len(lib))}
	return b.Bytes()
}

func TestDownloadAndInstall(t *testing.T) {
	var a artifact
	lib := bytes.Repeat([]byte("library "), 100_000)
	archive := fakeArchive(t, &a, lib)
	calls := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch calls++; calls {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2: // breaks off half way
			w.Header().Set("Content-Length", "99999999")
			_, _ = w.Write(archive[:len(archive)/2])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		default:
			if calls == 3 && r.Header.Get("Range") == "" {
				t.Error("the download was not resumed")
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(archive))
		}
	}))
	defer srv.Close()
	cache := t.TempDir()
	dir, _, mark, err := paths(cache, a)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	part := filepath.Join(dir, "a.part")
	var last, whole int64
	if err := download(context.Background(), srv.URL, part, a.integrity, func(d, n int64) { last, whole = d, n }); err != nil {
		t.Fatal(err)
	}
	if last != int64(len(archive)) || whole != last {
		t.Errorf("progress ended at %d of %d; the archive has %d", last, whole, len(archive))
	}
	// Whole already: nothing is sent again.
	if err := download(context.Background(), srv.URL, part, a.integrity, func(int64, int64) { t.Error("sent again") }); err != nil {
		t.Fatal(err)
	}
	if _, err := locate(cache, a); !errors.Is(err, ErrNotCached) || !strings.Contains(err.Error(), "postern engine fetch") {
		t.Fatalf("%v; want ErrNotCached and the command", err)
	}
	path, err := install(cache, a, part)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, lib) {
		t.Fatal("the library is not what the archive holds")
	}
	if _, err := os.Stat(filepath.Join(cache, "..", "escape")); err == nil {
		t.Fatal("a member was written outside")
	}
	if got, err := locate(cache, a); err != nil || got != path {
		t.Fatal(got, err)
	}
	// As an archive or an image's layer keeps it: in whole seconds.
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, info.ModTime().Truncate(time.Second)); err != nil {
		t.Fatal(err)
	}
	if got, err := locate(cache, a); err != nil || got != path {
		t.Fatal(got, err)
	}
	// A library changed afterwards is not loaded.
	if err := os.WriteFile(path, []byte("other"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := locate(cache, a); !errors.Is(err, ErrNotCached) {
		t.Fatalf("a changed library: %v", err)
	}
	_ = os.Remove(mark)

	// What does not match the pin is not installed, nor resumed.
	a.integrity = sum(make([]byte, 64))
	if err := download(context.Background(), srv.URL, filepath.Join(dir, "b.part"), a.integrity, func(int64, int64) {}); !errors.Is(err, errIntegrity) {
		t.Fatalf("download: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, "b.part")); err != nil || info.Size() != 0 {
		t.Fatalf("a wrong archive was left: %v %v", info, err)
	}
	if _, err := install(cache, a, part); !errors.Is(err, errIntegrity) {
		t.Fatalf("install: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "libchdb-*.part")); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestDownloadGivesUp(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	err := download(context.Background(), srv.URL, filepath.Join(t.TempDir(), "x"), "sha512-x", func(int64, int64) {})
	if err == nil || !strings.Contains(err.Error(), "404") {
		t.Fatal(err)
	}
}

func TestOtherPlatforms(t *testing.T) {
	for _, p := range [][2]string{{"darwin", "arm64"}, {"linux", "arm64"}, {"windows", "amd64"}} {
		_, err := artifactFor(p[0], p[1])
		if err == nil || !strings.Contains(err.Error(), "clickhouse.url: clickhouse://") {
			t.Errorf("%v: %v; want the server option named", p, err)
		}
	}
	if _, err := artifactFor("linux", "amd64"); err != nil {
		t.Error(err)
	}
}

// TestNoRegistryInCode holds that the address comes from npm alone.
func TestNoRegistryInCode(t *testing.T) {
	b, err := os.ReadFile("fetch.go")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "https://") || strings.Contains(string(b), "npmjs") {
		t.Error("fetch.go names a registry")
	}
}
