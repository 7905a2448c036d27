package sink

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ClusterConfig puts the tables on a cluster of servers. It is part of what a database
// was made with: a database made on one server is not turned into one on a cluster.
type ClusterConfig struct {
	// Name is the cluster's in the servers' remote_servers; empty means a single server.
	// Its shards must have internal_replication, its servers the macros {shard} and
	// {replica}.
	Name string `yaml:"name"`
	// Quorum is how many replicas of a shard must have stored an insert before it
	// counts: auto for most of them, or a number; 0 is the one that took it.
	Quorum string `yaml:"quorum"`
}

var clusterName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

func (c *ClusterConfig) validate(embedded bool) (errs []error) {
	if c.Name == "" {
		return nil
	}
	if !clusterName.MatchString(c.Name) {
		errs = append(errs, fmt.Errorf("clickhouse.cluster.name %q is no name of a cluster; use the one in the servers' remote_servers", c.Name))
	}
	if embedded {
		errs = append(errs, fmt.Errorf("clickhouse.cluster.name is %q while clickhouse.url is embedded; a cluster needs servers", c.Name))
	}
	if n, err := strconv.Atoi(c.Quorum); c.Quorum != "auto" && (err != nil || n < 0 || n > 100) {
		errs = append(errs, fmt.Errorf("clickhouse.cluster.quorum %q is neither auto nor a number of replicas from 0 to 100", c.Quorum))
	}
	return errs
}

// stored is the table that holds the rows of table.
func (c *ClusterConfig) stored(table string) string {
	if c.Name == "" {
		return table
	}
	return table + "_local"
}

// on is what follows a name in a statement that all servers are to run.
func (c *ClusterConfig) on() string {
	if c.Name == "" {
		return ""
	}
	return " ON CLUSTER '" + c.Name + "'"
}

// insertSettings are those that writing through a Distributed table needs: the answer
// comes when every shard has its rows, and each shard when its quorum has.
func (c *ClusterConfig) insertSettings() map[string]string {
	if c.Name == "" {
		return nil
	}
	return map[string]string{
		"distributed_foreground_insert": "1", "insert_distributed_one_random_shard": "0",
		// Without insert_quorum_parallel a quorum does not work through a Distributed table.
		"insert_quorum": c.Quorum, "insert_quorum_parallel": "1",
	}
}

// settingsClause is insertSettings as it goes on in a SETTINGS clause.
func (c *ClusterConfig) settingsClause() string {
	settings, out := c.insertSettings(), ""
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		out += ", " + k + " = '" + settings[k] + "'"
	}
	return out
}

// shardKeys say on which shard a row lies: a conversation's records and sessions
// together, all edges between two hosts together, a finding beside what was judged of
// it. What a ReplacingMergeTree or an AggregatingMergeTree is to put together must lie
// together, too; which is why a table that is not listed here, or has not got the columns
// yet, goes by all of its sorting key.
var shardKeys = map[string]struct {
	key     string
	columns []string
}{
	"flows":                 {"cityHash64(conversation)", []string{"conversation"}},
	"session_versions":      {"cityHash64(conversation)", []string{"conversation"}},
	"edge_hours":            {"cityHash64(least(client, server), greatest(client, server))", []string{"client", "server"}},
	"edge_days":             {"cityHash64(least(client, server), greatest(client, server))", []string{"client", "server"}},
	"finding_contributions": {"cityHash64(id)", []string{"id"}},
	"feedback":              {"cityHash64(finding)", []string{"finding"}},
	"blind_spot_versions":   {"cityHash64(id)", []string{"id"}},
	"exporters":             {"cityHash64(exporter)", []string{"exporter"}},
	"ledger":                {"cityHash64(exporter)", []string{"exporter"}},
}

// clusterDDL turns the statements of migrations into those for a cluster. A table X
// becomes X_local, of the Replicated engine of the same family, and X, a Distributed
// table over it; views are made over the Distributed ones, on every server. It goes
// through all migrations in order, since it must know which names are tables.
type clusterDDL struct {
	cluster  *ClusterConfig
	database string
	tables   map[string]string // the sharding key of each
	comments map[string]string // and its COMMENT clause
}

func (c *ClickHouseConfig) clusterDDL() *clusterDDL {
	return &clusterDDL{cluster: &c.Cluster, database: c.Database, tables: map[string]string{}, comments: map[string]string{}}
}

