package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern/postern/detect"
	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
)

func kafkaPartitionsCommand(where *kafkaFlags) *cobra.Command {
	var plan, forget bool
	cmd := &cobra.Command{
		Use:   "partitions N",
		Short: "Divide flows into more partitions",
		Long: `Gives the topics that are divided by endpoints N partitions, and divides among them what the detectors
remember: what waits for its other half, which findings are open. Nothing is counted twice and
nothing is forgotten. Detectors must have been stopped in order (SIGTERM); collectors may go on.
It changes over in one step at the very end: if it ends before, call it again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[0])
			if err != nil || n < 1 || n > kafka.MaxPartitions {
				return fmt.Errorf("%q is no number of partitions; it must lie between 1 and %d", args[0], kafka.MaxPartitions)
			}
			return where.with(func(cfg config, client *kafka.Client) error {
				s := newSwitchOver(cfg, client, n, func(line string) { fmt.Fprintln(cmd.OutOrStdout(), line) })
				s.plan, s.forget = plan, forget
				return s.run(cmd.Context())
			})
		},
	}
	cmd.Flags().BoolVar(&plan, "plan", false, "only say what would be done")
	cmd.Flags().BoolVar(&forget, "forget", false, "go on where a checkpoint is gone: what waited there and what its findings had counted is forgotten")
	return cmd
}

// switchOver divides what the detectors of a group remember among more partitions, while
// none of them runs:
//
//	read ─▶ divide ─▶ grow state ─▶ save the new checkpoints ─▶ grow flows ─▶ set all positions
//
// Only the last step, one request, makes the new division the group's. Whatever ends
// before leaves positions that name checkpoints of the old division, and detectors
// refuse those beside topics of the new one, see [detection.divisionKept].
type switchOver struct {
	cfg          config
	client       *kafka.Client
	to           int // partitions
	plan, forget bool
	say          func(line string)

	flows string
	has   map[string]int // partitions of the topics that are divided
	from  int            // partitions that the checkpoints were made for

	at   kafka.Positions                   // where the group stands
	kept map[string]map[int]partitionState // the checkpoints named there
	next kafka.Positions                   // where it will stand
}

func newSwitchOver(cfg config, client *kafka.Client, to int, say func(line string)) *switchOver {
	return &switchOver{cfg: cfg, client: client, to: to, say: say, flows: cfg.Kafka.Topic(kafka.TopicFlows),
		has: map[string]int{}, kept: map[string]map[int]partitionState{}, next: kafka.Positions{}}
}

func (s *switchOver) run(ctx context.Context) error {
	if err := s.read(ctx); err != nil {
		return err
	}
	if s.from == s.to {
		s.say(fmt.Sprintf("the flows of group %s are divided into %d partitions already; nothing is to be done", s.cfg.Kafka.Group, s.to))
		return nil
	}
	if err := s.prepare(ctx); err != nil {
		return err
	}
	if err := s.commit(ctx); err != nil || s.plan {
		return err
	}
	s.say(fmt.Sprintf("Detectors can be started. Running collectors find out by themselves; set kafka.partitions to %d where `postern kafka init` reads it.", s.to))
	return nil
}

// do says what is done and does it, unless only a plan is asked for.
func (s *switchOver) do(what string, step func() error) error {
	if s.plan {
		s.say("would " + what)
		return nil
	}
	s.say(what)
	return step()
}

// read finds out where everything stands, and whether it may be changed.
func (s *switchOver) read(ctx context.Context) (err error) {
	group := s.cfg.Kafka.Group
	for _, kind := range []string{kafka.TopicState, kafka.TopicFlows} {
		topic := s.cfg.Kafka.Topic(kind)
		if s.has[topic], err = s.client.Partitions(ctx, topic); err != nil {
			return err
		}
		if n := s.has[topic]; n > s.to {
			return fmt.Errorf("topic %s has %d partitions, and Kafka cannot take partitions away; ask for more than %d", topic, n, n)
		}
	}
	members, err := s.client.Members(ctx, group)
	if err != nil {
		return err
	}
	if len(members) > 0 {
		return fmt.Errorf("group %s has members now (%s); stop all detectors in order, with SIGTERM, first (collectors may go on)", group, strings.Join(members, ", "))
	}
	if s.at, err = s.client.Positions(ctx, group); err != nil {
		return err
	}
	for topic, partitions := range s.at {
		for p, at := range partitions {
			switch {
			case at == nil && topic == s.flows:
				return fmt.Errorf("somebody set the offset of group %s on %s/%d; start one detector, which decides what to do about it, and stop it with SIGTERM", group, topic, p)
			case at != nil && at.Open != nil:
				return fmt.Errorf("the range of %s/%d from offset %d to %d is open; start one detector and stop it with SIGTERM, so that it closes what is open", topic, p, at.Offset, at.Open.To)
			}
		}
	}
	if err := s.load(ctx, s.flows, func(p int) int { return p }); err != nil {
		return err
	}
	// What the checkpoints say goes before what the topics have: those may have been grown by
	// other tools, or by a call that ended before its last step.
	s.from = min(s.has[s.flows], s.has[s.cfg.Kafka.Topic(kafka.TopicState)])
	for i, kept := range slices.Collect(maps.Values(s.kept[s.flows])) {
		if i == 0 || kept.Partitions < s.from {
			s.from = kept.Partitions
		}
	}
	if n := s.has[s.flows]; n < s.from {
		return fmt.Errorf("the checkpoints of group %s were made for %d partitions, and topic %s has %d; if it was given more just now, call this again in some seconds, and if it was made anew, give it %[2]d", group, s.from, s.flows, n)
	}
	for p, kept := range s.kept[s.flows] {
		if p >= s.from || kept.Partitions != s.from {
			return fmt.Errorf("the checkpoint of %s/%d was made for %d partitions, others for %d; nothing can be done about them together", s.flows, p, kept.Partitions, s.from)
		}
	}
	if err := s.find(ctx, s.flows, s.from); err != nil {
		return err
	}
	for topic := range s.at {
		if topic != s.flows {
			if err := s.load(ctx, topic, func(p int) int { return p % s.from }); err != nil {
				return err
			}
		}
	}
	if err := s.find(ctx, s.cfg.Kafka.Topic(kafka.TopicEdges), 1); err != nil {
		return err
	}
	for _, t := range s.cfg.Ingest.Kafka.Topics {
		n, err := s.client.Partitions(ctx, t.Topic)
		if err == nil {
			err = s.find(ctx, t.Topic, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// load reads the checkpoints that the positions on a topic name. in is the partition of
// the state topic that holds those of a partition.
func (s *switchOver) load(ctx context.Context, topic string, in func(partition int) int) error {
	for p, at := range s.at[topic] {
		if at == nil || !at.State.Known() {
			continue
		}
		kept, err := loadState(ctx, s.client, in(p), at.State)
		switch {
		case errors.Is(err, kafka.ErrStateLost) && s.forget:
			s.say(fmt.Sprintf("%s/%d: %v; what it held is forgotten", topic, p, err))
			continue
		case errors.Is(err, kafka.ErrStateLost):
			return fmt.Errorf("%s/%d: %w; with --forget it is done without: what waited there and what its findings had counted is forgotten", topic, p, err)
		case err != nil:
			return fmt.Errorf("%s/%d: %w", topic, p, err)
		}
		s.keep(topic, p, kept)
	}
	return nil
}

// find looks for the checkpoints of partitions of which the cluster forgot the offset,
// as it does of groups that are away for long.
func (s *switchOver) find(ctx context.Context, topic string, partitions int) error {
	for p := range partitions {
		if _, stands := s.at[topic][p]; stands {
			continue
		}
		place, err := s.client.FindState(ctx, s.cfg.Kafka.Group, topic, p, p%s.from)
		if err != nil {
			return err
		}
		if !place.Known() {
			continue
		}
		kept, err := loadState(ctx, s.client, p%s.from, place)
		if err != nil {
			return fmt.Errorf("%s/%d: %w", topic, p, err)
		}
		s.at.Set(topic, p, &kafka.Position{Offset: kept.Next, Ranges: kept.Ranges, State: place})
		s.keep(topic, p, kept)
	}
	return nil
}

func (s *switchOver) keep(topic string, p int, kept partitionState) {
	if s.kept[topic] == nil {
		s.kept[topic] = map[int]partitionState{}
	}
	s.kept[topic][p] = kept
}

// prepare does everything that does not change where the group stands.
func (s *switchOver) prepare(ctx context.Context) error {
	if err := s.divide(); err != nil {
		return err
	}
	if err := s.grow(ctx, kafka.TopicState); err != nil {
		return err
	}
	// Of topics of others and of the edges topic nothing is divided, but their checkpoints lie
	// where the number of our partitions says.
	for _, topic := range slices.Sorted(maps.Keys(s.kept)) {
		if err := s.do(fmt.Sprintf("save %d checkpoints of %s", len(s.kept[topic]), topic), func() error {
			for p, state := range s.kept[topic] {
				if err := s.save(ctx, topic, p, state); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if err := s.grow(ctx, kafka.TopicFlows); err != nil || s.plan {
		return err
	}
	// The coordinator may not know of the new partitions yet, and would then change over
	// the old ones alone. That it takes a position without a checkpoint says that it does.
	news := kafka.Positions{}
	for p := range s.to {
		if s.at[s.flows][p] == nil {
			news.Set(s.flows, p, &kafka.Position{})
		}
	}
	return s.set(ctx, news)
}

func (s *switchOver) grow(ctx context.Context, kind string) error {
	topic := s.cfg.Kafka.Topic(kind)
	if s.has[topic] == s.to {
		return nil
	}
	return s.do(fmt.Sprintf("give topic %s %d partitions instead of %d", topic, s.to, s.has[topic]), func() error {
		return s.client.Grow(ctx, topic, s.to)
	})
}

// divide makes the checkpoints of the new division. What the stages remember goes where
// its endpoints go. An old partition keeps what is of its log: who was heard there and
// how far, and its ledger, so that no sum that was told before loses a term; only the
// records that wait are counted where they wait from now on.
func (s *switchOver) divide() error {
	states := map[int]partitionState{}
	var pairers, detectors, sessions, contacts [][]byte
	var last flow.Time
	var slowest pace
	for p := range s.to {
		kept, old := s.kept[s.flows][p]
		if kept.Pace.behind() > slowest.behind() {
			slowest = kept.Pace
		}
		if !old {
			kept.Producers = producers{}
		} else {
			pairers, detectors = append(pairers, kept.Sections["pairer"]), append(detectors, kept.Sections["detector"])
			if state, ok := kept.Sections["sessions"]; ok {
				sessions = append(sessions, state)
			}
			if state, ok := kept.Sections["contacts"]; ok {
				contacts = append(contacts, state)
			}
		}
		kept.Ledger = maps.Clone(kept.Ledger)
		if kept.Ledger == nil {
			kept.Ledger = ledgerTotals{}
		}
		states[p], last = kept, max(last, kept.Last)
	}
	partition := func(a, b flow.Addr) int { return kafka.Partition(a, b, s.to) }
	waiting, err := enrich.Divide(pairers, s.to, partition)
	if err != nil {
		return err
	}
	found, err := detect.Divide(detectors, s.to, partition)
	if err != nil {
		return err
	}
	merged, err := enrich.DivideSessions(sessions, s.to, partition)
	if err != nil {
		return err
	}
	set, settings, err := s.cfg.stageSettings()
	if err != nil {
		return err
	}
	reached, err := detect.DivideContacts(contacts, s.to, set.Detect, partition)
	if err != nil {
		return err
	}
	var moved uint64
	for p, state := range states {
		if old, ok := state.Sections["pairer"]; ok {
			if err := held(old, func(exporter flow.Addr, n uint64) {
				a := state.Ledger[exporter]
				a.Records.Decoded -= n
				state.Ledger[exporter] = a
			}); err != nil {
				return err
			}
		}
		if err := held(waiting[p], func(exporter flow.Addr, n uint64) {
			a := state.Ledger[exporter]
			a.Records.Decoded += n
			state.Ledger[exporter] = a
			moved += n
		}); err != nil {
			return err
		}
		state.Version, state.Settings, state.Last, state.Pace = partitionStateVersion, settings, last, slowest
		state.Told = 0 // those that are further have to wait for the others
		state.Sections = map[string][]byte{"pairer": waiting[p], "detector": found[p], "sessions": merged[p], "contacts": reached[p]}
		states[p] = state
	}
	s.say(fmt.Sprintf("%d of %d partitions have a checkpoint; %d flows wait there for their other half", len(pairers), s.from, moved))
	s.kept[s.flows] = states
	return nil
}

// held counts the records that wait in the state of a pairer, by exporter.
func held(state []byte, f func(exporter flow.Addr, n uint64)) error {
	p, err := enrich.NewPairer(enrich.DefaultConfig(), nil, nil, flow.NewNames(0), nil)
	if err == nil {
		err = p.Restore(state)
	}
	if err == nil {
		p.Held(f)
	}
	return err
}

// save makes the checkpoint of the new division last that a partition goes on from.
func (s *switchOver) save(ctx context.Context, topic string, p int, state partitionState) error {
	at := s.at[topic][p]
	if at == nil {
		at = &kafka.Position{}
		if p < s.has[topic] { // it has been there, and nobody has read it yet
			var err error
			if at.Offset, _, err = s.client.Offsets(ctx, topic, p); err != nil {
				return err
			}
		}
	}
	next := kafka.Position{Offset: at.Offset, Ranges: at.Ranges + 1}
	state.Next, state.Ranges, state.Partitions = next.Offset, next.Ranges, s.to
	raw, err := json.Marshal(state)
	if err != nil {
		return err
	}
	if next.State, err = s.client.SaveState(ctx, s.cfg.Kafka.Group, topic, p, p%s.to, next.Ranges, raw); err != nil {
		return err
	}
	s.next.Set(topic, p, &next)
	return nil
}

// commit makes the new division the group's.
func (s *switchOver) commit(ctx context.Context) error {
	return s.do(fmt.Sprintf("set where group %s stands on all partitions, in one step", s.cfg.Kafka.Group), func() error {
		return s.set(ctx, s.next)
	})
}

func (s *switchOver) set(ctx context.Context, positions kafka.Positions) error {
	err := s.client.SetPositions(ctx, s.cfg.Kafka.Group, positions)
	if errors.Is(err, kafka.ErrGroupBusy) {
		err = fmt.Errorf("a detector was started meanwhile, and nothing is changed over yet; stop it and call this again: %w", err)
	}
	return err
}

// errDivision is a division of flows that was changed, but not by `postern kafka
// partitions`, or not to the end.
func errDivision(made, now int) error {
	return fmt.Errorf("what is remembered is divided among %d partitions, and the flows topic has %d; stop all detectors with SIGTERM and call `postern kafka partitions %d`", made, now, now)
}

// divisionKept checks that the group's checkpoints are of the division that the flows
// topic has. They change over together, so that one speaks for all.
func (d *detection) divisionKept(ctx context.Context) error {
	positions, err := d.client.Positions(ctx, d.cfg.Kafka.Group)
	if err != nil {
		return err
	}
	for p, at := range positions[d.cfg.Kafka.Topic(kafka.TopicFlows)] {
		if at == nil || !at.State.Known() || p >= d.partitions {
			continue
		}
		kept, err := loadState(ctx, d.client, p, at.State)
		if errors.Is(err, kafka.ErrStateLost) {
			continue // told by whoever works on it
		}
		if err == nil && kept.Partitions != d.partitions {
			err = errDivision(kept.Partitions, d.partitions)
		}
		return err
	}
	return nil
}

// sameDivision checks that the flows topic has as many partitions as when the process began.
func (d *detection) sameDivision(ctx context.Context) error {
	n, err := d.client.Partitions(ctx, d.cfg.Kafka.Topic(kafka.TopicFlows))
	if err == nil && n != d.partitions {
		err = errDivision(d.partitions, n)
	}
	return err
}
