# Everything that development needs is pinned here or in a go.mod of its own, and
# installed into .tools/bin.

TOOLS := $(CURDIR)/.tools/bin

GOLANGCI         := $(TOOLS)/golangci-lint
GOLANGCI_VERSION := v2.15.0
NFPM             := $(TOOLS)/nfpm
CYCLONEDX        := $(TOOLS)/cyclonedx-gomod
AXE              := .tools/axe/node_modules/axe-core/axe.min.js

# A semantic version: 1.2.3 at its tag, 1.2.3+5.gHASH five commits later, and before the
# first tag 0.0.0-TIME.gHASH.
VERSION  ?= $(or $(shell git describe --tags --match 'v[0-9]*' --long --abbrev=12 --dirty=.dirty 2>/dev/null | \
		sed -E 's/^v//; s/-0-g[0-9a-f]+$$//; s/-([0-9]+)-g/+\1.g/'), \
	0.0.0-$(shell TZ=UTC git show -s --date=format-local:%Y%m%d%H%M%S --format=%cd 2>/dev/null || echo 0).g$(shell \
		git describe --always --exclude='*' --abbrev=12 --dirty=.dirty 2>/dev/null))
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
BRANCH   ?= $(shell git rev-parse --abbrev-ref HEAD 2>/dev/null || echo unknown)
VERSION_PKG := github.com/prometheus/common/version
LDFLAGS   = -s -w -X $(VERSION_PKG).Version=$(VERSION) -X $(VERSION_PKG).Revision=$(REVISION) -X $(VERSION_PKG).Branch=$(BRANCH)
GO_BUILD  = CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'