// all rewrites statements in order; it returns them as they are where there is no cluster.
func (d *clusterDDL) all(statements []string) ([]string, error) {
	if d.cluster.Name == "" {
		return statements, nil
	}
	var out []string
	for _, sql := range statements {
		s, err := d.rewrite(sql)
		if err != nil {
			return nil, err
		}
		out = append(out, s...)
	}
	return out, nil
}

// sqlToken is a word, a quoted text or one other character of SQL; depth counts the
// parentheses around it.
type sqlToken struct {
	text       string
	start, end int
	depth      int
}

var sqlTokens = regexp.MustCompile("(?s)'(?:\\\\.|''|[^'\\\\])*'|`(?:\\\\.|[^`\\\\])*`|\"(?:\\\\.|[^\"\\\\])*\"|--[^\n]*|/\\*.*?\\*/|\\w+|\\S")

func tokenize(sql string) []sqlToken {
	var out []sqlToken
	depth := 0
	for _, at := range sqlTokens.FindAllStringIndex(sql, -1) {
		t := sqlToken{text: sql[at[0]:at[1]], start: at[0], end: at[1], depth: depth}
		switch {
		case strings.HasPrefix(t.text, "--"), strings.HasPrefix(t.text, "/*"):
			continue
		case t.text == "(":
			depth++
		case t.text == ")":
			depth--
			t.depth = depth
		}
		out = append(out, t)
	}
	return out
}

// ddl is a statement under the reader's finger.
type ddl struct {
	sql    string
	tokens []sqlToken
	at     int
}

// words goes on if the next tokens are these words, in any case.
func (s *ddl) words(words ...string) bool {
	if s.at+len(words) > len(s.tokens) {
		return false
	}
	for i, w := range words {
		if !strings.EqualFold(s.tokens[s.at+i].text, w) {
			return false
		}
	}
	s.at += len(words)
	return true
}

// name goes over DATABASE.NAME and returns NAME and where all of it stands.
func (s *ddl) name(database string) (name string, start, end int, err error) {
	if s.at+3 > len(s.tokens) || s.tokens[s.at].text != database || s.tokens[s.at+1].text != "." {
		return "", 0, 0, fmt.Errorf("no %s.NAME where one was expected", database)
	}
	t := s.tokens[s.at : s.at+3]
	s.at += 3
	return t[2].text, t[0].start, t[2].end, nil
}

// find returns the position among the tokens of words outside of parentheses.
func (s *ddl) find(words ...string) int {
	for i := range s.tokens {
		probe := ddl{tokens: s.tokens, at: i}
		if s.tokens[i].depth == 0 && probe.words(words...) {
			return i
		}
	}
	return -1
}

func (d *clusterDDL) rewrite(sql string) ([]string, error) {
	s := &ddl{sql: sql, tokens: tokenize(sql)}
	fail := func(why string) ([]string, error) {
		return nil, fmt.Errorf("a statement cannot be put on a cluster: %s: %.120q", why, sql)
	}
	on := d.cluster.on()
	switch {
	case s.words("CREATE", "DATABASE", "IF", "NOT", "EXISTS", d.database):
		end := s.tokens[s.at-1].end
		return []string{sql[:end] + on + sql[end:]}, nil
	case s.words("CREATE", "TABLE", "IF", "NOT", "EXISTS"):
		return d.createTable(s)
	case s.words("CREATE", "VIEW", "IF", "NOT", "EXISTS"), s.words("CREATE", "OR", "REPLACE", "VIEW"), s.words("DROP", "VIEW", "IF", "EXISTS"):
		_, _, end, err := s.name(d.database)
		if err != nil {
			return fail(err.Error())
		}
		return []string{sql[:end] + on + sql[end:]}, nil
	case s.words("CREATE", "MATERIALIZED", "VIEW", "IF", "NOT", "EXISTS"):
		return d.createMaterialized(s)
	case s.words("ALTER", "TABLE"):
		name, _, end, err := s.name(d.database)
		if err != nil {
			return fail(err.Error())
		}
		if _, ok := d.tables[name]; !ok {
			return fail("no migration before it made the table " + name)
		}
		d.shard(name, s)
		return []string{sql[:end] + "_local" + on + sql[end:], d.distributed("CREATE OR REPLACE TABLE ", name)}, nil
	case s.words("INSERT"):
		return []string{sql + "\nSETTINGS " + strings.TrimPrefix(d.cluster.settingsClause(), ", ")}, nil // through the Distributed table, by one server
	}
	return fail("it is of a kind that nobody has thought about here")
}

