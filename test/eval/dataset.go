package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
)

// class is what a label says of an edge.
type class uint8

const (
	neutral   class = iota // nobody says, or it is no lateral movement: command and control
	benign                 // ordinary
	malicious              // lateral movement
)

// edge is who dealt with whom on which port.
type edge struct {
	src, dst flow.Addr
	port     uint16
	proto    uint8
}

func (e edge) String() string {
	return e.src.String() + " > " + e.dst.String() + " " + string(flow.AppendProto(nil, e.proto)) + "/" + strconv.Itoa(int(e.port))
}

func (e edge) compare(o edge) int {
	return cmp.Or(e.src.Compare(o.src), e.dst.Compare(o.dst), cmp.Compare(e.port, o.port), cmp.Compare(e.proto, o.proto))
}

// source is a kind of file that records come from.
type source uint8

const (
	fromV5 source = iota
	fromV9
	fromIPFIX
	fromZeek
	fromWindows
	sources
)

// campaign is one emulated attack: what was recorded of it, by kind of file, and what of it is
// labelled.
type campaign struct {
	name    string // dataset/case
	records [sources][]flow.Record
	labels  map[edge]class
	aliases map[edge]edge // the same conversations told the other way round, to their labelled edges
	// undecidable are malicious edges whose flows equal benign ones elsewhere.
	undecidable map[edge]bool
	servers     map[flow.Addr]bool // that serve a domain: Kerberos or LDAP
	outside     map[flow.Addr]bool // of the internet, or labelled as command and control
	skews       map[hostLog]flow.Time
}

// hostLog is one of the logs of a host. Each is stamped by a clock of its own.
type hostLog struct {
	source   flow.Source
	observer flow.Name
}

// dataset is the labelled campaigns of a folder.
type dataset struct {
	campaigns []*campaign
	dropped   int      // label rows that contradict another of the same conversation
	notes     []string // files that were not used, and why
}

type labelRow struct {
	campaign, base, caseName string
	class                    class
	edge                     edge
}

// readDataset reads the captures, logs and labels of folders. Names are interned in names.
func readDataset(names *flow.Names, dirs ...string) (*dataset, error) {
	d := &dataset{}
	var files, tables []string
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			return nil, fmt.Errorf("no captures in %s (%w); POSTERN_FIXTURES is the folder of fixtures, DATA another folder with captures and labels.tsv", dir, err)
		}
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			switch {
			case err != nil && path == dir:
				return err
			case err != nil:
				d.note(path, err.Error())
			case e.Type().IsRegular() && e.Name() == "labels.tsv":
				tables = append(tables, path)
			case e.Type().IsRegular():
				files = append(files, path)
			case e.Type()&fs.ModeSymlink != 0:
				d.note(path, "a link; put the file itself there")
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if len(tables) == 0 {
		return nil, fmt.Errorf("no labels.tsv in %s", strings.Join(dirs, ", "))
	}
	var rows []labelRow
	for _, t := range tables {
		r, err := d.readLabels(t)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r...)
	}
	by := map[string]*campaign{}
	rowsOf := map[string][]labelRow{}
	bases := map[string]string{} // base name of a file, to its campaign
	cases := map[string]string{}
	for _, r := range rows {
		if by[r.campaign] == nil {
			by[r.campaign] = &campaign{name: r.campaign, labels: map[edge]class{}, aliases: map[edge]edge{}, undecidable: map[edge]bool{},
				servers: map[flow.Addr]bool{}, outside: map[flow.Addr]bool{}}
		}
		rowsOf[r.campaign] = append(rowsOf[r.campaign], r)
		bases[r.base], cases[r.caseName] = r.campaign, r.campaign
	}
	for _, path := range files {
		kind, ok := kindOf(path)
		if !ok {
			d.note(path, "neither a capture of .ipfix.pcap, .nf9.pcap or .nf5.pcap, nor a conn.log of Zeek, nor events of Windows as .jsonl")
			continue
		}
		name := filepath.Base(path)
		of := longestPrefix(name, bases)
		if of == "" && kind == fromWindows {
			of = longestPrefix(name, cases)
		}
		if of == "" {
			d.note(path, "no row of labels.tsv belongs to it")
			continue
		}
		records, bad, err := readRecords(names, kind, path)
		if err != nil {
			d.note(path, err.Error())
		} else if bad != "" {
			d.note(path, bad)
		}
		c := by[of]
		c.records[kind] = append(c.records[kind], records...)
	}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		c := by[name]
		if c.empty() {
			d.notes = append(d.notes, name+": labelled, but none of its files is there")
			continue
		}
		d.dropped += c.label(rowsOf[name])
		c.roles(rowsOf[name])
		c.clocks()
		d.campaigns = append(d.campaigns, c)
	}
	d.sameHosts()
	d.undecidable()
	return d, nil
}

