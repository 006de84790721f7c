# Everything that development needs is pinned here or in a go.mod of its own, and
# installed into .tools/bin.

TOOLS := $(CURDIR)/.tools/bin

GOLANGCI         := $(TOOLS)/golangci-lint
GOLANGCI_VERSION := v2.15.0

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
BRANCH   ?= $(shell git rev-parse --abbrev-ref HEAD 2>/dev/null || echo unknown)
VERSION_PKG := github.com/prometheus/common/version
LDFLAGS  := -s -w -X $(VERSION_PKG).Version=$(VERSION) -X $(VERSION_PKG).Revision=$(REVISION) -X $(VERSION_PKG).Branch=$(BRANCH)

# Modules beside the product's, whose tests need no servers.
MODULES := test/bench dashboards/generator

# The test of prometheus.kubernetes.yml needs the Kubernetes discovery.
PROMETHEUS_TAGS := remove_all_sd,enable_kubernetes_sd
RULES           := $(wildcard deploy/prometheus/timewait_exporter.*.yml)
RULE_TESTS      := $(wildcard deploy/prometheus/tests/*.yml)

.PHONY: all build test lint fuzz e2e e2e-tools rules dashboards pictures bench docs clean

all: lint test build

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o timewait_exporter ./cmd/timewait_exporter

# The tests on the real kernel make network namespaces of their own; as an ordinary
# user they need user namespaces.
test:
	go vet ./...
	go test $(TESTFLAGS) -timeout 15m ./...
	@set -e; for m in $(MODULES); do echo "== $$m"; go -C $$m vet ./...; go -C $$m test $(TESTFLAGS) ./...; done
	go -C test/e2e vet ./...
	go -C test/e2e test $(TESTFLAGS) ./rules ./contract
	go -C test/dashboards vet ./...
	go -C test/dashboards test $(TESTFLAGS) -skip 'TestQueries|TestPictures' ./...

lint: $(GOLANGCI)
	@set -e; for m in . $(MODULES) test/e2e test/dashboards; do \
		echo "== golangci-lint $$m"; (cd $$m && $(GOLANGCI) run --config $(CURDIR)/.golangci.yml ./...); done

$(GOLANGCI):
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

FUZZTIME ?= 1m
fuzz:
	@set -e; for f in FuzzParseRow FuzzTable FuzzReply; do \
		go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./collector/tcptable; done

# Prometheus, Alertmanager and pint, each from a module of its own.
e2e-tools:
	go -C test/e2e/tools/prometheus build -tags $(PROMETHEUS_TAGS) -o $(TOOLS)/ \
		github.com/prometheus/prometheus/cmd/prometheus github.com/prometheus/prometheus/cmd/promtool
	go -C test/e2e/tools/alertmanager build -o $(TOOLS)/ \
		github.com/prometheus/alertmanager/cmd/alertmanager github.com/prometheus/alertmanager/cmd/amtool
	go -C test/e2e/tools/pint build -o $(TOOLS)/ github.com/cloudflare/pint/cmd/pint

# Rules and configurations with the newest promtool and, where it is installed, that
# of the oldest Prometheus they are for.
rules: e2e-tools
	@set -e; for promtool in $(TOOLS)/promtool $$(command -v promtool || true); do \
		echo "== $$($$promtool --version 2>&1 | head -n 1)"; \
		$$promtool check rules $(RULES); \
		$$promtool test rules $(RULE_TESTS); \
		$$promtool check config deploy/prometheus/prometheus.yml deploy/prometheus/prometheus.file_sd.yml; \
	done
	$(TOOLS)/promtool check config deploy/prometheus/prometheus.kubernetes.yml
	$(TOOLS)/pint --offline --config deploy/prometheus/pint.hcl lint $(RULES)
	$(TOOLS)/amtool check-config deploy/alertmanager/alertmanager.yml

# The whole chain on real programs: a client runs out of ports, Prometheus sees it,
# Alertmanager tells a webhook. Then each query of the dashboards under real load.
e2e: rules
	go -C test/e2e test -v -count=1 -timeout 6m .
	PATH="$(TOOLS):$$PATH" go -C test/dashboards test -v -count=1 -timeout 10m -run TestQueries ./...

# The dashboards' JSON from their Go code and the alerts' thresholds.
dashboards:
	go -C dashboards/generator run .

# Pictures of the dashboards, drawn from a real Prometheus's answers.
pictures:
	go -C test/dashboards test -count=1 -timeout 10m -run TestPictures . -args -pictures $(CURDIR)/dashboards

# Go benchmarks, then real sockets in private network namespaces beside other readers.
bench:
	go test -run '^$$' -bench . -benchmem ./collector/...
	go -C test/bench run .

# docs/metrics.md from the code.
docs:
	go test -run '^TestMetricsDoc$$' ./collector -update

clean:
	rm -rf timewait_exporter .tools
