package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// newKeaFile follows the lease file of Kea's memfile backend, kea-leases4.csv or
// kea-leases6.csv (Kea ARM, "Memfile - Basic Storage for Leases"). Every change of a
// lease is a line at its end; a lease that was deleted has a line with a valid lifetime
// of 0. The clean-up, kea-lfc, moves the file to .1, makes .completed of .2 and .1 with
// the last line of each lease, and that becomes .2 (Kea ARM, "Why Is Lease File Cleanup
// Necessary?"); read here in the order in which Kea itself reads them at its start.
func newKeaFile(l leases, path string) *leaseFile {
	return &leaseFile{
		leases: l, path: path,
		older: func() []string {
			if done := path + ".completed"; exists(done) {
				return []string{done}
			}
			return slices.DeleteFunc([]string{path + ".2", path + ".1"}, func(p string) bool { return !exists(p) })
		},
		parse: func(file string) leaseParser { return &keaParser{file: file} },
	}
}

// keaParser reads one file of Kea's; its columns are those of its header, since they
// differ among versions.
type keaParser struct {
	file    string
	line    int
	columns map[string]int
	width   int
}

// The columns without which a line says nothing.
var keaColumns = []string{"address", "valid_lifetime", "expire"}

func (p *keaParser) parse(b []byte, entry func(lease) error, bad func(error)) (n int, err error) {
	for {
		i := bytes.IndexByte(b[n:], '\n')
		if i < 0 {
			return n, nil
		}
		line := string(bytes.TrimSuffix(b[n:n+i], []byte{'\r'}))
		n += i + 1
		p.line++
		if line == "" {
			continue
		}
		if p.columns == nil {
			if err := p.header(line); err != nil {
				return n, err
			}
			continue
		}
		l, ok, err := p.row(line)
		if err != nil {
			bad(fmt.Errorf("%s:%d: %w", p.file, p.line, err))
		} else if ok {
			if err := entry(l); err != nil {
				return n, err
			}
		}
	}
}

func (p *keaParser) header(line string) error {
	names := strings.Split(line, ",")
	p.columns, p.width = make(map[string]int, len(names)), len(names)
	for i, name := range names {
		p.columns[strings.TrimSpace(name)] = i
	}
	for _, want := range keaColumns {
		if _, ok := p.columns[want]; !ok {
			p.columns = nil
			return fmt.Errorf("%s:%d:1: the first line names no column %s; it must be the header of a Kea lease file, such as address,hwaddr,client_id,valid_lifetime,expire,…", p.file, p.line, want)
		}
	}
	return nil
}

const (
	keaDeclined  = 1
	keaReclaimed = 2
	keaForever   = 1<<32 - 1 // valid_lifetime of a lease without end
)

// row reads a line; ok is false for one that is about no address, a delegated prefix.
func (p *keaParser) row(line string) (l lease, ok bool, err error) {
	fields := strings.Split(line, ",")
	if len(fields) > p.width {
		return l, false, fmt.Errorf("it has %d fields, the header has %d", len(fields), p.width)
	}
	get := func(column string) string {
		if i, ok := p.columns[column]; ok && i < len(fields) {
			return keaText(fields[i])
		}
		return ""
	}
	number := func(column string, bits int) (n uint64) {
		v := get(column)
		if v == "" && (column == "state" || column == "lease_type") || err != nil {
			return 0 // columns of later versions
		}
		n, nerr := strconv.ParseUint(v, 10, bits)
		if nerr != nil {
			err = fmt.Errorf("%s %s is no number", column, quoted(v))
		}
		return n
	}
	r := keaLease{Address: get("address"), Valid: number("valid_lifetime", 32), State: number("state", 32), Type: number("lease_type", 8),
		HW: get("hwaddr"), DUID: get("duid"), Client: get("client_id"), Host: get("hostname")}
	expire := number("expire", 62)
	if err != nil {
		return l, false, err
	}
	if expire < r.Valid {
		return l, false, fmt.Errorf("it expires at %d, after %d seconds, and so began before 1970", expire, r.Valid)
	}
	r.CLTT = expire - r.Valid
	return r.lease()
}

