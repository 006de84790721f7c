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
	"sync"
	"testing"
	"time"

	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

const hostileAddress = "127.0.0.1:10793"

// flood has so many clients at the same time, each of which runs behave on its
// connection until the test ends. What a client gets for that is its own affair.
func flood(t *testing.T, clients int, dial func(context.Context) (net.Conn, error), behave func(net.Conn)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all, connected sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(cancel)
	connected.Add(clients)
	for range clients {
		all.Go(func() {
			conn, err := dial(ctx)
			if err != nil {
				connected.Done()
				return
			}
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			defer conn.Close()
			connected.Done()
			behave(conn)
			<-ctx.Done()
		})
	}
	connected.Wait()
}

func dialPlain(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", hostileAddress)
}

// honest is a Prometheus, with a connection that it keeps.
type honest struct {
	url       string
	transport *http.Transport
}

func newHonest(t *testing.T, trust *x509.CertPool) *honest {
	t.Helper()
	h := &honest{"http://" + hostileAddress + "/metrics", new(http.Transport)}
	if trust != nil {
		h.url = "https://" + hostileAddress + "/metrics"
		h.transport.TLSClientConfig = &tls.Config{RootCAs: trust}
	}
	t.Cleanup(h.transport.CloseIdleConnections)
	h.scrape(t)
	return h
}

// scrape wants a whole page, long before a Prometheus gives up.
func (h *honest) scrape(t *testing.T) {
	t.Helper()
	start := time.Now()
	response, err := (&http.Client{Transport: h.transport, Timeout: 10 * time.Second}).Get(h.url)
	if err != nil {
		t.Errorf("after %v: %v", time.Since(start), err)
		return
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("after %v: %s, %v\n%.200s", time.Since(start), response.Status, err, body)
		return
	}
	mustParse(t, body).want(t, 1, "timewait_exporter_collector_success", "collector", "sockets")
}

// wantServed scrapes a few times, the last time on the connection that h has since
// before the flood, and then looks at what the flood left.
func wantServed(t *testing.T, e *exporter, h *honest) {
	t.Helper()
	time.Sleep(time.Second) // all of the flood are new clients at first, as an honest one may be
	other := &honest{h.url, h.transport.Clone()}
	other.transport.DisableKeepAlives = true
	for range 4 {
		other.scrape(t)
		time.Sleep(300 * time.Millisecond)
	}
	h.scrape(t)
	if log := e.Log.String(); strings.Count(log, "\n") > 20 {
		t.Errorf("the flood leaves too much in the log:\n%s", log)
	}
	const most = 512 + 50 // --web.max-connections and files
	var files int
	netns.Eventually(t, func() bool {
		found, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", e.Cmd.Process.Pid))
		files = len(found)
		return err == nil && files <= most
	}, func() string { return fmt.Sprintf("%d open files, want at most %d", files, most) })
}

// TestHostileClients has clients that take what there is and do nothing with it.
func TestHostileClients(t *testing.T) {
	const get = "GET /metrics HTTP/1.1\r\nHost: a\r\n"
	send := func(text string) func(net.Conn) {
		return func(conn net.Conn) { fmt.Fprint(conn, text) }
	}
	for name, c := range map[string]struct {
		clients int
		tls     bool
		behave  func(net.Conn)
	}{
		"announce_a_body":       {60, false, send(get + "Content-Length: 10\r\n\r\n")},
		"announce_chunks":       {60, false, send(get + "Transfer-Encoding: chunked\r\n\r\n")},
		"post_nothing":          {60, false, send("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")},
		"expect_to_be_asked":    {60, false, send(get + "Expect: 100-continue\r\nContent-Length: 10\r\n\r\n")},
		"do_not_read":           {300, false, send(strings.Repeat(get+"\r\n", 100))},
		"idle":                  {1500, false, send("GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n")},
		"idle_with_TLS":         {700, true, func(net.Conn) {}},
		"say_nothing":           {1500, false, func(net.Conn) {}},
		"send_half_a_request":   {1500, false, send(get)},
		"do_not_read_a_report":  {300, false, send(strings.Repeat("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 100))},
		"do_not_read_a_runbook": {1000, false, send(strings.Repeat("GET /runbooks/TCPSynFlood HTTP/1.1\r\nHost: a\r\n\r\n", 100))},
	} {
		t.Run(name, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				var flags []string
				var pool *x509.CertPool
				dial := dialPlain
				if c.tls {
					var config string
					config, pool = writeWebConfig(t, "")
					flags = append(flags, "--web.config.file="+config)
					dialer := &tls.Dialer{Config: &tls.Config{RootCAs: pool}, NetDialer: &net.Dialer{Timeout: 10 * time.Second}}
					dial = func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", hostileAddress) }
				}
				e := startListening(t, hostileAddress, flags...)
				h := newHonest(t, pool)
				flood(t, c.clients, dial, c.behave)
				wantServed(t, e, h)
			})
		})
	}
}

