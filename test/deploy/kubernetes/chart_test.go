package kubernetes

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"timewait_exporter/test/deploy/host"
)

// valueSet is one of the files of testdata: a values file that all of the chart's objects
// are checked with and, as a second document, what must be in the objects it gives, by
// kind. Where there is no second document any objects are right.
type valueSet struct {
	values string
	want   map[string]any
}

func valueSets(t *testing.T) map[string]valueSet {
	t.Helper()
	sets := map[string]valueSet{}
	for _, path := range glob(t, "test/deploy/kubernetes/testdata/*.yaml") {
		values, want, _ := strings.Cut(readFile(t, path), "---\n")
		set := valueSet{values: values}
		if err := yaml.UnmarshalStrict([]byte(want), &set.want); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		sets[strings.TrimSuffix(filepath.Base(path), ".yaml")] = set
	}
	return sets
}

// lacks says where got does not have what want has: maps may have more, lists may not,
// and null is for what must not be there.
func lacks(got, want any, path string) []string {
	var missing []string
	switch want := want.(type) {
	case map[string]any:
		got, _ := got.(map[string]any)
		for key, value := range want {
			missing = append(missing, lacks(got[key], value, path+"."+key)...)
		}
	case []any:
		got, _ := got.([]any)
		if len(got) != len(want) {
			return []string{fmt.Sprintf("%s is %v, want %v", path, got, want)}
		}
		for i := range want {
			missing = append(missing, lacks(got[i], want[i], fmt.Sprintf("%s[%d]", path, i))...)
		}
	default:
		if got != want {
			missing = append(missing, fmt.Sprintf("%s is %v, want %v", path, got, want))
		}
	}
	return missing
}

// TestValues holds that values arrive where they belong, and what they switch on.
func TestValues(t *testing.T) {
	for name, set := range valueSets(t) {
		if set.want == nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			objects, err := render(loadChart(t), release, namespace, set.values)
			if err != nil {
				t.Fatal(err)
			}
			kinds := map[string]bool{}
			for _, text := range objects {
				var object map[string]any
				if err := yaml.Unmarshal([]byte(text), &object); err != nil {
					t.Fatal(err)
				}
				kind := object["kind"].(string)
				kinds[kind] = true
				for _, missing := range lacks(object, set.want[kind], kind) {
					t.Error(missing)
				}
			}
			if got, want := slices.Sorted(maps.Keys(kinds)), slices.Sorted(maps.Keys(set.want)); !slices.Equal(got, want) {
				t.Errorf("objects are %v, want %v", got, want)
			}
		})
	}
}

// TestLint is helm lint --strict, for each set of values.
func TestLint(t *testing.T) {
	for name, set := range valueSets(t) {
		t.Run(name, func(t *testing.T) {
			values, err := chartutil.ReadValues([]byte(set.values))
			if err != nil {
				t.Fatal(err)
			}
			linter := lint.AllWithKubeVersion(chartDir(t), values, namespace, nil)
			for _, message := range linter.Messages {
				if message.Severity > support.InfoSev {
					t.Error(message)
				}
			}
		})
	}
}