// keaText undoes Kea's escapes: &#xHH stands for a byte that would be taken for the
// separator.
func keaText(s string) string {
	const mark = "&#x"
	if !strings.Contains(s, mark) {
		return s
	}
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, mark)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		if len(after) >= 2 {
			if v, err := strconv.ParseUint(after[:2], 16, 8); err == nil {
				b.WriteByte(byte(v))
				s = after[2:]
				continue
			}
		}
		b.WriteString(mark)
		s = after
	}
}

// quoted shows a text that came from outside, cut to what a message can bear.
func quoted(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return strconv.Quote(s)
}

// keaLease is a lease as both of Kea's ways tell it.
type keaLease struct {
	Address                string
	HW, DUID, Client, Host string
	CLTT, Valid            uint64 // seconds
	State, Type            uint64
}

func (r *keaLease) lease() (l lease, ok bool, err error) {
	if r.Type == 2 { // IA_PD: a prefix, which is no address anybody sends from
		return l, false, nil
	}
	ip, err := netip.ParseAddr(r.Address)
	if err != nil || ip.Zone() != "" {
		return l, false, fmt.Errorf("address %s is none", quoted(r.Address))
	}
	if r.CLTT > maxSeconds {
		return l, false, fmt.Errorf("time %d is out of range", r.CLTT)
	}
	l = lease{addr: flow.AddrFromNetip(ip).Canonical(), host: cleanHost(r.Host), begin: flow.Time(r.CLTT) * 1000}
	l.device = deviceOf(r.HW, r.DUID, r.Client)
	if r.Valid != keaForever {
		l.until = l.begin + flow.Time(r.Valid)*1000
	}
	switch {
	case r.Valid == 0: // deleted, by release or command; the line keeps the time of the last renewal
		l.over = true
	case r.State == keaDeclined: // found in use by another than who asked for it
		l.over, l.ended, l.device = true, l.begin, ""
	case r.State == keaReclaimed:
		l.over, l.ended = true, l.until
	case r.State != 0: // released and kept for the client, from Kea 2.7 on
		l.over = true
	}
	if !l.over && l.device == "" {
		return l, false, errors.New("it names no hardware address, DUID or client id")
	}
	return l, true, nil
}

// maxSeconds is the end of the year 9999.
const maxSeconds = 253402300799

// deviceOf names a client: its hardware address as it is, else its DUID or client id
// with a word before.
func deviceOf(hw, duid, client string) string {
	switch hw, duid, client := cleanDevice(hw), cleanDevice(duid), cleanDevice(client); {
	case hw != "":
		return hw
	case duid != "":
		return "duid:" + duid
	case client != "":
		return "id:" + client
	}
	return ""
}

func cleanDevice(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	if len(s) > 3*130 || strings.ContainsFunc(s, func(r rune) bool { return r != ':' && (r < '0' || r > '9') && (r < 'a' || r > 'f') }) {
		return ""
	}
	return s
}

// keaCommands polls leases from a running Kea by lease4-get-page or lease6-get-page,
// which its hook library libdhcp_lease_cmds answers (Kea ARM, "libdhcp_lease_cmds.so").
type keaCommands struct {
	leases
	v6   bool
	page int
	// ask sends one command and gives the answer as it came.
	ask func(ctx context.Context, command []byte) ([]byte, error)
}

// maxKeaPages bounds one read; with 1,024 leases a page that is maxFacts leases.
const (
	keaPage     = 1024
	maxKeaPages = maxFacts/keaPage + 1
)

// Run implements [Source].
func (k *keaCommands) Run(ctx context.Context, tell Tell) error {
	if err := k.load(); err != nil {
		return err
	}
	defer k.close()
	for failures := 0; ; {
		wait := k.every
		err := k.poll(ctx, tell)
		if err == nil {
			failures, err = 0, k.saveIfDue(false)
		}
		switch {
		case ctx.Err() != nil:
			return k.stopped(ctx)
		case err != nil:
			if stop, ok := errors.AsType[*stateError](err); ok {
				return fmt.Errorf("identity source %s: %w", k.name, stop)
			}
			wait = retryDelay(failures, k.every)
			failures++
			k.met.failures.Inc()
			k.log.Warn("identity source could not be read", "error", err.Error(), "again_in", wait.String())
		}
		select {
		case <-ctx.Done():
			return k.stopped(ctx)
		case <-time.After(wait):
		}
	}
}