func (d *dataset) note(path, why string) {
	d.notes = append(d.notes, filepath.Base(path)+": not used: "+why)
}

func longestPrefix(name string, of map[string]string) (campaign string) {
	best := -1
	for base, c := range of {
		if base != "" && strings.HasPrefix(name, base) && len(base) > best {
			best, campaign = len(base), c
		}
	}
	return campaign
}

func kindOf(path string) (source, bool) {
	name := strings.TrimSuffix(strings.ToLower(filepath.Base(path)), ".gz")
	for _, k := range [...]struct {
		end  string
		kind source
	}{{".nf5.pcap", fromV5}, {".nf9.pcap", fromV9}, {".ipfix.pcap", fromIPFIX}, {"conn.log", fromZeek}, {".jsonl", fromWindows}} {
		if strings.HasSuffix(name, k.end) {
			return k.kind, true
		}
	}
	return 0, false
}

// readLabels reads a labels.tsv: a head line that names the columns, then rows.
func (d *dataset) readLabels(path string) ([]labelRow, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var rows []labelRow
	var columns []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		w := strings.Split(strings.TrimRight(sc.Text(), "\r"), "\t")
		if columns == nil {
			columns = w
			for _, need := range []string{"dataset", "case", "file", "src", "dst", "dport", "proto", "label"} {
				if !slices.Contains(w, need) {
					return nil, fmt.Errorf("%s:1: there is no column %q; the first line names the columns, with tabs between", path, need)
				}
			}
			continue
		}
		at := func(name string) string {
			if i := slices.Index(columns, name); i < len(w) {
				return strings.TrimSpace(w[i])
			}
			return ""
		}
		if strings.TrimSpace(sc.Text()) == "" {
			continue
		}
		src, err1 := flow.ParseAddr(at("src"))
		dst, err2 := flow.ParseAddr(at("dst"))
		port, err3 := strconv.ParseUint(cmp.Or(at("dport"), "0"), 10, 16)
		proto, ok := map[string]uint8{"tcp": flow.ProtoTCP, "udp": flow.ProtoUDP, "icmp": flow.ProtoICMP, "sctp": flow.ProtoSCTP, "icmp6": flow.ProtoICMPv6}[strings.ToLower(at("proto"))]
		if err := errors.Join(err1, err2, err3); err != nil || !ok {
			d.notes = append(d.notes, fmt.Sprintf("%s:%d: not used: src, dst, dport or proto cannot be read", filepath.Base(path), n))
			continue
		}
		r := labelRow{campaign: at("dataset") + "/" + at("case"), caseName: at("case"), edge: edge{src, dst, uint16(port), proto}}
		base := filepath.Base(filepath.ToSlash(at("file")))
		if r.base = strings.TrimSuffix(base, filepath.Ext(base)); base == "." {
			r.base = ""
		}
		switch l := at("label"); {
		case strings.HasPrefix(l, "malicious"):
			r.class = malicious
		case strings.HasPrefix(l, "c2") || strings.Contains(l, "unlabelled"):
			r.class = neutral
		case strings.HasPrefix(l, "benign"):
			r.class = benign
		default:
			d.notes = append(d.notes, fmt.Sprintf("%s:%d: the label %q is none that counts; its edge is neutral", filepath.Base(path), n, l))
		}
		if strings.HasPrefix(at("label"), "c2") {
			r.class = c2
		}
		rows = append(rows, r)
	}
	return rows, sc.Err()
}

