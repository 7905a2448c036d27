package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// TLSConfig is how to trust a server and how to show who we are.
type TLSConfig struct {
	// CA is a PEM file of the authorities that may sign the server's certificate; the system's if empty.
	CA string `yaml:"ca"`
	// Cert is a PEM file of our own certificate, for servers that ask for one.
	Cert string `yaml:"cert"`
	// Key is the PEM file of Cert's private key.
	Key string `yaml:"key"`
	// ServerName is the name the server's certificate must be for, if not the host that is connected to.
	ServerName string `yaml:"serverName"`
	// Insecure accepts any certificate: anyone on the path may then say who is behind an address, and read the password.
	Insecure bool `yaml:"insecure"`
}

func (t TLSConfig) validate() []error {
	var errs []error
	if (t.Cert == "") != (t.Key == "") {
		errs = append(errs, errors.New("tls: has only one of cert and key; give both or neither"))
	}
	if t.Insecure && (t.CA != "" || t.ServerName != "") {
		errs = append(errs, errors.New("tls.insecure: accepts any certificate, so ca and serverName would have no effect; take insecure out, or them"))
	}
	return errs
}

// config reads the files. The server's name is left to whoever dials unless it is given.
func (t TLSConfig) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.Insecure} //nolint:gosec // only where the configuration says so
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("tls.ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.ca: %s holds no certificate; it must be a PEM file", t.CA)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("tls.cert: cannot be used together with tls.key: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
