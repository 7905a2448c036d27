package embedded

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// ErrNotCached is wrapped by Locate's error where the library is not in the cache.
var ErrNotCached = errors.New("the embedded ClickHouse is not on this machine yet")

const (
	// maxArchive bounds the download; the archive is 178 MB.
	maxArchive = 1 << 30
	// maxLibrary bounds what is unpacked; the library is 566 MB.
	maxLibrary = 2 << 30
)

// DefaultCacheDir is $POSTERN_CACHE, else postern in the user's cache directory.
func DefaultCacheDir() (string, error) {
	if d := os.Getenv("POSTERN_CACHE"); d != "" {
		return d, nil
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w; set POSTERN_CACHE to the directory for the embedded ClickHouse", err)
	}
	return filepath.Join(d, "postern"), nil
}

// marker stands beside the library and says that what lies there was verified: a
// start compares size and time with the file's instead of hashing half a gigabyte.
type marker struct {
	Package   string    `json:"package"`
	Version   string    `json:"version"`
	Integrity string    `json:"integrity"`
	Size      int64     `json:"size"`
	Modified  time.Time `json:"modified"`
}

func paths(cacheDir string, a artifact) (dir, lib, mark string, err error) {
	if cacheDir == "" {
		if cacheDir, err = DefaultCacheDir(); err != nil {
			return "", "", "", err
		}
	}
	if cacheDir, err = filepath.Abs(cacheDir); err != nil {
		return "", "", "", err
	}
	dir = filepath.Join(cacheDir, "chdb-"+Version+"-"+a.goos+"-"+a.goarch)
	return dir, filepath.Join(dir, "libchdb.so"), filepath.Join(dir, "verified.json"), nil
}

// Locate returns the library's path in cacheDir (empty: [DefaultCacheDir]). It reads
// no more than a marker. The error wraps [ErrNotCached] where the library is not
// there, and says what fetches it.
func Locate(cacheDir string) (string, error) {
	a, err := artifactFor(runtime.GOOS, runtime.GOARCH)
	if err != nil {
		return "", err
	}
	return locate(cacheDir, a)
}

func locate(cacheDir string, a artifact) (string, error) {
	dir, lib, mark, err := paths(cacheDir, a)
	if err != nil {
		return "", err
	}
	missing := func(why string) error {
		return fmt.Errorf("%w: %s in %s; fetch it with `postern engine fetch` (or `make engine`), or use a server: clickhouse.url: clickhouse://user@host:9000", ErrNotCached, why, dir)
	}
	b, err := os.ReadFile(mark)
	if errors.Is(err, os.ErrNotExist) {
		return "", missing("there is no verified library")
	} else if err != nil {
		return "", err
	}
	var m marker
	if json.Unmarshal(b, &m) != nil || m.Integrity != a.integrity {
		return "", missing("the library is another one than this program wants")
	}
	info, err := os.Stat(lib)
	// An archive or the layer of an image keeps whole seconds.
	if err != nil || info.Size() != m.Size || info.ModTime().Unix() != m.Modified.Unix() {
		return "", missing("the library changed since it was verified")
	}
	return lib, nil
}

