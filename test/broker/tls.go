package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
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
	template := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
	}
	caTemplate := template(1, "Postern test authority")
	caTemplate.IsCA, caTemplate.BasicConstraintsValid = true, true
	caTemplate.KeyUsage, caTemplate.ExtKeyUsage = x509.KeyUsageCertSign, nil
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Identity{}, nil, err
	}
	// sign makes a key pair and returns certificate and key as PEM.
	sign := func(c *x509.Certificate) (cert, key []byte, err error) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		der, err := x509.CreateCertificate(rand.Reader, c, caTemplate, &k.PublicKey, caKey)
		if err != nil {
			return nil, nil, err
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(k) // the only form that Kafka reads
		if err != nil {
			return nil, nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
	}
	caDER, err := x509.CreateCertificate(rand.Reader, caTemplate, caTemplate, &caKey.PublicKey, caKey)
	if err != nil {
		return Identity{}, nil, err
	}
	server := template(2, "Postern test broker")
	server.IPAddresses, server.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"localhost"}
	serverCert, serverKey, err := sign(server)
	if err != nil {
		return Identity{}, nil, err
	}
	clientCert, clientKey, err := sign(template(3, "Postern test client"))
	if err != nil {
		return Identity{}, nil, err
	}
	id := Identity{
		CA:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}),
		Cert: clientCert, Key: clientKey,
		CAFile: filepath.Join(dir, "ca.pem"), CertFile: filepath.Join(dir, "client.pem"), KeyFile: filepath.Join(dir, "client-key.pem"),
	}
	for name, text := range map[string][]byte{id.CAFile: id.CA, id.CertFile: id.Cert, id.KeyFile: id.Key} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			return Identity{}, nil, err
		}
	}
	return id, slices.Concat(serverKey, serverCert), nil
}
