package kernel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"timewait_exporter/test/netns"
)

const hostileAddress = "127.9.9.9:10793"

func dialPlain(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", hostileAddress)
}

// TestHostileLog has 80 requests of each kind that is no trouble of the program:
// together they may not hide what is.
func TestHostileLog(t *testing.T) {
	const get = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
	exchange := func(request string, closeWrite bool) ([]byte, error) {
		conn, err := dialPlain(t.Context())
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		fmt.Fprint(conn, request)
		if closeWrite {
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				return nil, err
			}
		}
		return io.ReadAll(conn)
	}
	wantPage := func(answer []byte, err error) error {
		if err != nil {
			return err
		}
		response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), nil)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		p, err := parsePage(response.Body)
		if err == nil && (p.sum("timewait_exporter_collector_success") == 0 || p.sum("timewait_exporter_collector_success") != float64(len(p.series("timewait_exporter_collector_success")))) {
			err = fmt.Errorf("a part failed: %v", p.series("timewait_exporter_collector_success"))
		}
		return err
	}
	for name, client := range map[string]func() error{
		"tiny_timeout": func() error {
			return wantPage(exchange(get+"X-Prometheus-Scrape-Timeout-Seconds: 0.000001\r\n\r\n", false))
		},
		"half_close":  func() error { return wantPage(exchange(get+"\r\n", true)) },
		"no_encoding": func() error { return wantPage(exchange(get+"Accept-Encoding: *;q=0\r\n\r\n", false)) },
		"hang_up": func() error {
			conn, err := dialPlain(t.Context())
			if err != nil {
				return err
			}
			fmt.Fprint(conn, get+"\r\n")
			return conn.Close()
		},
		"reset": func() error {
			conn, err := dialPlain(t.Context())
			if err != nil {
				return err
			}
			fmt.Fprint(conn, get+"\r\n")
			_ = conn.(*net.TCPConn).SetLinger(0)
			return conn.Close()
		},
		"nonsense": func() error { _, err := exchange("nonsense\r\n\r\n", false); return err },
	} {
		t.Run(name, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				e := startListening(t, hostileAddress)
				wantQuiet(t, e, client)
			})
		})
	}
	t.Run("no_TLS", func(t *testing.T) {
		netns.Run(t, func(t *testing.T) {
			config, _ := writeWebConfig(t, "")
			e := startListening(t, hostileAddress, "--web.config.file="+config)
			wantQuiet(t, e, func() error { _, err := exchange("nonsense\r\n\r\n", false); return err })
			netns.Eventually(t, func() bool { return strings.Contains(e.log.String(), "lines=") },
				func() string { return "the log does not say how many lines were left out:\n" + e.log.String() })
		})
	})
	t.Run("another_certificate", func(t *testing.T) {
		netns.Run(t, func(t *testing.T) {
			config, _ := writeWebConfig(t, "")
			e := startListening(t, hostileAddress, "--web.config.file="+config)
			wantQuiet(t, e, func() error {
				conn, err := tls.Dial("tcp", hostileAddress, &tls.Config{RootCAs: x509.NewCertPool()})
				if err == nil {
					conn.Close()
					return errors.New("trusted")
				}
				return nil
			})
		})
	})
}

// wantQuiet runs a client 80 times and counts the lines in the log.
func wantQuiet(t *testing.T, e *exporter, client func() error) {
	t.Helper()
	before := strings.Count(e.log.String(), "\n")
	for range 80 {
		if err := client(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(1500 * time.Millisecond) // for scrapes under way, and the line that counts
	if lines := strings.Count(e.log.String(), "\n") - before; lines > 10 {
		t.Errorf("80 requests leave %d lines:\n%s", lines, e.log)
	}
}

// writeWebConfig writes a web configuration with TLS and what else it is to say, and
// returns its path and the pool that trusts its certificate.
func writeWebConfig(t *testing.T, more string) (string, *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	pool := writeCertificate(t, filepath.Join(dir, "certificate.pem"), filepath.Join(dir, "key.pem"))
	path := filepath.Join(dir, "web.yml")
	text := "tls_server_config:\n  cert_file: certificate.pem\n  key_file: key.pem\n" + more
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, pool
}