// Fetch puts the library into cacheDir (empty: [DefaultCacheDir]) unless it is
// there, and returns its path. The archive's address comes from npm, so the user's
// registry, mirror and proxy settings count; what comes is held against the SHA-512
// in this program. progress may be nil; it is called from one goroutine with the
// bytes done and the total, -1 where that is not known. Several processes may call
// it at once: one downloads, the others wait.
func Fetch(ctx context.Context, cacheDir string, progress func(done, total int64)) (string, error) {
	a, err := artifactFor(runtime.GOOS, runtime.GOARCH)
	if err != nil {
		return "", err
	}
	if lib, err := locate(cacheDir, a); !errors.Is(err, ErrNotCached) {
		return lib, err
	}
	dir, _, _, err := paths(cacheDir, a)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := waitLock(ctx, filepath.Join(dir, "fetch.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if lib, err := locate(cacheDir, a); !errors.Is(err, ErrNotCached) {
		return lib, err // another process has fetched it meanwhile
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	archive := filepath.Join(dir, "archive.tgz.part")
	direct := func() error {
		address, err := tarball(ctx, a)
		if err != nil {
			return err
		}
		return download(ctx, address, archive, a.integrity, progress)
	}
	if err := direct(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if packErr := npmPack(ctx, a, dir, archive); packErr != nil {
			return "", fmt.Errorf("fetching %s@%s: %w; `npm pack` failed too: %w", a.pkg, Version, err, packErr)
		}
	}
	lib, err := install(cacheDir, a, archive)
	// A good archive is not needed any more and a bad one must not be resumed.
	_ = os.Remove(archive)
	return lib, err
}

// npm runs npm with the caller's environment and returns what it prints.
func npm(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "npm", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("npm is not installed; the engine comes as an npm package, so install npm (Node.js) to fetch it, or fetch on another machine and copy the cache directory")
	}
	if err != nil {
		msg := strings.TrimSpace(stderr.String())
		return "", fmt.Errorf("npm %s: %w: %s", args[0], err, msg[max(0, len(msg)-500):])
	}
	return strings.TrimSpace(string(out)), nil
}

// tarball asks npm where the archive is, and holds what the registry says of its
// hash against ours before anything large is downloaded.
func tarball(ctx context.Context, a artifact) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := npm(ctx, "", "view", a.pkg+"@"+Version, "dist.tarball", "dist.integrity", "--json")
	if err != nil {
		return "", err
	}
	var dist map[string]string
	if err := json.Unmarshal([]byte(out), &dist); err != nil {
		return "", fmt.Errorf("npm view answered what is no JSON: %w", err)
	}
	if i := dist["dist.integrity"]; i != "" && i != a.integrity {
		return "", fmt.Errorf("the registry's %s@%s has the integrity %s, not %s", a.pkg, Version, i, a.integrity)
	}
	u, err := url.Parse(dist["dist.tarball"])
	if err != nil || u.Scheme != "https" && u.Scheme != "http" {
		return "", fmt.Errorf("npm view names no address for %s@%s: %q", a.pkg, Version, dist["dist.tarball"])
	}
	return u.String(), nil
}

// errIntegrity is a download that is whole and wrong.
var errIntegrity = errors.New("the archive's SHA-512 is not the pinned one")

// download gets address into path, resumes what breaks off, and verifies it while
// it streams by. Proxy settings are taken from the environment.
func download(ctx context.Context, address, path, integrity string, progress func(done, total int64)) error {
	client := &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 20 * time.Second, ResponseHeaderTimeout: time.Minute, ForceAttemptHTTP2: true,
	}}
	defer client.CloseIdleConnections()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	// What an earlier call left is hashed again and resumed.
	hash := sha512.New()
	done, err := io.Copy(hash, f)
	if err != nil {
		return err
	}
	restart := func() error {
		hash.Reset()
		done = 0
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		return f.Truncate(0)
	}
	attempt := func() (struct{}, error) {
		none := struct{}{}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return none, backoff.Permanent(err)
		}
		if done > 0 {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", done))
		}
		resp, err := client.Do(req)
		if err != nil {
			return none, err
		}
		defer resp.Body.Close()
		total := resp.ContentLength
		switch {
		case resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", done)):
			if total >= 0 {
				total += done
			}
		case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
			// The part is whole already, or is of something else: the hash says which.
			if sum(hash.Sum(nil)) == integrity {
				return none, nil
			}
			return none, errors.Join(restart(), errors.New("the part downloaded earlier does not fit; from the start"))
		case resp.StatusCode == http.StatusOK:
			if err := restart(); err != nil {
				return none, backoff.Permanent(err)
			}
		default:
			err := fmt.Errorf("the registry answered %s", resp.Status)
			if resp.StatusCode >= 400 && resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestTimeout {
				return none, backoff.Permanent(err)
			}
			return none, err
		}
		if total > maxArchive {
			return none, backoff.Permanent(fmt.Errorf("the archive has %d bytes; at most %d are taken", total, maxArchive))
		}
		// A server that falls silent is given up after a minute and resumed.
		silent := time.AfterFunc(time.Minute, cancel)
		defer silent.Stop()
		buf := make([]byte, 256<<10)
		for {
			n, err := resp.Body.Read(buf)
			if n > 0 {
				silent.Reset(time.Minute)
				if _, werr := f.Write(buf[:n]); werr != nil {
					return none, backoff.Permanent(werr)
				}
				hash.Write(buf[:n])
				if done += int64(n); done > maxArchive {
					return none, backoff.Permanent(fmt.Errorf("the archive has more than %d bytes", maxArchive))
				}
				progress(done, total)
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return none, err
			}
		}
		if total >= 0 && done < total {
			return none, io.ErrUnexpectedEOF
		}
		if sum(hash.Sum(nil)) != integrity {
			if err := restart(); err != nil {
				return none, backoff.Permanent(err)
			}
			return none, backoff.Permanent(errIntegrity)
		}
		return none, nil
	}
	if _, err := backoff.Retry(ctx, attempt, backoff.WithBackOff(backoff.NewExponentialBackOff()), backoff.WithMaxTries(6), backoff.WithMaxElapsedTime(30*time.Minute)); err != nil {
		return fmt.Errorf("downloading the engine: %w", err)
	}
	return nil
}