// TestObjects checks what must be true of the chart's objects with any values:
// they are valid, find each other, and the program knows its flags.
func TestObjects(t *testing.T) {
	flags := knownFlags(t)
	jobOfAlerts := jobPattern(t)
	for name, set := range valueSets(t) {
		t.Run(name, func(t *testing.T) {
			c := install(t, set.values)
			pod, container := c.pod(t)

			seen := map[string]bool{}
			for _, object := range c {
				key := fmt.Sprintf("%s %s/%s", kindOf(object), object.GetNamespace(), object.GetName())
				if seen[key] {
					t.Errorf("%s twice", key)
				}
				seen[key] = true
				if object.GetNamespace() == "" {
					t.Errorf("%s has no namespace", key)
				}
				for _, problem := range validation.NameIsDNSLabel(object.GetName(), false) {
					t.Errorf("%s: %s", key, problem)
				}
				if object.GetLabels()["app.kubernetes.io/instance"] != release {
					t.Errorf("%s has labels %v", key, object.GetLabels())
				}
			}

			podLabels := labels.Set(pod.Labels)
			selector := labels.SelectorFromSet(of[*apps.DaemonSet](c)[0].Spec.Selector.MatchLabels)
			if selector.Empty() || !selector.Matches(podLabels) {
				t.Errorf("the DaemonSet's selector %q does not match its pods %v", selector, podLabels)
			}
			for _, s := range of[*core.Service](c) {
				if !labels.SelectorFromSet(s.Spec.Selector).Matches(podLabels) || s.Namespace != namespace {
					t.Errorf("the Service selects %v in %s", s.Spec.Selector, s.Namespace)
				}
				hasPort(t, container, s.Spec.Ports[0].TargetPort)
				if s.Spec.ClusterIP != core.ClusterIPNone {
					t.Errorf("the Service has clusterIP %q", s.Spec.ClusterIP)
				}
			}
			for _, p := range of[*networking.NetworkPolicy](c) {
				if !labels.SelectorFromSet(p.Spec.PodSelector.MatchLabels).Matches(podLabels) {
					t.Errorf("the NetworkPolicy selects %v", p.Spec.PodSelector)
				}
				hasPort(t, container, *p.Spec.Ingress[0].Ports[0].Port)
			}
			for _, m := range of[*monitoring.PodMonitor](c) {
				if !labels.SelectorFromSet(m.Spec.Selector.MatchLabels).Matches(podLabels) || !slices.Equal(m.Spec.NamespaceSelector.MatchNames, []string{namespace}) {
					t.Errorf("the PodMonitor selects %v in %v", m.Spec.Selector, m.Spec.NamespaceSelector)
				}
				endpoint := m.Spec.PodMetricsEndpoints[0]
				hasPort(t, container, intstr.FromString(*endpoint.Port))
				checkRelabelings(t, endpoint.RelabelConfigs, jobOfAlerts)
			}
			for _, m := range of[*monitoring.ServiceMonitor](c) {
				service := of[*core.Service](c)[0]
				if !labels.SelectorFromSet(m.Spec.Selector.MatchLabels).Matches(labels.Set(service.Labels)) || !slices.Equal(m.Spec.NamespaceSelector.MatchNames, []string{namespace}) {
					t.Errorf("the ServiceMonitor selects %v in %v", m.Spec.Selector, m.Spec.NamespaceSelector)
				}
				endpoint := m.Spec.Endpoints[0]
				if endpoint.Port != service.Spec.Ports[0].Name {
					t.Errorf("the ServiceMonitor asks for port %q of %v", endpoint.Port, service.Spec.Ports)
				}
				checkRelabelings(t, endpoint.RelabelConfigs, jobOfAlerts)
			}

			for _, probe := range []*core.Probe{container.LivenessProbe, container.ReadinessProbe} {
				switch {
				case probe == nil:
				case probe.HTTPGet != nil:
					hasPort(t, container, probe.HTTPGet.Port)
				case probe.TCPSocket != nil:
					hasPort(t, container, probe.TCPSocket.Port)
				default:
					t.Errorf("a probe asks for nothing: %+v", probe)
				}
			}
			for _, arg := range container.Args {
				if flag, _, _ := strings.Cut(arg, "="); !flags[flag] {
					t.Errorf("the program has no flag %s", flag)
				}
			}
			checkSecurity(t, &pod.Spec, &container)
		})
	}
}

// hasPort checks that a port, by name or number, is one of the container.
func hasPort(t *testing.T, container core.Container, port intstr.IntOrString) {
	t.Helper()
	for _, p := range container.Ports {
		if port == intstr.FromString(p.Name) || port == intstr.FromInt32(p.ContainerPort) {
			return
		}
	}
	t.Errorf("the container has no port %s, only %v", port.String(), container.Ports)
}

