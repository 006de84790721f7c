package kubernetes

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"

	"timewait_exporter/test/deploy/host"
	"timewait_exporter/test/program"
)

func TestMain(m *testing.M) { program.Main(m, "../../..") }

// knownFlags returns the flags in the program's --help.
func knownFlags(t testing.TB) map[string]bool {
	t.Helper()
	flags := map[string]bool{}
	for _, found := range regexp.MustCompile(`(?m)^ +(?:-\w, )?--(\[no-\])?([\w.-]+)`).FindAllStringSubmatch(host.Run(t, "", program.Path(), "--help"), -1) {
		flags["--"+found[2]] = true
		if found[1] != "" {
			flags["--no-"+found[2]] = true
		}
	}
	if !flags["--web.listen-address"] || !flags["--no-collector.remote-ips"] {
		t.Fatalf("flags are %v", flags)
	}
	return flags
}

// TestRun runs the program as the chart would and asks what probes and Prometheus
// ask.
func TestRun(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		port := program.FreePort(t)
		c := install(t, fmt.Sprintf("port: %d\nlistenOnAllInterfaces: false\nextraArgs: [--collector.source=auto, --collector.remotes=10]", port))
		_, container := c.pod(t)
		start(t, container, "")
		address := fmt.Sprintf("http://127.0.0.1:%d", port)
		for _, path := range []string{container.ReadinessProbe.HTTPGet.Path, container.LivenessProbe.HTTPGet.Path, "/metrics"} {
			status, _ := program.Fetch(t, http.DefaultClient, address+path)
			if status != http.StatusOK {
				t.Errorf("%s answers %d", path, status)
			}
		}
	})

	t.Run("tls", func(t *testing.T) {
		port := program.FreePort(t)
		c := install(t, fmt.Sprintf("port: %d\nlistenOnAllInterfaces: false\n%s", port, valueSets(t)["tls"].values))
		pod, container := c.pod(t)
		secrets, client := makeSecrets(t)
		dir := t.TempDir()
		for _, source := range pod.Spec.Volumes[0].Projected.Sources {
			files := secrets[source.Secret.Name]
			if source.Secret.Items != nil {
				files = map[string]string{}
				for _, item := range source.Secret.Items {
					files[item.Path] = secrets[source.Secret.Name][item.Key]
				}
			}
			for name, text := range files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		start(t, container, dir)
		address := fmt.Sprintf("https://%s127.0.0.1:%d/metrics", "prometheus:secret@", port)
		if status, body := program.Fetch(t, client, address); status != http.StatusOK || !strings.Contains(body, "timewait_exporter_netns_info") {
			t.Errorf("with the password it answers %d", status)
		}
		// What the chart's probe would meet, were it not a TCP probe.
		if status, _ := program.Fetch(t, client, strings.Replace(address, "prometheus:secret@", "", 1)); status != http.StatusUnauthorized {
			t.Errorf("without the password it answers %d", status)
		}
	})
}

// start runs the program with the container's arguments, as the kubelet does on a
// node whose address is 127.0.0.1. dir stands for the container's volume.
func start(t *testing.T, container core.Container, dir string) {
	t.Helper()
	var args []string
	for _, arg := range container.Args {
		for _, env := range container.Env {
			arg = strings.ReplaceAll(arg, "$("+env.Name+")", "127.0.0.1")
		}
		for _, mount := range container.VolumeMounts {
			arg = strings.ReplaceAll(arg, mount.MountPath+"/", dir+"/")
		}
		args = append(args, arg)
	}
	program.Start(t, exec.Command(program.Path(), args...))
}

// makeSecrets returns the Secrets of the values tls, and a client that trusts the
// certificate in them. The password is the one of docs/operations.md, "secret".
func makeSecrets(t *testing.T) (map[string]map[string]string, *http.Client) {
	t.Helper()
	certificate, key, trust := program.Certificate(t)
	return map[string]map[string]string{
		"web": {"web.yml": `
tls_server_config: {cert_file: tls.crt, key_file: tls.key}
basic_auth_users:
  prometheus: $2y$10$h//qJblJ.4V.tSmQHqCxVu8z8818gKfUHAbLXzuSAhxZ9pGm1EcVe
`},
		"cert": {"tls.crt": certificate, "tls.key": key},
	}, &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust}}}
}