// c2 is neutral, and tells that the server is outside; it is never the class of an edge.
const c2 class = 255

func (c *campaign) empty() bool {
	for _, rs := range c.records {
		if len(rs) > 0 {
			return false
		}
	}
	return true
}

// readRecords reads a file of a kind. What of it could not be read is told in bad.
func readRecords(names *flow.Names, kind source, path string) (out []flow.Record, bad string, err error) {
	if kind == fromZeek || kind == fromWindows {
		return readLog(names, kind, path)
	}
	capture, err := ingest.OpenCapture(path)
	if err != nil {
		return nil, "", err
	}
	defer capture.Close()
	cfg := ingest.DefaultDecoderConfig()
	cfg.BelieveClock, cfg.SourceID = true, pathHash(path)
	dec := ingest.NewDecoder(cfg, names, nil)
	batch := flow.NewBatch(64, nil)
	for {
		dg, err := capture.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			bad = "read up to a fault: " + err.Error()
			break
		}
		dec.Decode(dg, batch)
	}
	if len(batch.Records) == 0 && bad == "" {
		bad = "no flow in it"
	}
	return batch.Records, bad, nil
}

func pathHash(path string) uint64 {
	h := fnv.New64a()
	_, _ = io.WriteString(h, filepath.Base(path)) // a hash takes everything
	return h.Sum64()
}

func readLog(names *flow.Names, kind source, path string) (out []flow.Record, bad string, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, "", err
	}
	format := "zeek"
	if kind == fromWindows {
		format = "windows"
	}
	dec, err := agent.NewDecoder(format, agent.Config{BelieveClock: true}, names)
	if err != nil {
		return nil, "", err
	}
	observer := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(path), ".log"), "_conn")
	o := agent.Origin{Seed: pathHash(path), Observer: observer}
	batch := flow.NewBatch(64, nil)
	refused, first := 0, error(nil)
	n := uint64(0)
	for line := range bytes.Lines(text) {
		n++
		var not agent.NotFlow
		if err := dec.Decode(bytes.TrimSpace(line), n, &o, batch); err != nil && !errors.As(err, &not) && len(bytes.TrimSpace(line)) > 0 {
			if refused++; first == nil {
				first = fmt.Errorf("line %d: %w", n, err)
			}
		}
	}
	if refused > 0 {
		bad = fmt.Sprintf("%d lines of it, the first for this: %v", refused, first)
	}
	if kind == fromZeek {
		for i := range batch.Records {
			if batch.Records[i].Observer == flow.NoName {
				batch.Records[i].Observer = names.Intern(observer)
			}
		}
	}
	return batch.Records, bad, nil
}

