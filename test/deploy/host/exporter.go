package host

import (
	"bufio"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// ListenAddress returns where the exporter that writes the log listens, or nothing
// when the log ends before.
func ListenAddress(log io.Reader) string {
	says := regexp.MustCompile(`msg="Listening on" address=(\S+)`)
	for lines := bufio.NewScanner(log); lines.Scan(); {
		if address := says.FindStringSubmatch(lines.Text()); address != nil {
			return address[1]
		}
	}
	return ""
}

// Get returns a page, which must come with status 200 within 30 s.
func Get(t testing.TB, url string) string {
	t.Helper()
	client := http.Client{Timeout: 30 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close() //nolint:errcheck // it was read
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v\n%s", url, response.Status, err, body)
	}
	return string(body)
}

// CheckMetrics checks that a scrape succeeded in all its parts, and read the host's
// network namespace and sysctls from source.
func CheckMetrics(t testing.TB, body, source string) {
	t.Helper()
	success := regexp.MustCompile(`(?m)^timewait_exporter_collector_success\{.*\} 1$`)
	if n := len(success.FindAllString(body, -1)); n != 8 {
		t.Errorf("%d collectors succeeded, not 8, in\n%s", n, body)
	}
	for _, want := range []string{
		`timewait_exporter_netns_info{netns="host",path="/proc/self/net",sysctls="same"} 1`,
		`timewait_exporter_source_info{netns="host",source="` + source + `"} 1`,
	} {
		if !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	// From a sysctl. Where /proc/sys can't be seen it is absent, and that is no failure.
	if !strings.Contains(body, "\ntcp_ephemeral_ports{") {
		t.Errorf("no tcp_ephemeral_ports in\n%s", body)
	}
}

// CheckRights checks /proc/PID/status of an exporter: its user and group, as a
// pattern, and that it has no right beyond an ordinary user's and a seccomp filter.
func CheckRights(t testing.TB, status, user string) {
	t.Helper()
	for _, want := range []string{
		`Uid:(\t` + user + `){4}`,
		`Gid:(\t` + user + `){4}`,
		`CapInh:\t0{16}`,
		`CapPrm:\t0{16}`,
		`CapEff:\t0{16}`,
		`CapBnd:\t0{16}`,
		`CapAmb:\t0{16}`,
		`NoNewPrivs:\t1`,
		`Seccomp:\t2`,
	} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(status) {
			t.Errorf("not %s in\n%s", want, status)
		}
	}
}