// checkRelabelings checks that the job has a name which the alerts know, and that
// nothing touches the instance, which they make links of.
func checkRelabelings(t *testing.T, configs []monitoring.RelabelConfig, jobOfAlerts *regexp.Regexp) {
	t.Helper()
	job := ""
	for _, c := range configs {
		switch c.TargetLabel {
		case "job":
			job = *c.Replacement
		case "instance", "__address__":
			t.Errorf("%s is relabelled: %+v", c.TargetLabel, c)
		}
	}
	if !jobOfAlerts.MatchString(job) {
		t.Errorf("the alerts look for a job %s, not %q", jobOfAlerts, job)
	}
}

// checkSecurity checks what Pod Security "restricted" asks for, less the host's
// network, and that nothing of the host or the API comes into the pod.
func checkSecurity(t *testing.T, pod *core.PodSpec, container *core.Container) {
	t.Helper()
	for what, ok := range map[string]bool{
		"hostNetwork":                   pod.HostNetwork,
		"no hostIPC":                    !pod.HostIPC,
		"no token":                      pod.AutomountServiceAccountToken != nil && !*pod.AutomountServiceAccountToken,
		"runAsNonRoot":                  *pod.SecurityContext.RunAsNonRoot,
		"runAsUser":                     *pod.SecurityContext.RunAsUser == 65534,
		"seccompProfile":                pod.SecurityContext.SeccompProfile.Type == core.SeccompProfileTypeRuntimeDefault,
		"no privilege escalation":       !*container.SecurityContext.AllowPrivilegeEscalation,
		"not privileged":                container.SecurityContext.Privileged == nil,
		"read-only root":                *container.SecurityContext.ReadOnlyRootFilesystem,
		"no capability":                 slices.Equal(container.SecurityContext.Capabilities.Drop, []core.Capability{"ALL"}) && container.SecurityContext.Capabilities.Add == nil,
		"the user is that of the image": strings.Contains(readFile(t, "Dockerfile"), fmt.Sprintf("\nUSER %d:%d\n", *pod.SecurityContext.RunAsUser, *pod.SecurityContext.RunAsGroup)),
	} {
		if !ok {
			t.Errorf("not so: %s", what)
		}
	}
	for _, v := range pod.Volumes {
		names := []string{"/sys/fs/cgroup", "/var/log/pods", "/var/log/containers"}
		if v.Projected == nil && (v.HostPath == nil || !slices.Contains(names, v.HostPath.Path)) {
			t.Errorf("volume %s is neither a Secret nor names of the node's", v.Name)
		}
	}
	for _, m := range container.VolumeMounts {
		if !m.ReadOnly {
			t.Errorf("%s may be written to", m.MountPath)
		}
	}
}

// TestDefaults holds what a user gets who sets nothing.
func TestDefaults(t *testing.T) {
	pod, container := install(t, "").pod(t)
	if want := "timewait_exporter:" + loadChart(t).Metadata.AppVersion; container.Image != want {
		t.Errorf("image is %s, want %s", container.Image, want)
	}
	// The worst flood that was measured takes 173 MiB, and the kernel's buffers up to 64.
	limit := container.Resources.Limits.Memory().Value()
	if limit < 237<<20 {
		t.Errorf("the limit of memory is %d bytes", limit)
	}
	// With it a node of a thousand network namespaces was measured.
	if want := []core.EnvVar{{Name: "GOMEMLIMIT", Value: "100MiB"}}; !reflect.DeepEqual(container.Env, want) {
		t.Errorf("environment is %v, want %v", container.Env, want)
	}
	if len(container.Resources.Limits) != 1 {
		t.Errorf("limits are %v, want one of memory alone", container.Resources.Limits)
	}
	scrapeConfig := readFile(t, "deploy/prometheus/prometheus.kubernetes.yml")
	for _, kept := range []string{pod.Labels["app.kubernetes.io/name"], fmt.Sprintf("%q", fmt.Sprint(container.Ports[0].ContainerPort))} {
		if !strings.Contains(scrapeConfig, "regex: "+kept+"\n") {
			t.Errorf("prometheus.kubernetes.yml does not keep %s", kept)
		}
	}
}

