package embedded

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Exception is an error of the engine, or of the endpoint in the engine's terms.
// Code is ClickHouse's error code (ErrorCodes.cpp); 0 where the engine gave none.
type Exception struct {
	Code    int
	Message string // without "Code: N. DB::Exception: "
}

func (e *Exception) Error() string {
	return fmt.Sprintf("Code: %d. DB::Exception: %s", e.Code, e.Message)
}

// CodeNotEnoughSpace is what an insert is refused with at the disk cap (and what the
// engine itself raises on a full disk): the rows are fine, retry later.
const CodeNotEnoughSpace = 243

// ClickHouse's codes the endpoint itself raises.
const (
	codeSyntaxError    = 62
	codeUnknownFormat  = 73
	codeCannotParse    = 6
	codeNoSuchColumn   = 16
	codeUnknownSetting = 115
	codeReadonly       = 164
	codeTooManyQueries = 202

	codeSupportDisabled  = 344
	codeQueryCancelled   = 394
	codeAccessDenied     = 497
	codeAuthentication   = 516
	codeNotImplemented   = 48
	codeBadArguments     = 36
	codeLimitExceeded    = 290
	codeUnknownException = 1002
	codeCannotDecompress = 271
)

var exceptionHead = regexp.MustCompile(`(?s)^(?:Error: )?Code: (\d+)\. (?:DB::Exception: )?`)

func parseException(s string) *Exception {
	if m := exceptionHead.FindStringSubmatchIndex(s); m != nil {
		code, err := strconv.Atoi(s[m[2]:m[3]])
		if err == nil {
			return &Exception{Code: code, Message: strings.TrimSpace(s[m[1]:])}
		}
	}
	return &Exception{Code: codeUnknownException, Message: strings.TrimSpace(s)}
}
