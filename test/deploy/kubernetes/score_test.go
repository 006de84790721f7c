package kubernetes

import (
	"strings"
	"testing"

	"github.com/zegl/kube-score/config"
	"github.com/zegl/kube-score/domain"
	"github.com/zegl/kube-score/parser"
	"github.com/zegl/kube-score/score"
	"github.com/zegl/kube-score/score/checks"
	"github.com/zegl/kube-score/scorecard"
)

// exceptions are the checks of kube-score that the chart does not follow, and why.
var exceptions = map[string]string{
	"container-image-pull-policy":                   "a release's tag does not change, and a node must start its exporter while the registry is away",
	"container-ephemeral-storage-request-and-limit": "it writes nothing but its log, which the kubelet rotates",
	"pod-networkpolicy":                             "most network plugins ignore policies for pods of the host's network; networkPolicy.enabled adds one",
}

// TestScore is kube-score. No limit of CPU is asked for: values.yaml says why
// there is none.
func TestScore(t *testing.T) {
	used := map[string]bool{}
	for name, set := range valueSets(t) {
		if name == "bare" {
			continue // resources are among that
		}
		t.Run(name, func(t *testing.T) {
			objects, err := render(loadChart(t), release, namespace, set.values)
			if err != nil {
				t.Fatal(err)
			}
			for _, result := range kubeScore(t, objects) {
				for _, check := range result.Checks {
					if check.Skipped || check.Grade > scorecard.GradeWarning {
						continue
					}
					used[check.Check.ID] = true
					if exceptions[check.Check.ID] == "" {
						t.Errorf("%s: %s: %v", result.HumanFriendlyRef(), check.Check.ID, check.Comments)
					}
				}
			}
		})
	}
	for id := range exceptions {
		if !used[id] {
			t.Errorf("nothing needs the exception %s any more", id)
		}
	}
}

// kubeScore checks objects, with the seccomp profile, which is optional.
func kubeScore(t *testing.T, objects []string) scorecard.Scorecard {
	t.Helper()
	p, err := parser.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	all, err := p.ParseFiles([]domain.NamedReader{manifest{strings.NewReader(strings.Join(objects, "\n---\n"))}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := &config.RunConfiguration{
		IgnoreContainerCpuLimitRequirement: true,
		EnabledOptionalTests:               map[string]struct{}{"container-seccomp-profile": {}, "container-ports-check": {}},
		KubernetesVersion:                  config.Semver{Major: 1, Minor: 33},
	}
	card, err := score.Score(all, score.RegisterAllChecks(all, &checks.Config{}, cfg), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return *card
}

// manifest is a file for kube-score.
type manifest struct{ *strings.Reader }

func (manifest) Name() string { return "chart" }