// TestMaxConnections opens one connection more than may be: the one that has been
// idle for longest is closed.
func TestMaxConnections(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		startListening(t, hostileAddress, "--web.max-connections=3")
		open := func() net.Conn {
			t.Helper()
			conn, err := dialPlain(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		ask := func(conn net.Conn) error {
			if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
				return err
			}
			fmt.Fprint(conn, "GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n")
			answer := make([]byte, 1000)
			n, err := conn.Read(answer)
			if err == nil && !strings.Contains(string(answer[:n]), "200 OK") {
				err = fmt.Errorf("answered %q", answer[:n])
			}
			return err
		}
		conns := []net.Conn{open(), open(), open()}
		for _, i := range []int{0, 1, 2, 0} { // 1 is idle for longest then
			if err := ask(conns[i]); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err := ask(open()); err != nil {
			t.Errorf("one more connection: %v", err)
		}
		if err := ask(conns[1]); err == nil {
			t.Error("the connection that was idle for longest is still open")
		}
		for _, i := range []int{0, 2} {
			if err := ask(conns[i]); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		}
	})
}

// TestNoHTTP2 offers HTTP/2 in both ways there are, to a program whose configuration
// asks for it.
func TestNoHTTP2(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		config, pool := writeWebConfig(t, "http_server_config:\n  http2: true\n")
		startListening(t, hostileAddress, "--web.config.file="+config)
		conn, err := tls.Dial("tcp", hostileAddress, &tls.Config{RootCAs: pool, NextProtos: []string{"h2", "http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if proto := conn.ConnectionState().NegotiatedProtocol; proto != "http/1.1" {
			t.Errorf("%q is spoken", proto)
		}
		fmt.Fprint(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		answer, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 405 ") {
			t.Errorf("to a preface: %q, %v", answer, err)
		}
	})
}

// TestOnlyReading refuses whatever is no GET or HEAD, and bodies, and closes the
// connection at once.
func TestOnlyReading(t *testing.T) {
	netns.Run(t, func(t *testing.T) {
		startListening(t, hostileAddress)
		var all sync.WaitGroup
		defer all.Wait()
		try := func(request, status string) {
			conn, err := dialPlain(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			start := time.Now()
			fmt.Fprint(conn, request)
			_ = conn.SetDeadline(start.Add(5 * time.Second))
			answer, err := io.ReadAll(conn)
			if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 "+status) {
				t.Errorf("%q: %q, %v; want %s", request, answer, err, status)
			}
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("%q: the connection was open for %v", request, took)
			}
		}
		f := func(request, status string) {
			all.Go(func() { try(request, status) })
		}
		for _, path := range []string{"/metrics", "/", "/report.json", "/report.js", "/-/healthy", "/no/such/path"} {
			for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"} {
				f(method+" "+path+" HTTP/1.1\r\nHost: a\r\n\r\n", "405 ")
			}
			for _, method := range []string{"GET", "HEAD"} {
				f(method+" "+path+" HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", "400 ")
				f(method+" "+path+" HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde", "400 ")
				f(method+" "+path+" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "400 ")
				f(method+" "+path+" HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n", "400 ")
			}
		}
		f("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "405 ")
		f("HEAD /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "200 ")
	})
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
	parse := func(answer []byte, err error) (page, error) {
		if err != nil {
			return nil, err
		}
		response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), nil)
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return nil, errors.New(response.Status)
		}
		return parsePage(response.Body)
	}
	wantPage := func(answer []byte, err error) error {
		p, err := parse(answer, err)
		if err == nil && (p.sum("timewait_exporter_collector_success") == 0 || p.sum("timewait_exporter_collector_success") != float64(len(p.series("timewait_exporter_collector_success")))) {
			err = fmt.Errorf("a part failed: %v", p.series("timewait_exporter_collector_success"))
		}
		return err
	}
	nonsense := func() error { _, err := exchange("nonsense\r\n\r\n", false); return err }
	for name, client := range map[string]func() error{
		"tiny_timeout": func() error {
			// All of it, unless this machine is too busy for that.
			_, err := parse(exchange(get+"X-Prometheus-Scrape-Timeout-Seconds: 0.000001\r\n\r\n", false))
			return err
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
		"nonsense": nonsense,
		"no_TLS":   nonsense,
		"another_certificate": func() error {
			conn, err := tls.Dial("tcp", hostileAddress, &tls.Config{RootCAs: x509.NewCertPool()})
			if err == nil {
				conn.Close()
				return errors.New("trusted")
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			netns.Run(t, func(t *testing.T) {
				var flags []string
				if name == "no_TLS" || name == "another_certificate" {
					config, _ := writeWebConfig(t, "")
					flags = append(flags, "--web.config.file="+config)
				}
				e := startListening(t, hostileAddress, flags...)
				wantQuiet(t, e, client)
				if name == "no_TLS" {
					netns.Eventually(t, func() bool { return strings.Contains(e.Log.String(), "lines=") },
						func() string { return "the log does not say how many lines were left out:\n" + e.Log.String() })
				}
			})
		})
	}
}

// wantQuiet runs a client 80 times and counts the lines in the log.
func wantQuiet(t *testing.T, e *exporter, client func() error) {
	t.Helper()
	before := strings.Count(e.Log.String(), "\n")
	for range 80 {
		if err := client(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(1500 * time.Millisecond) // for scrapes under way, and the line that counts
	if lines := strings.Count(e.Log.String(), "\n") - before; lines > 10 {
		t.Errorf("80 requests leave %d lines:\n%s", lines, e.Log)
	}
}

// writeWebConfig writes a web configuration with TLS and what else it is to say, and
// returns its path and the pool that trusts its certificate.
func writeWebConfig(t *testing.T, more string) (string, *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	certificate, key, pool := program.Certificate(t)
	for name, text := range map[string]string{
		"certificate.pem": certificate, "key.pem": key, "web.yml": "tls_server_config: {cert_file: certificate.pem, key_file: key.pem}\n" + more,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "web.yml"), pool
}