func (k *keaCommands) poll(ctx context.Context, tell Tell) error {
	k.met.reads.Inc()
	begin := k.clock()
	h := newHistory(begin)
	bad := &partialError{}
	from := "start"
	for page := 1; ; page++ {
		if page > maxKeaPages {
			return fmt.Errorf("it has more than %d pages of %d leases", maxKeaPages, k.page)
		}
		rows, err := k.get(ctx, from)
		if err != nil {
			return fmt.Errorf("page %d: %w", page, err)
		}
		for i, raw := range rows {
			r, err := readKeaJSON(raw)
			var l lease
			ok := false
			if err == nil {
				l, ok, err = r.lease()
			}
			if err != nil {
				bad.note(fmt.Errorf("page %d, lease %d: %w", page, i+1, err))
			} else if ok {
				if err := h.add(l); err != nil {
					return err
				}
			}
		}
		if len(rows) < k.page {
			break
		}
		last, err := readKeaJSON(rows[len(rows)-1])
		if err != nil || last.Address == "" || last.Address == from {
			return fmt.Errorf("page %d: its last lease has no address to go on from", page)
		}
		from = last.Address
	}
	k.met.badEntries.Set(float64(bad.entries))
	if bad.entries > 0 {
		k.log.Warn("leases could not be read", "entries", bad.entries, "error", bad.err.Error())
	}
	h.now = max(k.clock(), begin)
	return k.tellRead(ctx, tell, k.merge(h, bad.entries > 0), begin)
}

// get asks for the page that follows an address. Kea answers with result 3 where there
// is none.
func (k *keaCommands) get(ctx context.Context, from string) ([]json.RawMessage, error) {
	version := "4"
	if k.v6 {
		version = "6"
	}
	command, err := json.Marshal(map[string]any{"command": "lease" + version + "-get-page", "service": []string{"dhcp" + version},
		"arguments": map[string]any{"from": from, "limit": k.page}})
	if err != nil {
		return nil, err
	}
	answer, err := k.ask(ctx, command)
	if err != nil {
		return nil, err
	}
	// The control agent answers with a list of one, the server's own socket without.
	var one struct {
		Result    *int   `json:"result"`
		Text      string `json:"text"`
		Arguments struct {
			Leases []json.RawMessage `json:"leases"`
		} `json:"arguments"`
	}
	if trimmed := bytes.TrimSpace(answer); len(trimmed) > 0 && trimmed[0] == '[' {
		var list []json.RawMessage
		if err := json.Unmarshal(answer, &list); err != nil || len(list) != 1 {
			return nil, errors.New("the answer is no list of one answer")
		}
		answer = list[0]
	}
	if err := json.Unmarshal(answer, &one); err != nil {
		return nil, fmt.Errorf("the answer is no JSON as Kea writes it: %w", err)
	}
	switch {
	case one.Result == nil:
		return nil, errors.New("the answer has no result; is this Kea's control socket or agent?")
	case *one.Result == 0 || *one.Result == 3:
		if len(one.Arguments.Leases) > k.page {
			return nil, fmt.Errorf("the answer holds %d leases, %d were asked for", len(one.Arguments.Leases), k.page)
		}
		return one.Arguments.Leases, nil
	case *one.Result == 2:
		return nil, fmt.Errorf("kea does not know the command (%s); load its hook library libdhcp_lease_cmds.so", quoted(one.Text))
	}
	return nil, fmt.Errorf("kea refused: %s", quoted(one.Text))
}

// readKeaJSON reads a lease of an answer; what is not there is zero.
func readKeaJSON(raw json.RawMessage) (r keaLease, err error) {
	var v struct {
		Address  string `json:"ip-address"`
		HW       string `json:"hw-address"`
		DUID     string `json:"duid"`
		Client   string `json:"client-id"`
		Hostname string `json:"hostname"`
		CLTT     uint64 `json:"cltt"`
		Valid    uint64 `json:"valid-lft"`
		State    uint64 `json:"state"`
		Type     string `json:"type"`
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return r, err
	}
	r = keaLease{Address: v.Address, HW: v.HW, DUID: v.DUID, Client: v.Client, Host: v.Hostname, CLTT: v.CLTT, Valid: min(v.Valid, keaForever), State: v.State}
	if v.Type == "IA_PD" {
		r.Type = 2
	}
	return r, nil
}
