package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"go.yaml.in/yaml/v3"

	"timewait_exporter/test/e2e/rules"
	"timewait_exporter/test/netns"
	"timewait_exporter/test/program"
)

const (
	podUID      = "0f9d3a52-6c1e-4b7a-8d2f-3e5a9b7c1d20"
	containerID = "63425c4a5cbd4d3a9a5ac4f1f1bd4f0cb7b0f4d3f3a2c1b0a9f8e7d6c5b4a392"
	// twoHours is how soon the two hours are over that the level of CLOSE_WAITs has to last.
	twoHours = 100
)

// TestLeakOfAPod has a server in Java, in the cgroup of a pod's container, that leaks connections. A Prometheus inside
// Kubernetes finds the exporter as another pod: what metrics say of that pod stays, and the alert names the container and java.
func TestLeakOfAPod(t *testing.T) {
	java, err := exec.LookPath("java")
	if err != nil {
		t.Skip(err)
	}
	netns.Run(t, func(t *testing.T) {
		logs := t.TempDir()
		for _, dir := range []string{"pods/shop_web-0_" + podUID + "/main", "containers"} {
			if err := os.MkdirAll(filepath.Join(logs, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(logs, "containers/web-0_shop_main-"+containerID+".log"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		server := exec.Command(java, "testdata/Leak.java", "8080")
		server.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: podCgroup(t)}
		program.Start(t, server)
		program.Start(t, exec.Command(program.Path(), "--path.pod-logs="+logs))
		startPrometheusInKubernetes(t)
		for range 40 {
			program.Eventually(t, func() error { return connectSendAndClose("127.0.0.1:8080") })
		}

		ask := func(query string) []map[string]string {
			var answer struct {
				Data struct {
					Result []struct {
						Metric map[string]string `json:"metric"`
					} `json:"result"`
				} `json:"data"`
			}
			if err := json.Unmarshal([]byte(program.Get(t, "http://127.0.0.1:9090/api/v1/query?query="+url.QueryEscape(query))), &answer); err != nil {
				t.Fatal(err)
			}
			var found []map[string]string
			for _, result := range answer.Data.Result {
				found = append(found, result.Metric)
			}
			return found
		}
		program.Eventually(t, func() error {
			if info := `tcp_owner_info{namespace="shop",pod="web-0",container="main",program="java"}`; len(ask(info)) != 1 {
				return fmt.Errorf("no %s among %v", info, ask("tcp_owner_info"))
			}
			return nil
		})
		if up := ask(`up{namespace="monitoring",pod="timewait-exporter-x7k2p",node="node-1"}`); len(up) != 1 {
			t.Errorf("the target has not its own labels: %v", ask("up"))
		}
		if renamed := ask(`{exported_namespace!=""}`); len(renamed) > 0 {
			t.Errorf("labels have given way: %v", renamed)
		}

		var fired string
		for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(time.Second) {
			var answer struct {
				Data struct {
					Alerts []struct {
						Labels      map[string]string `json:"labels"`
						Annotations map[string]string `json:"annotations"`
						State       string            `json:"state"`
					} `json:"alerts"`
				} `json:"data"`
			}
			if err := json.Unmarshal([]byte(program.Get(t, "http://127.0.0.1:9090/api/v1/alerts")), &answer); err != nil {
				t.Fatal(err)
			}
			for _, a := range answer.Data.Alerts {
				if a.Labels["alertname"] == "TCPCloseWaitLeak" && a.State == "firing" {
					fired = a.Annotations["summary"] + "\n" + a.Annotations["description"]
				}
			}
			if fired != "" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("TCPCloseWaitLeak does not fire, only %+v; CLOSE_WAITs are of %v", answer.Data.Alerts, ask(`tcp_owner_connections{state="close_wait"}`))
			}
		}
		t.Log(fired)
		for _, part := range []string{"shop/web-0/main (java) does not close its connections", "shop/web-0/main, program java,", "java has "} {
			if !strings.Contains(fired, part) {
				t.Errorf("no %q in the alert", part)
			}
		}
	})
}

// podCgroup makes the cgroup of a pod's container, as containerd with systemd does, and returns it open.
func podCgroup(t *testing.T) int {
	t.Helper()
	mounts, err := procfs.GetMounts()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(mounts, func(m *procfs.MountInfo) bool { return m.FSType == "cgroup2" })
	if i < 0 {
		t.Skip("no cgroup v2 hierarchy is mounted")
	}
	dir, err := os.MkdirTemp(mounts[i].MountPoint, "timewait-exporter-")
	if err != nil {
		t.Skip("making cgroups needs the right to: ", err)
	}
	pod := filepath.Join(dir, "kubepods-pod"+strings.ReplaceAll(podUID, "-", "_")+".slice")
	container := filepath.Join(pod, "cri-containerd-"+containerID+".scope")
	t.Cleanup(func() {
		for _, path := range []string{container, pod, dir} {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
	})
	if err := os.MkdirAll(container, 0o755); err != nil {
		t.Fatal(err)
	}
	opened, err := os.Open(container)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	return int(opened.Fd())
}

// startPrometheusInKubernetes starts it with the configuration for Kubernetes, in which the exporter is one target that the
// API would have told of; rules and scrapes are faster.
func startPrometheusInKubernetes(t *testing.T) {
	t.Helper()
	const deploy = "../../deploy/prometheus/"
	dir := t.TempDir()
	fasterRules(t, dir, twoHours)
	text, err := os.ReadFile(deploy + "prometheus.kubernetes.yml")
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	delete(config, "alerting")
	scrape := config["scrape_configs"].([]any)[0].(map[string]any)
	delete(scrape, "kubernetes_sd_configs")
	scrape["static_configs"] = []any{map[string]any{"targets": []string{"127.0.0.1:10793"}, "labels": map[string]string{
		"__meta_kubernetes_pod_label_app_kubernetes_io_name": "timewait-exporter",
		"__meta_kubernetes_pod_container_port_number":        "10793",
		"__meta_kubernetes_pod_node_name":                    "node-1",
		"__meta_kubernetes_namespace":                        "monitoring",
		"__meta_kubernetes_pod_name":                         "timewait-exporter-x7k2p",
	}}}
	text, err = yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	slow, fast := filepath.Join(dir, "slow.yml"), filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(slow, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := rules.FasterConfig(slow, fast, twoHours); err != nil {
		t.Fatal(err)
	}
	program.Start(t, exec.Command(prometheusPath, "--config.file="+fast, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:9090"))
	program.Get(t, "http://127.0.0.1:9090/-/ready")
}

func connectSendAndClose(address string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte{1})
	return err
}