# What a release is built for, as Go calls it, and what its tarballs hold beside program
# and license.
ARCHS     ?= amd64 arm64 386 riscv64 s390x
DOCUMENTS := README.md CHANGELOG.md $(wildcard deploy/systemd/* deploy/prometheus/timewait_exporter.*.yml dashboards/*.json)

# The test of prometheus.kubernetes.yml needs the Kubernetes discovery.
PROMETHEUS_TAGS := remove_all_sd,enable_kubernetes_sd
RULES           := $(wildcard deploy/prometheus/timewait_exporter.*.yml)
RULE_TESTS      := $(wildcard deploy/prometheus/tests/*.yml)

.PHONY: all build test lint fuzz tools browser-test e2e e2e-tools rules deploy-test dashboards docs chart bench soak fleet release clean

all: lint test build

build:
	$(GO_BUILD) -o timewait_exporter ./cmd/timewait_exporter

# A release in dist: for each architecture a tarball, a deb and an rpm; the modules in them
# (CycloneDX); checksums. The same commit and Go give the same bytes in any directory.
release: BRANCH := HEAD
release: export SOURCE_DATE_EPOCH ?= $(shell git show -s --format=%ct 2>/dev/null || echo 0)
release: build $(NFPM) $(CYCLONEDX)
	rm -rf dist
	mkdir -p dist/build
	deploy/packages/generate ./timewait_exporter '$(VERSION)' dist/build
	@set -e; for arch in $(ARCHS); do \
		top=timewait_exporter-$(VERSION).linux-$$arch; \
		echo "== $$top"; \
		mkdir dist/build/$$top; \
		GOOS=linux GOARCH=$$arch $(GO_BUILD) -o dist/build/$$top/timewait_exporter ./cmd/timewait_exporter; \
		cp --parents $(DOCUMENTS) dist/build/$$top; \
		cp dist/build/LICENSE dist/build/$$top; \
		tar -C dist/build -I 'gzip -9n' --format=ustar --sort=name --mtime=@$$SOURCE_DATE_EPOCH \
			--owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX -cf dist/$$top.tar.gz $$top; \
		for packager in deb rpm; do \
			VERSION=$(VERSION) ARCH=$$arch $(NFPM) package --config deploy/packages/nfpm.yaml --packager $$packager --target dist; \
		done; \
	done
	$(CYCLONEDX) bin -json -std -short-purls -noserial -notimestamp -version v$(VERSION) \
		-output dist/timewait_exporter-$(VERSION).cdx.json dist/build/timewait_exporter-$(VERSION).linux-$(firstword $(ARCHS))/timewait_exporter
	cd dist && export LC_ALL=C && sha256sum -- *.tar.gz *.deb *.rpm *.json >sha256sums.txt

# The SBOM has a hash of the program that writes it, so that has to be the same everywhere too.
$(NFPM) $(CYCLONEDX) &: test/deploy/tools/go.mod
	CGO_ENABLED=0 go -C $(<D) build -trimpath -buildvcs=false -o $(TOOLS)/ \
		github.com/goreleaser/nfpm/v2/cmd/nfpm github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod

# The second line's tests run programs that Go's test cache knows nothing of. Those on
# the real kernel make network namespaces of their own; as an ordinary user they need
# user namespaces.
test:
	go test $(TESTFLAGS) -timeout 15m ./...
	go -C test test $(TESTFLAGS) -count=1 -skip '^TestQueries$$' ./kernel ./cli ./bench ./fleet ./dashboards/... ./e2e/rules ./e2e/contract

lint: $(GOLANGCI)
	@set -e; for m in . test test/deploy/kubernetes; do \
		echo "== golangci-lint $$m"; (cd $$m && $(GOLANGCI) run --config $(CURDIR)/.golangci.yml ./...); done

$(GOLANGCI):
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

FUZZTIME ?= 1m
fuzz:
	@set -e; for f in FuzzParseRow FuzzTable FuzzReply; do \
		go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./collector/tcptable; done
	go test -run '^$$' -fuzz '^FuzzText$$' -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./capture
	go test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./collector/owner

# The rules of accessibility that the page is held to.
$(AXE): test/browser/package.json test/browser/package-lock.json
	mkdir -p .tools/axe
	cp $^ .tools/axe
	cd .tools/axe && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

# The report's page in a real browser, Debian's chromium.
browser-test: $(AXE)
	go -C test test $(TESTFLAGS) -count=1 -timeout 10m ./browser

tools: $(GOLANGCI) $(NFPM) $(CYCLONEDX) $(AXE) e2e-tools

# pint is built of Prometheus's code. Alertmanager can't be in one module with it; that
# has the same versions of what both need, so that it is compiled once.
e2e-tools:
	go -C test/e2e/tools/prometheus build -tags $(PROMETHEUS_TAGS) -o $(TOOLS)/ \
		github.com/prometheus/prometheus/cmd/prometheus github.com/prometheus/prometheus/cmd/promtool \
		github.com/cloudflare/pint/cmd/pint
	go -C test/e2e/tools/alertmanager build -o $(TOOLS)/ \
		github.com/prometheus/alertmanager/cmd/alertmanager github.com/prometheus/alertmanager/cmd/amtool

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
	go -C test test -v -count=1 -timeout 6m ./e2e
	PATH="$(TOOLS):$$PATH" go -C test test -v -count=1 -timeout 10m -run TestQueries ./dashboards

# Units, packages, image, chart, compose file and release: built, installed, started and
# removed. Most of it needs root.
deploy-test: $(NFPM) $(CYCLONEDX)
	go -C test test -v -count=1 -timeout 15m ./deploy/...
	go -C test/deploy/kubernetes test -v -count=1 -vet=off .

# The dashboards' JSON from their Go code and the alerts' thresholds.
dashboards:
	go -C test run ./dashboards/generator

# Go benchmarks, then real sockets in private network namespaces beside other readers.
bench:
	go test -run '^$$' -bench . -benchmem ./collector/...
	go -C test run ./bench

# The tables of docs/metrics.md and docs/flags.md and the findings of docs/report.md from the code.
docs:
	go test -run '^TestMetricsDoc$$' ./collector -update
	go test -run '^TestFlagsDoc$$' ./cmd/timewait_exporter -update
	go test -run '^TestReportDoc$$' ./diagnosis -update

# The Helm chart's links to rules and dashboards, and the plain manifests it renders.
chart:
	rm -f deploy/helm/timewait-exporter/files/*
	ln -sr deploy/prometheus/timewait_exporter.*.yml dashboards/*.json deploy/helm/timewait-exporter/files/
	go -C test/deploy/kubernetes test -vet=off -count=1 -run '^TestManifests$$' . -update

# Network namespaces that come and go, twenty a second, under scrapes: no error, and no files
# or memory that stay.
SOAK ?= 10m
soak:
	SOAK=$(SOAK) go -C test test -v -count=1 -timeout 1h -run '^TestNamespacesSoak$$' ./kernel

# What 1,000 simulated hosts cost a Prometheus.
fleet: e2e-tools
	go -C test test ./fleet -run '^$$' -bench . -benchtime 1x -timeout 1h -hosts 1000

clean:
	rm -rf timewait_exporter dist .tools
