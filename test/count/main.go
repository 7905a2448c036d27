// Count reads what `go test -json` writes and prints one line: how many tests
// passed, failed and were skipped, subtests included. A package that fails without
// a failed test (it did not build, or crashed) counts as one failure. It ends with
// status 1 if anything failed or nothing ran.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	passed, failed, skipped, err := count(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "counting tests:", err)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if err != nil || failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

func count(r io.Reader) (passed, failed, skipped int, err error) {
	lines := bufio.NewReader(r)
	inPackage := map[string]int{} // failed tests by package
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return passed, failed, skipped, nil
		}
		if err != nil {
			return passed, failed, skipped, err
		}
		var event struct{ Action, Package, Test string }
		if err := json.Unmarshal(line, &event); err != nil {
			return passed, failed, skipped, fmt.Errorf("a line is no event of go test -json: %w", err)
		}
		switch {
		case event.Action == "pass" && event.Test != "":
			passed++
		case event.Action == "skip" && event.Test != "":
			skipped++
		case event.Action == "fail" && event.Test != "":
			failed++
			inPackage[event.Package]++
		case event.Action == "fail" && inPackage[event.Package] == 0:
			failed++
		}
	}
}
