package test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/test/broker"
)

// TestSecuredKafka: each role by another way that the brokers ask for, and what a wrong
// password says.
func TestSecuredKafka(t *testing.T) {
	b := broker.Start(t, broker.WithTLS(), broker.WithSASL())
	d := newDeployment(t, []string{b.Addr()}, b.Topic(t, "secured"), crashPolicy)
	id := b.TLS()
	t.Setenv("POSTERN_TEST_KAFKA", broker.Password)
	t.Setenv("POSTERN_TEST_WRONG", "wrong")
	trust := "enabled: true, ca: " + id.CAFile
	login := func(mechanism, password string) string {
		return fmt.Sprintf("sasl: {mechanism: %s, username: %s, password: 'env:%s'}", mechanism, broker.User, password)
	}
	secured := func(role, addr, how, extra string) *server {
		t.Helper()
		s := d.role(role, settings{brokers: []string{addr}, extra: extra})
		text, err := os.ReadFile(s.config)
		if err != nil {
			t.Fatal(err)
		}
		s.configure(strings.Replace(string(text), "timeout: 3s}", "timeout: 3s, "+how+"}", 1))
		return s
	}
	hook := newReceiver(t)
	collector := secured("collect", b.MTLSAddr(), fmt.Sprintf("tls: {%s, cert: %s, key: %s}", trust, id.CertFile, id.KeyFile), "")
	detector := secured("detect", b.SASLTLSAddr(), fmt.Sprintf("tls: {%s}, %s", trust, login("scram-sha-512", "POSTERN_TEST_KAFKA")), "")
	forward := secured("forward", b.SASLAddr(), login("plain", "POSTERN_TEST_KAFKA"), hook.section())
	run(t, "kafka", "init", "-c", collector.config)
	for _, s := range []*server{collector, detector, forward} {
		s.start()
	}
	tr := newNumbered(t, collector.udp)
	for range 20 {
		tr.send(100)
	}
	collector.until("everything to be stored", 60*time.Second, func() bool {
		return detector.ledger().Records.Written >= uint64(len(tr.ids))
	})
	tr.compare(detector)
	d.told(hook, detector)

	wrong := secured("detect", b.SASLTLSAddr(), fmt.Sprintf("tls: {%s}, %s", trust, login("scram-sha-512", "POSTERN_TEST_WRONG")), "")
	_, said, err := try(t, "kafka", "init", "-c", wrong.config)
	if err == nil || !strings.Contains(said, "kafka.sasl.password") {
		t.Errorf("a wrong password gives %v: %s", err, said)
	}
	for _, s := range []*server{collector, detector, forward} {
		if log, err := os.ReadFile(s.log.Name()); err != nil || strings.Contains(string(log), broker.Password) {
			t.Errorf("the log of %s holds the password, or cannot be read: %v", s.role, err)
		}
		s.stop()
	}
}
