package test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/sink/siem"
	"github.com/postern/postern/test/broker"
)

// TestTargetKafkaSecured: each way into a cluster that asks who comes, and what becomes of a wrong password, an
// authority that is not known, and a topic that is not there.
func TestTargetKafkaSecured(t *testing.T) {
	t.Parallel()
	b := broker.Start(t, broker.WithTLS(), broker.WithSASL(), broker.With("auto.create.topics.enable", "false"))
	topic := b.CreateTopic(t, "soc", 3)
	id := b.TLS()
	trust, inside := siem.TLSConfig{CAFile: id.CAFile}, siem.DoorConfig{AllowPrivate: true}
	login := func(addr, mechanism, password string) siem.KafkaConfig {
		return siem.KafkaConfig{Brokers: []string{addr}, Topic: topic, Mechanism: mechanism, Username: broker.User, Password: password, DoorConfig: inside}
	}
	secured := func(c siem.KafkaConfig) siem.KafkaConfig { c.TLSConfig = trust; return c }
	plain := func(c siem.KafkaConfig) siem.KafkaConfig { c.Plain = true; return c }
	send := func(t *testing.T, c siem.KafkaConfig, revision uint64) error {
		t.Helper()
		cfg := siem.TargetConfig{Name: "soc", Kafka: &c}
		cfg.Fill()
		target, err := siem.NewTarget(cfg, siem.TargetOptions{Secret: func(ref string) (string, error) { return ref, nil }})
		if err != nil {
			t.Fatal(err)
		}
		defer target.Close()
		f := siem.Sample()
		f.Revision = revision
		e, err := siem.NewEvent(f)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		return target.Send(ctx, &e)
	}
	ways := map[string]siem.KafkaConfig{
		"TLS": {Brokers: []string{b.TLSAddr()}, Topic: topic, DoorConfig: inside, TLSConfig: trust},
		"mutual TLS": {Brokers: []string{b.MTLSAddr()}, Topic: topic, DoorConfig: inside,
			TLSConfig: siem.TLSConfig{CAFile: id.CAFile, CertFile: id.CertFile, KeyFile: id.KeyFile}},
		"SCRAM-SHA-512 by TLS": secured(login(b.SASLTLSAddr(), "scram-sha-512", broker.Password)),
		"PLAIN by TLS":         secured(login(b.SASLTLSAddr(), "plain", broker.Password)),
		"SCRAM-SHA-256":        plain(login(b.SASLAddr(), "scram-sha-256", broker.Password)),
	}
	n := uint64(0)
	for name, c := range ways {
		n++
		if err := send(t, c, n); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var arrived []string
	for p := range 3 {
		arrived = append(arrived, topicEvents(t, b.Addr(), topic, p)...)
	}
	if len(arrived) != len(ways) {
		t.Errorf("%d events arrived: %v", len(arrived), arrived)
	}
	refused := func(name string, err error, denied bool, words string) {
		t.Helper()
		d, ok := errors.AsType[*siem.DeliveryError](err)
		if !ok || !d.Retry || d.Denied != denied || !strings.Contains(strings.ToLower(err.Error()), words) || strings.Contains(err.Error(), "wrong-password") {
			t.Errorf("%s: %v (%+v)", name, err, d)
		}
	}
	refused("a wrong password", send(t, secured(login(b.SASLTLSAddr(), "scram-sha-512", "wrong-password")), 9), true, "sasl")
	refused("an unknown authority", send(t, siem.KafkaConfig{Brokers: []string{b.TLSAddr()}, Topic: topic, DoorConfig: inside}, 9), false, "certificate")
	absent := ways["TLS"]
	absent.Topic = "absent"
	refused("no topic", send(t, absent, 9), false, "")
}
