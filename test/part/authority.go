package part

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Authority signs certificates into a folder. Its own is ca.pem there.
type Authority struct {
	Dir string

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	made int64
}

// NewAuthority makes an authority of dir.
func NewAuthority(dir string) (*Authority, error) {
	a := &Authority{Dir: dir, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Postern test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if err := a.sign(a.cert, &a.key.PublicKey, a.File()); err != nil {
		return nil, err
	}
	return a, nil
}

// File is where its certificate is.
func (a *Authority) File() string { return filepath.Join(a.Dir, "ca.pem") }

// Files are where a certificate and its key are, or will be.
func (a *Authority) Files(name string) (cert, key string) {
	return filepath.Join(a.Dir, name+".pem"), filepath.Join(a.Dir, name+"-key.pem")
}

// Issue writes a certificate for a server at hosts, names and addresses, or a client, with
// its key, into [Authority.Files]. Its common name is name.
func (a *Authority) Issue(name string, hosts ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key) // the only form that Kafka reads
	if err != nil {
		return err
	}
	a.made++
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1 + a.made), Subject: pkix.Name{CommonName: name},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			cert.IPAddresses = append(cert.IPAddresses, ip)
		} else {
			cert.DNSNames = append(cert.DNSNames, h)
		}
	}
	certFile, keyFile := a.Files(name)
	return errors.Join(a.sign(cert, &key.PublicKey, certFile), write(keyFile, "PRIVATE KEY", pkcs8))
}

func (a *Authority) sign(cert *x509.Certificate, key *ecdsa.PublicKey, file string) error {
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key, a.key)
	if err != nil {
		return err
	}
	return write(file, "CERTIFICATE", der)
}

func write(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