// TestAlertLinks holds that the alerts of an exporter with a certificate link to https.
func TestAlertLinks(t *testing.T) {
	links := 0
	for _, rules := range of[*monitoring.PrometheusRule](install(t, valueSets(t)["tls"].values)) {
		for _, group := range rules.Spec.Groups {
			for _, rule := range group.Rules {
				for _, name := range []string{"runbook_url", "report_url"} {
					if link, ok := rule.Annotations[name]; ok {
						links++
						if !strings.HasPrefix(link, "https://{{ $labels.instance }}/") {
							t.Errorf("%s links %s", rule.Alert, link)
						}
					}
				}
			}
		}
	}
	if links == 0 {
		t.Error("no alert links anything")
	}
}

// TestRules holds that the chart's rules are those of deploy/prometheus.
func TestRules(t *testing.T) {
	rules := of[*monitoring.PrometheusRule](install(t, valueSets(t)["everything"].values))
	if len(rules) != 2 {
		t.Fatalf("got %d PrometheusRules", len(rules))
	}
	for i, kind := range []string{"alerts", "rules"} {
		if want := release + "-timewait-exporter-" + kind; rules[i].Name != want {
			t.Errorf("name is %s, want %s", rules[i].Name, want)
		}
		var want monitoring.PrometheusRuleSpec
		if err := yaml.UnmarshalStrict([]byte(readFile(t, "deploy/prometheus/timewait_exporter."+kind+".yml")), &want); err != nil {
			t.Fatal(err)
		}
		if len(want.Groups) == 0 || !reflect.DeepEqual(rules[i].Spec, want) {
			t.Errorf("the %s are not those of deploy/prometheus", kind)
		}
	}
}

