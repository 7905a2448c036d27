package embedded

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// Version is the version of the engine and of the npm package it comes in.
const Version = "26.7.3-stable.1"

// artifact is one platform's library: an npm package pinned by version and by the
// SHA-512 of its archive (the registry's "integrity", RFC 6920 style base64).
type artifact struct {
	goos, goarch string
	pkg          string
	integrity    string
	member       string // path of the library in the archive
	size         int64  // bytes of the library
}

// catalogue lists the platforms the engine was published for at [Version]. chdb
// names packages for linux/arm64, darwin/arm64 and darwin/amd64 too, but at this
// version the registry holds only this one, so no other can be pinned.
var catalogue = []artifact{{
	goos: "linux", goarch: "amd64",
	pkg:       "@chdb/lib-linux-x64-gnu",
	integrity: "sha512-XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw==",
	member:    "package/libchdb.so",
	size:      566330096,
}}

func artifactFor(goos, goarch string) (artifact, error) {
	i := slices.IndexFunc(catalogue, func(a artifact) bool { return a.goos == goos && a.goarch == goarch })
	if i < 0 {
		var have []string
		for _, a := range catalogue {
			have = append(have, a.goos+"/"+a.goarch)
		}
		return artifact{}, fmt.Errorf("there is no embedded ClickHouse %s for %s/%s, only for %s; use a server instead: clickhouse.url: clickhouse://user@host:9000",
			Version, goos, goarch, strings.Join(have, ", "))
	}
	return catalogue[i], nil
}

// Supported says whether the engine exists for this platform; the error names the
// server option.
func Supported() error {
	_, err := artifactFor(runtime.GOOS, runtime.GOARCH)
	return err
}