// label takes in the rows of a campaign. Rows of one conversation that say different things are
// dropped, and counted.
func (c *campaign) label(rows []labelRow) (dropped int) {
	type pair struct {
		low, high edge // a conversation as either end's edge
	}
	conversations := map[pair]bool{}
	for k := range c.records {
		if source(k) == fromWindows {
			continue
		}
		for i := range c.records[k] {
			r := &c.records[k][i]
			a, b := edge{r.Src, r.Dst, r.DstPort, r.Proto}, edge{r.Dst, r.Src, r.SrcPort, r.Proto}
			if a.compare(b) > 0 {
				a, b = b, a
			}
			conversations[pair{a, b}] = true
		}
	}
	said := map[edge]map[class]bool{}
	for _, r := range rows {
		if said[r.edge] == nil {
			said[r.edge] = map[class]bool{}
		}
		said[r.edge][r.class] = true
	}
	contradicted := map[edge]bool{}
	differ := func(a, b edge) bool {
		return said[a][malicious] && said[b][benign] || said[a][benign] && said[b][malicious]
	}
	for e := range said {
		if differ(e, e) {
			contradicted[e] = true
		}
	}
	for p := range conversations {
		if differ(p.low, p.high) {
			contradicted[p.low], contradicted[p.high] = true, true
		}
	}
	for _, r := range rows {
		switch {
		case contradicted[r.edge]:
			dropped++
			c.labels[r.edge] = neutral
		case r.class == c2:
			if _, ok := c.labels[r.edge]; !ok {
				c.labels[r.edge] = neutral
			}
		default:
			c.labels[r.edge] = max(c.labels[r.edge], r.class)
		}
	}
	for p := range conversations {
		_, low := c.labels[p.low]
		_, high := c.labels[p.high]
		switch {
		case low && !high:
			c.aliases[p.high] = p.low
		case high && !low:
			c.aliases[p.low] = p.high
		}
	}
	return dropped
}

// roles finds out what the campaign's hosts are.
func (c *campaign) roles(rows []labelRow) {
	serves := func(a flow.Addr, port uint16) {
		if port == 88 || port == 389 {
			c.servers[a] = true
		}
	}
	for _, r := range rows {
		if serves(r.edge.dst, r.edge.port); r.class == c2 {
			if public(r.edge.src) && !public(r.edge.dst) {
				c.outside[r.edge.src] = true
			} else {
				c.outside[r.edge.dst] = true
			}
		}
	}
	for k := range c.records {
		for i := range c.records[k] {
			r := &c.records[k][i]
			serves(r.Dst, r.DstPort)
			serves(r.Src, r.SrcPort)
			for _, a := range [...]flow.Addr{r.Src, r.Dst} {
				if public(a) {
					c.outside[a] = true
				}
			}
		}
	}
	for a := range c.outside {
		delete(c.servers, a)
	}
}

// agreeing is how far apart the offsets of a log may be that are one, and enough of how many conversations
// they must be to be believed: of one alone the ports may have been used before.
const (
	agreeing = flow.Time(5000)
	enough   = 2
)

// clocks finds out how far the stamps of each host's logs are off those of the flows, by the
// conversations that both tell of. A log that was recorded at another time has none of these.
func (c *campaign) clocks() {
	type tuple struct {
		edge edge
		port uint16
	}
	began := map[tuple]flow.Time{}
	for k := fromV5; k <= fromZeek; k++ {
		for i := range c.records[k] {
			r := &c.records[k][i]
			for _, t := range [...]tuple{{edge{r.Src, r.Dst, r.DstPort, r.Proto}, r.SrcPort}, {edge{r.Dst, r.Src, r.SrcPort, r.Proto}, r.DstPort}} {
				if at, ok := began[t]; !ok || r.Start < at {
					began[t] = r.Start
				}
			}
		}
	}
	offsets := map[hostLog]map[tuple]flow.Time{}
	for i := range c.records[fromWindows] {
		r := &c.records[fromWindows][i]
		t := tuple{edge{r.Src, r.Dst, r.DstPort, r.Proto}, r.SrcPort}
		at, ok := began[t]
		if !ok {
			continue
		}
		log := hostLog{r.Source, r.Observer}
		if offsets[log] == nil {
			offsets[log] = map[tuple]flow.Time{}
		}
		if was, ok := offsets[log][t]; !ok || r.Start-at < was {
			offsets[log][t] = r.Start - at
		}
	}
	c.skews = map[hostLog]flow.Time{}
	for log, of := range offsets {
		all := slices.Sorted(maps.Values(of))
		if n := len(all); n >= enough && all[(n-1)/4]+agreeing >= all[n/2] {
			c.skews[log] = all[n/2]
		}
	}
}

