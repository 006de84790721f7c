package program

import (
	"crypto/x509"
	"encoding/pem"
	"net/http/httptest"
	"testing"
)

// Certificate returns the PEM of a certificate for 127.0.0.1 and of its key, and who trusts it.
func Certificate(t testing.TB) (certificate, key string, trust *x509.CertPool) {
	t.Helper()
	server := httptest.NewTLSServer(nil) // which has one
	defer server.Close()
	private, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	trust = x509.NewCertPool()
	trust.AddCert(server.Certificate())
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), trust
}
