package embedded

import (
	"strings"
)

// guard decides what a statement may contain under the read-only token. The
// engine's readonly=1 refuses writes, changes of settings and the table functions
// that make temporary tables, but not everything that reads local files, so the
// engine's own syntax tree is searched too:
//
//   - one statement, of the class that leaves no trace, and a SELECT, SHOW,
//     DESCRIBE, EXISTS, EXPLAIN or CHECK;
//   - no table function but the harmless ones, and none of the functions that read
//     files or speak to the network;
//   - none of the constructs whose expressions the tree does not show: APPLY takes
//     a function by name, SHOW … WHERE takes any expression, SETTINGS may hold one
//     (and readonly=1 lets them pass in a subquery).
type guard struct{ denied map[string]bool }

// harmless table functions make rows out of nothing or of their arguments.
var harmless = map[string]bool{
	"numbers": true, "numbers_mt": true, "zeros": true, "zeros_mt": true, "generateseries": true, "generate_series": true,
	"values": true, "null": true, "primes": true, "generaterandom": true, "view": true,
	"format": true, // also the plain function of that name; as a table function readonly=1 refuses it
}

func newGuard(tableFunctions []string) *guard {
	g := &guard{denied: map[string]bool{"file": true, "catboostevaluate": true}}
	for _, f := range tableFunctions {
		if f = strings.ToLower(f); !harmless[f] {
			g.denied[f] = true
		}
	}
	return g
}

var readOnlyVerbs = map[string]bool{
	"SELECT": true, "WITH": true, "FROM": true, "SHOW": true, "DESCRIBE": true, "DESC": true, "EXISTS": true, "EXPLAIN": true, "CHECK": true,
}

func refuse(why string) error {
	return &Exception{Code: codeReadonly, Message: why + " (READONLY)"}
}

// check returns why text is refused, nil if it is not.
func (g *guard) check(s *session, text string, st statement, ps []param) error {
	class, n, err := s.Classify(text)
	if err != nil {
		return err
	}
	if !readOnlyVerbs[st.verb] || class != classReadOnly && class != classUnknown || n > 1 {
		return refuse("the read-only token allows a single SELECT, SHOW, DESCRIBE, EXISTS, EXPLAIN or CHECK")
	}
	if st.verb == "SHOW" && strings.Contains(text, "(") {
		return refuse("the read-only token allows no expression in SHOW; select from the system tables instead")
	}
	tree, _, err := s.Query("EXPLAIN AST "+text, "TSVRaw", ps...)
	if err != nil {
		return err // what does not parse does not run
	}
	return g.checkTree(string(tree))
}

// checkTree reads EXPLAIN AST's output, a node a line. A line break inside a name
// makes lines that are no nodes; they can only be refused for nothing.
func (g *guard) checkTree(tree string) error {
	for line := range strings.Lines(tree) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "ColumnsApplyTransformer") {
			return refuse("the read-only token allows no APPLY; write the function out for each column")
		}
		if line == "Set" {
			return refuse("the read-only token allows no SETTINGS in a statement; send them in the URL")
		}
		name, ok := strings.CutPrefix(line, "Function ")
		if !ok {
			continue
		}
		if i := strings.Index(name, " ("); i >= 0 {
			name = name[:i]
		}
		low := strings.ToLower(name)
		if g.denied[low] || strings.HasPrefix(low, "ai") && len(name) > 2 && (name[0] == 'A' || name[2] >= 'A' && name[2] <= 'Z') {
			return refuse("the read-only token does not allow the function " + name)
		}
	}
	return nil
}

// readerSettings are the settings a read-only request may carry in its URL: how
// long, how much, how it looks. Others (additional_result_filter, say) hold
// expressions or switch protections off.
func readerSetting(name string) bool {
	switch name {
	case "max_execution_time", "max_result_rows", "max_rows_to_read", "max_bytes_to_read", "max_block_size", "max_threads",
		"result_overflow_mode", "read_overflow_mode", "timeout_overflow_mode", "session_timezone", "extremes", "limit", "offset", "readonly",
		"date_time_output_format", "enable_http_compression", "http_zlib_compression_level", "network_compression_method", "network_zstd_compression_level",
		"send_progress_in_http_headers", "http_headers_progress_interval_ms", "cancel_http_readonly_queries_on_client_close", "log_comment",
		"http_connection_timeout", "http_receive_timeout", "http_send_timeout", "connect_timeout", "receive_timeout", "send_timeout",
		"join_use_nulls", "allow_experimental_analyzer", "enable_analyzer", "log_queries", "final", "use_query_cache":
		return true
	}
	return strings.HasPrefix(name, "output_format_")
}
