// Package kubernetes tests the Helm chart of deploy/helm and the manifests of
// deploy/kubernetes, with Helm's own code and the types of the Kubernetes API.
package kubernetes

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"timewait_exporter/test/deploy/host"
)

const (
	release   = "demo"
	namespace = "watch"
)

// chartDir returns the folder of the chart.
func chartDir(t testing.TB) string {
	return filepath.Join(host.Checkout(t), "deploy/helm/timewait-exporter")
}

// loadChart returns the chart as helm reads it from its folder.
func loadChart(t testing.TB) *chart.Chart {
	t.Helper()
	c, err := loader.Load(chartDir(t))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// render does what helm template does: it returns the objects as YAML, in the
// order in which they are installed. values is the text of a values file.
func render(c *chart.Chart, release, namespace, values string) ([]string, error) {
	given, err := chartutil.ReadValues([]byte(values))
	if err != nil {
		return nil, err
	}
	if err := chartutil.ProcessDependenciesWithMerge(c, given); err != nil {
		return nil, err
	}
	options := chartutil.ReleaseOptions{Name: release, Namespace: namespace, IsInstall: true, Revision: 1}
	all, err := chartutil.ToRenderValues(c, given, options, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(files, func(name, _ string) bool { return path.Base(name) == "NOTES.txt" })
	_, manifests, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, err
	}
	var objects []string
	for _, m := range manifests {
		objects = append(objects, m.Content+"\n")
	}
	return objects, nil
}

// cluster is what a set of objects would put into a cluster.
type cluster struct {
	namespaces      []*core.Namespace
	accounts        []*core.ServiceAccount
	daemonSets      []*apps.DaemonSet
	services        []*core.Service
	configMaps      []*core.ConfigMap
	policies        []*networking.NetworkPolicy
	podMonitors     []*monitoring.PodMonitor
	serviceMonitors []*monitoring.ServiceMonitor
	rules           []*monitoring.PrometheusRule
	all             []meta.Object
	kinds           []string
}

// decode reads objects as strictly as the API server can: an unknown kind, an
// unknown or misspelt field and a field given twice are errors.
func decode(objects []string) (*cluster, error) {
	c := &cluster{}
	for _, text := range objects {
		var kind meta.TypeMeta
		if err := yaml.Unmarshal([]byte(text), &kind); err != nil {
			return nil, fmt.Errorf("%w in\n%s", err, text)
		}
		c.kinds = append(c.kinds, kind.Kind)
		var err error
		switch kind.APIVersion + " " + kind.Kind {
		case "v1 Namespace":
			err = add(c, &c.namespaces, text)
		case "v1 ServiceAccount":
			err = add(c, &c.accounts, text)
		case "apps/v1 DaemonSet":
			err = add(c, &c.daemonSets, text)
		case "v1 Service":
			err = add(c, &c.services, text)
		case "v1 ConfigMap":
			err = add(c, &c.configMaps, text)
		case "networking.k8s.io/v1 NetworkPolicy":
			err = add(c, &c.policies, text)
		case "monitoring.coreos.com/v1 PodMonitor":
			err = add(c, &c.podMonitors, text)
		case "monitoring.coreos.com/v1 ServiceMonitor":
			err = add(c, &c.serviceMonitors, text)
		case "monitoring.coreos.com/v1 PrometheusRule":
			err = add(c, &c.rules, text)
		default:
			err = fmt.Errorf("no type for %+v", kind)
		}
		if err != nil {
			return nil, fmt.Errorf("%w in\n%s", err, text)
		}
	}
	return c, nil
}

func add[T any, P interface {
	*T
	meta.Object
}](c *cluster, list *[]P, text string) error {
	object := P(new(T))
	if err := unmarshalStrict(text, object); err != nil {
		return err
	}
	*list = append(*list, object)
	c.all = append(c.all, object)
	return nil
}

// unmarshalStrict knows the case of fields, unlike yaml.UnmarshalStrict.
func unmarshalStrict(text string, into any) error {
	data, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return err
	}
	unknown, err := json.UnmarshalStrict(data, into)
	if err != nil {
		return err
	}
	if len(unknown) > 0 {
		return unknown[0]
	}
	return nil
}

// install renders the chart with a values file and decodes the result.
func install(t testing.TB, values string) *cluster {
	t.Helper()
	objects, err := render(loadChart(t), release, namespace, values)
	if err != nil {
		t.Fatal(err)
	}
	c, err := decode(objects)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// pod returns the only pod of the cluster and its only container.
func (c *cluster) pod(t testing.TB) (core.PodTemplateSpec, core.Container) {
	t.Helper()
	if len(c.daemonSets) != 1 || len(c.daemonSets[0].Spec.Template.Spec.Containers) != 1 {
		t.Fatalf("want one DaemonSet with one container, got %v", c.daemonSets)
	}
	pod := c.daemonSets[0].Spec.Template
	return pod, pod.Spec.Containers[0]
}
