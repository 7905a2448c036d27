package broker

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"slices"

	"github.com/postern/postern/test/part"
)

// Identity is what a client needs: the authority that signed the broker's
// certificate, and a certificate of its own, signed by the same. Each is PEM, and in
// a file too. The broker's certificate is for 127.0.0.1 and localhost.
type Identity struct {
	CA, Cert, Key             []byte
	CAFile, CertFile, KeyFile string
}

// Config is a configuration that trusts the authority and shows the certificate to
// who asks.
func (i Identity) Config() (*tls.Config, error) {
	cert, err := tls.X509KeyPair(i.Cert, i.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(i.CA)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{cert}}, nil
}

// certificates makes an authority, a client's identity and the broker's key and
// certificate in one PEM, and writes the client's files into dir.
func certificates(dir string) (Identity, []byte, error) {
	a, err := part.NewAuthority(dir)
	if err == nil {
		err = errors.Join(a.Issue("broker", "127.0.0.1", "localhost"), a.Issue("client"))
	}
	if err != nil {
		return Identity{}, nil, err
	}
	id := Identity{CAFile: a.File()}
	id.CertFile, id.KeyFile = a.Files("client")
	certFile, keyFile := a.Files("broker")
	var cert, key []byte
	for file, into := range map[string]*[]byte{id.CAFile: &id.CA, id.CertFile: &id.Cert, id.KeyFile: &id.Key, certFile: &cert, keyFile: &key} {
		if *into, err = os.ReadFile(file); err != nil {
			return Identity{}, nil, err
		}
	}
	return id, slices.Concat(key, cert), nil
}
