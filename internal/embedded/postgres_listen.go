// How a Postgres server can be reached beside plain TCP on 127.0.0.1: by a Unix
// socket, by TLS, and from other networks.

package embedded

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// listen prepares what o asks for; the cluster exists, the server does not run.
func (p *Postgres) listen(o *PostgresOptions) error {
	params := map[string]string{}
	if o.Unix {
		p.sockets = p.Dir
		if len(p.file(".s.PGSQL.65535.lock")) > 107 { // the name of a Unix socket has no room for more
			dir, err := os.MkdirTemp("", "tallywire-socket-")
			if err != nil {
				return fmt.Errorf("making a folder for the Unix socket of Postgres: %w", err)
			}
			p.sockets = dir
		}
		params["unix_socket_directories"] = p.sockets
	}
	if o.TLS {
		if err := p.certify(); err != nil {
			return fmt.Errorf("making a certificate for Postgres: %w", err)
		}
		params["ssl"], params["ssl_cert_file"], params["ssl_key_file"] = "on", p.file("server.crt"), p.file("server.key")
	}
	if len(o.Listen) > 0 {
		params["listen_addresses"] = strings.Join(append([]string{"127.0.0.1"}, o.Listen...), ",")
		rules := "local all all trust\nhost all all samenet trust\nhost replication all samenet trust\n"
		params["hba_file"] = p.file("hba.conf")
		if err := os.WriteFile(p.file("hba.conf"), []byte(rules), 0o600); err != nil {
			return fmt.Errorf("letting others in to Postgres: %w", err)
		}
	}
	maps.Copy(params, p.params)
	p.params = params
	return nil
}

func (p *Postgres) file(name string) string { return filepath.Join(p.Dir, name) }

// certify makes a certificate for 127.0.0.1 and localhost that vouches for
// itself. It stays when there is one.
func (p *Postgres) certify() error {
	if _, err := os.Stat(p.file("server.key")); err == nil {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	write := func(name, kind string, octets []byte) error {
		return os.WriteFile(p.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: octets}), 0o600)
	}
	if err := write("server.crt", "CERTIFICATE", der); err != nil {
		return err
	}
	return write("server.key", "PRIVATE KEY", secret) // last: it says that both are there
}

// UnixDSN is the connection string of a database by the Unix socket.
func (p *Postgres) UnixDSN(db string) string {
	return fmt.Sprintf("postgres://postgres@/%s?host=%s&port=%d&sslmode=disable", db, url.QueryEscape(p.sockets), p.Port)
}

// TLSDSN is the connection string of a database by TLS; the server's name and
// certificate are verified.
func (p *Postgres) TLSDSN(db string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=verify-full&sslrootcert=%s", p.Port, db, url.QueryEscape(p.file("server.crt")))
}
