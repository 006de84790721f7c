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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"

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
type cluster []object

type object interface {
	meta.Object
	runtime.Object
}

// kindOf returns "Service" for one.
func kindOf(o object) string { return o.GetObjectKind().GroupVersionKind().Kind }

// of returns the objects of one type.
func of[T object](c cluster) (all []T) {
	for _, o := range c {
		if o, ok := o.(T); ok {
			all = append(all, o)
		}
	}
	return all
}

// decode reads objects as strictly as the API server can: an unknown kind, an
// unknown or misspelt field and a field given twice are errors.
func decode(objects []string) (cluster, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{core.AddToScheme, apps.AddToScheme, networking.AddToScheme, monitoring.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var c cluster
	for _, text := range objects {
		o, _, err := decoder.Decode([]byte(text), nil, nil)
		if err != nil {
			return nil, fmt.Errorf("%w in\n%s", err, text)
		}
		c = append(c, o.(object))
	}
	return c, nil
}

// install renders the chart with a values file and decodes the result.
func install(t testing.TB, values string) cluster {
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
func (c cluster) pod(t testing.TB) (core.PodTemplateSpec, core.Container) {
	t.Helper()
	sets := of[*apps.DaemonSet](c)
	if len(sets) != 1 || len(sets[0].Spec.Template.Spec.Containers) != 1 {
		t.Fatalf("want one DaemonSet with one container, got %v", sets)
	}
	pod := sets[0].Spec.Template
	return pod, pod.Spec.Containers[0]
}