func sum(b []byte) string { return "sha512-" + base64.StdEncoding.EncodeToString(b) }

// npmPack lets npm download, for registries only npm can speak to.
func npmPack(ctx context.Context, a artifact, dir, archive string) error {
	tmp, err := os.MkdirTemp(dir, "pack-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if _, err := npm(ctx, tmp, "pack", "--silent", a.pkg+"@"+Version); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(tmp, "*.tgz"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("npm pack left %d archives, not one", len(found))
	}
	return os.Rename(found[0], archive)
}

// install takes the library out of a verified archive: into a temporary name first,
// so that what stands under the final name is always whole.
func install(cacheDir string, a artifact, archive string) (string, error) {
	dir, lib, mark, err := paths(cacheDir, a)
	if err != nil {
		return "", err
	}
	f, err := os.Open(archive)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha512.New()
	z, err := gzip.NewReader(bufio.NewReaderSize(io.TeeReader(f, hash), 1<<20))
	if err != nil {
		return "", fmt.Errorf("unpacking the engine: %w", err)
	}
	tmp, err := os.CreateTemp(dir, "libchdb-*.part")
	if err != nil {
		return "", err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	var size int64 = -1
	tr := tar.NewReader(z)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("unpacking the engine: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		switch base := filepath.Base(h.Name); {
		case h.Name == a.member && size < 0:
			if size, err = io.Copy(tmp, io.LimitReader(tr, maxLibrary)); err != nil {
				return "", fmt.Errorf("unpacking the engine: %w", err)
			}
		case strings.HasPrefix(strings.ToUpper(base), "LICENSE") || strings.HasPrefix(strings.ToUpper(base), "NOTICE") || base == "package.json":
			b, err := io.ReadAll(io.LimitReader(tr, 1<<20))
			if err != nil {
				return "", fmt.Errorf("unpacking the engine: %w", err)
			}
			if err := os.WriteFile(filepath.Join(dir, base), b, 0o644); err != nil {
				return "", err
			}
		}
	}
	// What lies behind the tar's end belongs to the hash too.
	if _, err := io.Copy(hash, f); err != nil {
		return "", err
	}
	if got := sum(hash.Sum(nil)); got != a.integrity {
		return "", fmt.Errorf("%w: got %s, want %s", errIntegrity, got, a.integrity)
	}
	if size != a.size {
		return "", fmt.Errorf("the archive holds %d bytes of %s, not %d", size, a.member, a.size)
	}
	if err := errors.Join(tmp.Chmod(0o755), tmp.Sync(), tmp.Close()); err != nil {
		return "", err
	}
	if err := os.Rename(tmp.Name(), lib); err != nil {
		return "", err
	}
	info, err := os.Stat(lib)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(marker{Package: a.pkg, Version: Version, Integrity: a.integrity, Size: info.Size(), Modified: info.ModTime()})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(mark+".part", b, 0o644); err != nil {
		return "", err
	}
	return lib, os.Rename(mark+".part", mark)
}