// TestDashboards holds that the chart's dashboards are those of dashboards.
func TestDashboards(t *testing.T) {
	configMaps := of[*core.ConfigMap](install(t, valueSets(t)["everything"].values))
	got := map[string]string{}
	for _, m := range configMaps {
		maps.Copy(got, m.Data)
	}
	want := map[string]string{}
	for _, path := range glob(t, "dashboards/*.json") {
		want[filepath.Base(path)] = readFile(t, path)
	}
	if len(want) == 0 || !maps.Equal(got, want) || len(configMaps) != len(want) {
		t.Errorf("ConfigMaps have %v, dashboards has %v, or their text differs", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// linked maps each file that the chart links to by its name in the chart to its path.
func linked(t *testing.T) map[string]string {
	t.Helper()
	paths := map[string]string{}
	for _, path := range append(glob(t, "deploy/prometheus/timewait_exporter.*.yml"), glob(t, "dashboards/*.json")...) {
		paths["files/"+filepath.Base(path)] = path
	}
	return paths
}

// checkLinked checks that a chart has the contents of all that it links to, and no
// more files.
func checkLinked(t *testing.T, c *chart.Chart) {
	t.Helper()
	paths := linked(t)
	for _, file := range c.Files {
		if path, ok := paths[file.Name]; ok && string(file.Data) != readFile(t, path) {
			t.Errorf("%s is not %s", file.Name, path)
		} else if !ok && strings.HasPrefix(file.Name, "files/") {
			t.Errorf("%s is neither a rule file nor a dashboard", file.Name)
		}
		delete(paths, file.Name)
	}
	if len(paths) > 0 {
		t.Errorf("the chart does not have %v; make chart links them", paths)
	}
}

// TestLinks holds that a clone, and an archive that git makes, has no copy of a rule file
// or dashboard, and that Helm finds them all in it.
func TestLinks(t *testing.T) {
	checkLinked(t, loadChart(t))

	dir := t.TempDir()
	archive := filepath.Join(dir, "archive.tar")
	host.Run(t, "", "git", "--git-dir="+host.Commit(t), "archive", "--output="+archive, "main")
	host.Run(t, dir, "tar", "-xf", archive)
	folder := filepath.Join(dir, "deploy/helm/timewait-exporter")
	c, err := loader.LoadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	checkLinked(t, c)
	for name := range linked(t) {
		if target, err := os.Readlink(filepath.Join(folder, name)); err != nil || filepath.IsAbs(target) {
			t.Errorf("%s links to %q, %v", name, target, err)
		}
	}
}

// TestLostLinks holds that a chart whose links did not survive installs what needs none of
// them, and does not install empty rules or no dashboard without a word.
func TestLostLinks(t *testing.T) {
	for _, v := range []struct {
		name string
		lose func(*chart.File) bool // true if the file goes
	}{
		{"left out, as by Flux", func(*chart.File) bool { return true }},
		{"their targets as text, as by git on Windows", func(f *chart.File) bool {
			f.Data = []byte("../../../prometheus/" + filepath.Base(f.Name))
			return false
		}},
	} {
		t.Run(v.name, func(t *testing.T) {
			lossy := func() *chart.Chart {
				c := loadChart(t)
				c.Files = slices.DeleteFunc(c.Files, func(f *chart.File) bool { return strings.HasPrefix(f.Name, "files/") && v.lose(f) })
				return c
			}
			if _, err := render(lossy(), release, namespace, ""); err != nil {
				t.Errorf("without rules and dashboards: %v", err)
			}
			for values, file := range map[string]string{
				"prometheusRule: {enabled: true}": "files/timewait_exporter.",
				"dashboards: {enabled: true}":     "files/",
			} {
				_, err := render(lossy(), release, namespace, values)
				if err == nil || !strings.Contains(err.Error(), "): "+file) || !strings.Contains(err.Error(), ": the link is lost") {
					t.Errorf("%s: %v", values, err)
				}
			}
		})
	}
}

// TestWrongValues holds that a wrong value is refused with its name.
func TestWrongValues(t *testing.T) {
	for values, want := range map[string]string{
		"prometheusRules: {enabled: true}":                             "prometheusRules",
		"podMonitor: {enable: true}":                                   "enable",
		"image: {repo: x}":                                             "repo",
		"image: {repository: ''}":                                      "/image/repository",
		"image: {tag: 1.2}":                                            "/image/tag",
		"image: {digest: latest}":                                      "/image/digest",
		"image: {pullPolicy: Sometimes}":                               "/image/pullPolicy",
		"port: '10793'":                                                "/port",
		"port: 70000":                                                  "/port",
		"extraArgs: --log.level=debug":                                 "/extraArgs",
		"extraArgs: [log.level=debug]":                                 "/extraArgs/0",
		"tolerations: {operator: Exists}":                              "/tolerations",
		"resources: {limit: {memory: 64Mi}}":                           "limit",
		"podAnnotations: {prometheus.io/scrape: true}":                 "/podAnnotations/prometheus.io~1scrape",
		"serviceMonitor: {enabled: 'yes'}":                             "/serviceMonitor/enabled",
		"podMonitor: {interval: 15}":                                   "/podMonitor/interval",
		"podMonitor: {interval: 15 s}":                                 "/podMonitor/interval",
		"networkPolicy: {from: {ipBlock: {cidr: 10.0.0.0/8}}}":         "/networkPolicy/from",
		"updateStrategy: {type: Recreate}":                             "/updateStrategy/type",
		"hostNetwork: false":                                           "hostNetwork",
		"podMonitor: {enabled: true}\nserviceMonitor: {enabled: true}": "podMonitor.enabled and serviceMonitor.enabled",
		"service: {enabled: false}\nserviceMonitor: {enabled: true}":   "serviceMonitor.enabled needs service.enabled",
		"webConfig: {tlsSecret: cert}":                                 "webConfig.secret",
		"networkNamespaces: pods":                                      "/networkNamespaces",
		"hostPID: 'no'":                                                "/hostPID",
		"owners: {hostPID: false}":                                     "hostPID",
		"hostPID: false":                                               "Set networkNamespaces to own",
	} {
		_, err := render(loadChart(t), release, namespace, values)
		if err == nil {
			t.Errorf("%q is taken", values)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: the message does not name %s: %v", values, want, err)
		}
	}
}

// TestSchema holds that the schema has no value which values.yaml does not show.
func TestSchema(t *testing.T) {
	var schema struct {
		Properties map[string]any `json:"properties"`
	}
	if err := yaml.Unmarshal(loadChart(t).Schema, &schema); err != nil {
		t.Fatal(err)
	}
	known := slices.Sorted(maps.Keys(schema.Properties))
	given := slices.Sorted(maps.Keys(loadChart(t).Values))
	// What only a parent chart sets.
	given = append(given, "enabled", "global")
	slices.Sort(given)
	if !slices.Equal(known, given) {
		t.Errorf("the schema has %v, values.yaml %v", known, given)
	}
}

// TestPackage holds that what helm package makes has the contents of what the chart links
// to, and gives the same objects.
func TestPackage(t *testing.T) {
	c := loadChart(t)
	archive, err := chartutil.Save(c, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if want := "timewait-exporter-" + c.Metadata.Version + ".tgz"; filepath.Base(archive) != want {
		t.Errorf("the package is %s, want %s", filepath.Base(archive), want)
	}
	packed, err := loader.Load(archive)
	if err != nil {
		t.Fatal(err)
	}
	checkLinked(t, packed)
	everything := valueSets(t)["everything"].values
	got, err := render(packed, release, namespace, everything)
	if err != nil {
		t.Fatal(err)
	}
	want, err := render(c, release, namespace, everything)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Error("the package gives other objects than the folder")
	}
	// A release is kept in a Secret, which holds a megabyte.
	if info, err := os.Stat(archive); err != nil || info.Size() > 256<<10 {
		t.Errorf("the package has %d bytes (%v)", info.Size(), err)
	}
}

// TestSubchart holds that a parent chart can switch it on and off, with what Helm
// adds to the values of a subchart.
func TestSubchart(t *testing.T) {
	for _, enabled := range []bool{true, false} {
		c := loadChart(t)
		parent := &chart.Chart{Metadata: &chart.Metadata{
			APIVersion: chart.APIVersionV2, Name: "parent", Version: "1.0.0",
			Dependencies: []*chart.Dependency{{Name: c.Name(), Version: c.Metadata.Version, Condition: c.Name() + ".enabled"}},
		}}
		parent.AddDependency(c)
		objects, err := render(parent, release, namespace, fmt.Sprintf("global: {imageRegistry: x}\ntimewait-exporter: {enabled: %t}", enabled))
		if err != nil {
			t.Fatal(err)
		}
		if (len(objects) > 0) != enabled {
			t.Errorf("enabled: %t gives %d objects", enabled, len(objects))
		}
	}
}

// TestLongNames holds that a long release name gives names which Kubernetes takes.
func TestLongNames(t *testing.T) {
	objects, err := render(loadChart(t), strings.Repeat("a", 53), namespace, valueSets(t)["everything"].values)
	if err != nil {
		t.Fatal(err)
	}
	c, err := decode(objects)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, object := range c {
		// Only a Service's name is bound to 63 characters.
		problems := validation.NameIsDNSSubdomain(object.GetName(), false)
		if kindOf(object) == "Service" {
			problems = validation.NameIsDNS1035Label(object.GetName(), false)
		}
		for _, problem := range problems {
			t.Errorf("%s %s: %s", kindOf(object), object.GetName(), problem)
		}
		names[kindOf(object)+object.GetName()] = true
	}
	if len(names) != len(c) {
		t.Errorf("%d objects have %d names", len(c), len(names))
	}
}

// jobPattern returns the pattern of job names in the alerts, as Prometheus
// matches it.
func jobPattern(t *testing.T) *regexp.Regexp {
	t.Helper()
	found := regexp.MustCompile(`up\{job=~"([^"]+)"\}`).FindStringSubmatch(readFile(t, "deploy/prometheus/timewait_exporter.alerts.yml"))
	if found == nil {
		t.Fatal("no alert selects a job")
	}
	return regexp.MustCompile("^(?:" + found[1] + ")$")
}

// readFile returns the text of a file of the repository.
func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(host.Checkout(t), path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// glob returns the paths of files of the repository.
func glob(t testing.TB, pattern string) []string {
	t.Helper()
	root := host.Checkout(t)
	found, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("%s: found nothing (%v)", pattern, err)
	}
	for i := range found {
		found[i], _ = filepath.Rel(root, found[i])
	}
	return found
}
