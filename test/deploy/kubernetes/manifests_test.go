package kubernetes

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"timewait_exporter/test/deploy/host"
)

// go test -run TestManifests -update writes what the test compares with.
var update = flag.Bool("update", false, "write deploy/kubernetes/timewait-exporter.yaml anew")

const manifestsHead = `# The chart of deploy/helm with its default values, rendered by make chart. Change the chart, not this file.
`

// ofHelm are the labels that say an object belongs to a release of Helm.
var ofHelm = regexp.MustCompile(`(?m)^ +(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n`)

// TestManifests compares the plain manifests with the chart.
func TestManifests(t *testing.T) {
	const name = "timewait-exporter"
	objects, err := render(loadChart(t), name, name, "")
	if err != nil {
		t.Fatal(err)
	}
	want := manifestsHead + strings.Join(objects, "---\n")
	want = ofHelm.ReplaceAllString(want, "")
	const path = "deploy/kubernetes/timewait-exporter.yaml"
	if *update {
		if err := os.WriteFile(filepath.Join(host.Checkout(t), path), []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if readFile(t, path) != want {
		t.Errorf("%s is not what the chart gives; make chart writes it", path)
	}
}

// TestKustomization holds that kustomize finds all manifests, in a namespace that
// lets pods use the host's network, and can change the image.
func TestKustomization(t *testing.T) {
	var kustomization struct {
		APIVersion string   `json:"apiVersion"`
		Kind       string   `json:"kind"`
		Resources  []string `json:"resources"`
		Images     []struct {
			Name    string `json:"name"`
			NewName string `json:"newName"`
			NewTag  string `json:"newTag"`
		} `json:"images"`
	}
	if err := yaml.UnmarshalStrict([]byte(readFile(t, "deploy/kubernetes/kustomization.yaml")), &kustomization); err != nil {
		t.Fatal(err)
	}
	var files, objects []string
	for _, path := range glob(t, "deploy/kubernetes/*.yaml") {
		if name := filepath.Base(path); name != "kustomization.yaml" {
			files = append(files, name)
			objects = append(objects, strings.Split(readFile(t, path), "\n---\n")...)
		}
	}
	slices.Sort(kustomization.Resources)
	if !slices.Equal(kustomization.Resources, files) {
		t.Errorf("resources are %v, the folder has %v", kustomization.Resources, files)
	}
	c, err := decode(objects)
	if err != nil {
		t.Fatal(err)
	}
	_, container := c.pod(t)
	image := kustomization.Images[0]
	if container.Image != image.Name+":"+image.NewTag {
		t.Errorf("the image is %s, which %+v does not change", container.Image, image)
	}
	namespaces := of[*core.Namespace](c)
	if len(namespaces) != 1 || namespaces[0].Labels["pod-security.kubernetes.io/enforce"] != "privileged" {
		t.Fatalf("namespaces are %v", namespaces)
	}
	for _, object := range c {
		if ns := object.GetNamespace(); ns != "" && ns != namespaces[0].Name {
			t.Errorf("%s is in %s", object.GetName(), ns)
		}
	}
}