func (d *clusterDDL) createTable(s *ddl) ([]string, error) {
	name, _, end, err := s.name(d.database)
	engine := s.find("ENGINE", "=")
	if err != nil || engine < 0 || engine+2 >= len(s.tokens) {
		return nil, fmt.Errorf("a table cannot be put on a cluster: it has no name or no ENGINE: %.120q", s.sql)
	}
	family := s.tokens[engine+2]
	if !strings.HasSuffix(family.text, "MergeTree") || strings.HasPrefix(family.text, "Replicated") {
		return nil, fmt.Errorf("the table %s cannot be put on a cluster: there is no Replicated engine for %s", name, family.text)
	}
	key := s.sortingKey()
	if key == "" {
		return nil, fmt.Errorf("the table %s cannot be put on a cluster: it has no ORDER BY to shard by", name)
	}
	d.tables[name] = "cityHash64(" + key + ")"
	d.shard(name, s)
	if i := s.find("COMMENT"); i > engine && i+1 < len(s.tokens) {
		d.comments[name] = "\nCOMMENT " + s.tokens[i+1].text
	}
	local := s.sql[:end] + "_local" + d.cluster.on() + s.sql[end:family.start] + "Replicated" + s.sql[family.start:]
	return []string{local, d.distributed("CREATE TABLE IF NOT EXISTS ", name)}, nil
}

// shard gives a table its key of shardKeys once a statement names the columns of it.
func (d *clusterDDL) shard(name string, s *ddl) {
	k, ok := shardKeys[name]
	for _, column := range k.columns {
		ok = ok && slices.ContainsFunc(s.tokens, func(t sqlToken) bool { return t.text == column })
	}
	if ok {
		d.tables[name] = k.key
	}
}

// sortingKey is the text of ORDER BY without the parentheses around all of it.
func (s *ddl) sortingKey() string {
	i := s.find("ORDER", "BY")
	if i < 0 {
		return ""
	}
	from := s.tokens[i+1].end
	to := len(s.sql)
	for _, t := range s.tokens[i+2:] {
		if t.depth > 0 {
			continue
		}
		switch strings.ToUpper(t.text) {
		case "PARTITION", "PRIMARY", "SAMPLE", "TTL", "SETTINGS", "COMMENT":
			to = min(to, t.start)
		}
	}
	key := strings.TrimSpace(s.sql[from:to])
	if strings.HasPrefix(key, "(") && strings.HasSuffix(key, ")") {
		key = strings.TrimSpace(key[1 : len(key)-1])
	}
	return key
}

// distributed makes the table through which one over all shards is read and written.
// It holds no rows, so that it is made anew where the columns of the other change.
func (d *clusterDDL) distributed(create, name string) string {
	return fmt.Sprintf("%s%s.%s%s AS %s.%s_local\nENGINE = Distributed('%s', '%s', '%s_local', %s)%s",
		create, d.database, name, d.cluster.on(), d.database, name, d.cluster.Name, d.database, name, d.tables[name], d.comments[name])
}

// createMaterialized has a view feed the shard's own table from the shard's own rows.
func (d *clusterDDL) createMaterialized(s *ddl) ([]string, error) {
	name, _, end, err := s.name(d.database)
	if err != nil || s.find("TO", d.database, ".") < 0 || s.find("REFRESH") >= 0 {
		return nil, fmt.Errorf("the materialized view %s cannot be put on a cluster: it must have a TO and no REFRESH: %.120q", name, s.sql)
	}
	var b strings.Builder
	b.WriteString(s.sql[:end] + d.cluster.on())
	last := end
	for i := s.at; i+2 < len(s.tokens); i++ {
		t := s.tokens[i : i+3]
		if _, ok := d.tables[t[2].text]; ok && t[0].text == d.database && t[1].text == "." {
			b.WriteString(s.sql[last:t[2].end] + "_local")
			last = t[2].end
		}
	}
	return []string{b.String() + s.sql[last:]}, nil
}
