package agent

import (
	"testing"

	"github.com/postern/postern/flow"
)

func FuzzCEF(f *testing.F)        { fuzzFormat(f, "cef") }
func FuzzGuardicore(f *testing.F) { fuzzFormat(f, "guardicore") }

func BenchmarkCEF(b *testing.B) { benchLines(b, "cef", "cef.log", 0, 1, 2, 3, 4) }

func BenchmarkGuardicore(b *testing.B) { benchLines(b, "guardicore", "guardicore.log", 0, 1, 2) }

// TestCEFTimes reads every form of time.
func TestCEFTimes(t *testing.T) {
	d, err := NewDecoder("cef", Config{}, flow.NewNames(0))
	if err != nil {
		t.Fatal(err)
	}
	received, _ := when([]byte("2023-11-14T22:13:20Z"))
	e := &entry{d: d, o: &Origin{Received: received}}
	for in, want := range map[string]string{
		"1700000000123":                "2023-11-14T22:13:20.123Z",
		"1700000000":                   "2023-11-14T22:13:20.000Z",
		"Nov 14 2023 22:13:20":         "2023-11-14T22:13:20.000Z",
		"Nov 4 2023 22:13:20.5":        "2023-11-04T22:13:20.500Z",
		"Nov 14 2023 22:13:20.250 UTC": "2023-11-14T22:13:20.250Z",
		"Nov 14 22:13:20":              "2023-11-14T22:13:20.000Z",
		"Nov 14 22:13:20.125 GMT":      "2023-11-14T22:13:20.125Z",
		"2023-11-14T22:13Z":            "2023-11-14T22:13:00.000Z",
		"2023-11-14T22:13:20+01:00":    "2023-11-14T21:13:20.000Z",
		"Nov 14 2023 22:13:20 CEST":    "",
		"Nov 31 2023 22:13:20":         "",
		"17000000001234567":            "",
		"soon":                         "",
		"":                             "",
	} {
		if got, ok := e.cefTime([]byte(in)); got.String() != want || ok != (want != "") {
			t.Errorf("%s is read as %v, want %s", in, got, want)
		}
	}
}