// sameHosts: what an address is in one campaign of a dataset it is in all of them, since a
// dataset is of one laboratory. A domain controller is one where nobody happens to log on too.
func (d *dataset) sameHosts() {
	servers := map[string]map[flow.Addr]bool{}
	lab := func(c *campaign) string {
		name, _, _ := strings.Cut(c.name, "/")
		return name
	}
	for _, c := range d.campaigns {
		if servers[lab(c)] == nil {
			servers[lab(c)] = map[flow.Addr]bool{}
		}
		maps.Copy(servers[lab(c)], c.servers)
	}
	for _, c := range d.campaigns {
		for a := range servers[lab(c)] {
			c.servers[a] = !c.outside[a]
		}
	}
}

// public says whether an address is one of the internet.
func public(a flow.Addr) bool {
	ip := a.Netip()
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !sharedSpace.Contains(ip)
}

var sharedSpace = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

// look is what a flow record shows of a conversation with a server of some role: the service
// and about how much went each way, with which flags.
type look struct {
	domain   bool // the server serves a domain
	port     uint16
	proto    uint8
	up, down int  // bytes, as a power of two
	answered bool // it was accepted, as far as flags tell; how it ended says nothing of what it was for
}

// undecidable finds malicious edges all of whose conversations look like a benign one of
// another campaign, or of the same.
func (d *dataset) undecidable() {
	ordinary := map[look]bool{}
	each := func(visit func(c *campaign, e edge, l look)) {
		for _, c := range d.campaigns {
			for k := fromV5; k <= fromZeek; k++ {
				for _, t := range tuplesOf(c.records[k]) {
					for _, e := range [...]edge{t.forward, t.back} {
						if _, ok := c.labels[e]; ok {
							visit(c, e, t.look(e, c))
						}
					}
				}
			}
		}
	}
	each(func(c *campaign, e edge, l look) {
		if c.labels[e] == benign {
			ordinary[l] = true
		}
	})
	told := map[*campaign]map[edge]bool{}
	each(func(c *campaign, e edge, l look) {
		if c.labels[e] != malicious {
			return
		}
		if told[c] == nil {
			told[c] = map[edge]bool{}
		}
		told[c][e] = told[c][e] || !ordinary[l]
	})
	for c, edges := range told {
		for e, apart := range edges {
			if !apart {
				c.undecidable[e] = true
			}
		}
	}
}

// tuple is what records tell of one five-tuple.
type tuple struct {
	forward, back edge
	bytes         [2]uint64 // from forward's source, and back
	flags         [2]uint16
}

func tuplesOf(rs []flow.Record) []tuple {
	type key struct {
		e    edge
		port uint16
	}
	at := map[key]int{}
	var out []tuple
	for i := range rs {
		r := &rs[i]
		f, b := edge{r.Src, r.Dst, r.DstPort, r.Proto}, edge{r.Dst, r.Src, r.SrcPort, r.Proto}
		way := 0
		j, ok := at[key{f, r.SrcPort}]
		if !ok {
			if j, ok = at[key{b, r.DstPort}]; ok {
				way = 1
			}
		}
		if !ok {
			j = len(out)
			at[key{f, r.SrcPort}] = j
			out = append(out, tuple{forward: f, back: b})
		}
		t := &out[j]
		t.bytes[way] += r.BytesRaw
		t.bytes[1-way] += r.RevBytesRaw
		t.flags[way] |= r.TCPFlags
		t.flags[1-way] |= r.RevTCPFlags
	}
	return out
}

// look is how the conversation looks to whoever takes e for its direction.
func (t *tuple) look(e edge, c *campaign) look {
	way := 0
	if e == t.back {
		way = 1
	}
	return look{c.servers[e.dst], e.port, e.proto, bits(t.bytes[way]), bits(t.bytes[1-way]), t.flags[0]&t.flags[1]&flow.ACK != 0}
}

func bits(v uint64) (n int) {
	for ; v > 0; v >>= 1 {
		n++
	}
	return n
}
