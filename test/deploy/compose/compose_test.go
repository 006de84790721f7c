// Package compose tests the demonstration of deploy/compose: the file and the
// settings that it mounts agree, and the client has the bugs that it is there for.
package compose

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v3"

	"timewait_exporter/test/deploy/host"
)

// load reads the compose file as Docker does: unknown keys and services are errors.
func load(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{filepath.Join(host.Checkout(t), "deploy/compose/compose.yaml")})
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return project
}

func TestServices(t *testing.T) {
	pinned := regexp.MustCompile(`^docker\.io/[a-z]+/[a-z]+:v?\d+\.\d+\.\d+$`)
	for name, s := range load(t).Services {
		if s.Build == nil && !pinned.MatchString(s.Image) {
			t.Errorf("%s: image %q is not pinned to a version", name, s.Image)
		}
		if s.Build != nil {
			if _, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: may write, or has privileges", name)
		}
		for _, p := range s.Ports {
			if p.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to the network", name, p.Published)
			}
		}
		for _, v := range s.Volumes {
			if _, err := os.Stat(v.Source); err != nil || v.Type != types.VolumeTypeBind || !v.ReadOnly {
				t.Errorf("%s: %s should be a read-only mount of a folder here: %v", name, v.Target, err)
			}
		}
	}
}

// The settings of deploy/ are mounted as they are, so what they call each other has to
// be what the compose file makes of it.
func TestSettings(t *testing.T) {
	project := load(t)
	services := project.Services

	var prometheus struct {
		Global struct {
			ScrapeInterval string `yaml:"scrape_interval"`
		}
		RuleFiles []string `yaml:"rule_files"`
		Alerting  struct {
			Alertmanagers []struct {
				Static []struct{ Targets []string } `yaml:"static_configs"`
			}
		}
		Scrape []struct {
			Static []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	config := read(t, services["prometheus"], flag(t, services["prometheus"], "--config.file"), &prometheus)
	for _, name := range prometheus.RuleFiles {
		if _, err := os.Stat(filepath.Join(filepath.Dir(config), name)); err != nil {
			t.Error(err)
		}
	}
	published := services["exporter"].Ports
	for _, target := range []string{
		prometheus.Scrape[0].Static[0].Targets[0],
		prometheus.Alerting.Alertmanagers[0].Static[0].Targets[0],
		hostPort(t, flag(t, services["prometheus"], "--web.external-url")),
		hostPort(t, flag(t, services["alertmanager"], "--web.external-url")),
	} {
		name, port, err := net.SplitHostPort(target)
		if err != nil || name != "localhost" || !slices.ContainsFunc(published, func(p types.ServicePortConfig) bool { return p.Published == port }) {
			t.Errorf("%s is no published port of the machine", target)
		}
	}
	for _, name := range []string{"client", "prometheus", "alertmanager", "pager"} {
		if services[name].NetworkMode != "service:exporter" {
			t.Errorf("%s is not on the machine that the exporter sees", name)
		}
	}

	var alertmanager struct {
		Receivers []struct {
			Webhooks []struct{ URL string } `yaml:"webhook_configs"`
		}
	}
	read(t, services["alertmanager"], flag(t, services["alertmanager"], "--config.file"), &alertmanager)
	for _, r := range alertmanager.Receivers {
		if got, want := services["pager"].Command[1], hostPort(t, r.Webhooks[0].URL); got != want {
			t.Errorf("the pager listens on %s, Alertmanager calls %s", got, want)
		}
	}

	var datasources struct {
		Datasources []struct {
			Type, URL string
			JSONData  struct {
				TimeInterval string `yaml:"timeInterval"`
			} `yaml:"jsonData"`
		}
	}
	read(t, services["grafana"], "/etc/grafana/provisioning/datasources/prometheus.yaml", &datasources)
	name, port, err := net.SplitHostPort(hostPort(t, datasources.Datasources[0].URL))
	if err != nil || !slices.Contains(services["exporter"].Networks["default"].Aliases, name) || port != "9090" {
		t.Errorf("Grafana asks %s, which is not Prometheus", datasources.Datasources[0].URL)
	}
	// $__rate_interval is made of the scrape interval.
	if source := datasources.Datasources[0]; len(datasources.Datasources) != 1 || source.Type != "prometheus" || source.JSONData.TimeInterval != prometheus.Global.ScrapeInterval {
		t.Errorf("data sources %+v, want one of Prometheus with the scrape interval %s", datasources, prometheus.Global.ScrapeInterval)
	}
	var dashboards struct {
		Providers []struct {
			Type    string
			Options struct{ Path string }
		}
	}
	read(t, services["grafana"], "/etc/grafana/provisioning/dashboards/timewait_exporter.yaml", &dashboards)
	home := *services["grafana"].Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	if provider := dashboards.Providers[0]; len(dashboards.Providers) != 1 || provider.Type != "file" || provider.Options.Path != filepath.Dir(home) {
		t.Errorf("dashboard providers %+v, want one that reads the folder of %s", dashboards, home)
	}
	read(t, services["grafana"], home, new(any))

	for _, name := range []string{"client", "orders", "stock"} {
		words := services[name].Command
		target, err := url.Parse(words[len(words)-1])
		if err != nil || services[target.Hostname()].Command[1] != ":"+target.Port() {
			t.Errorf("%s calls %v, where no server is: %v", name, target, err)
		}
	}
	exporter := services["exporter"]
	if flag(t, exporter, "--collector.namespaces") != "all" || exporter.Pid != "host" || services["orders"].NetworkMode != "" || services["stock"].NetworkMode != "" {
		t.Error("the exporter does not see two services with networks of their own")
	}
}

// read decodes a file that a service has mounted, and returns where it is here.
func read(t *testing.T, s types.ServiceConfig, path string, into any) string {
	t.Helper()
	for _, v := range s.Volumes {
		rest, err := filepath.Rel(v.Target, path)
		if err != nil || !filepath.IsLocal(rest) {
			continue
		}
		path = filepath.Join(v.Source, rest)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, into); err != nil { // JSON too
			t.Fatalf("%s: %v", path, err)
		}
		return path
	}
	t.Fatalf("%s: %s is not mounted", s.Name, path)
	return ""
}

// flag returns the value of a flag in the command of a service.
func flag(t *testing.T, s types.ServiceConfig, name string) string {
	t.Helper()
	for _, arg := range s.Command {
		if value, ok := strings.CutPrefix(arg, name+"="); ok {
			return value
		}
	}
	t.Fatalf("%s has no %s", s.Name, name)
	return ""
}

func hostPort(t *testing.T, text string) string {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}
