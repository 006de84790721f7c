# Everything that development needs is pinned here or in a go.mod of its own, and
# installed into .tools/bin.

TOOLS      := $(CURDIR)/.tools/bin
GOLANGCI   := $(TOOLS)/golangci-lint
GOLANGCI_VERSION := v2.15.0

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
BRANCH   ?= $(shell git rev-parse --abbrev-ref HEAD 2>/dev/null || echo unknown)
VERSION_PKG := github.com/prometheus/common/version
LDFLAGS  := -s -w -X $(VERSION_PKG).Version=$(VERSION) -X $(VERSION_PKG).Revision=$(REVISION) -X $(VERSION_PKG).Branch=$(BRANCH)

# Modules beside the product's.
MODULES := test/bench

.PHONY: all build test lint fuzz bench docs clean

all: lint test build

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o timewait_exporter ./cmd/timewait_exporter

# The tests on the real kernel make network namespaces of their own; as an ordinary
# user they need user namespaces.
test:
	go vet ./...
	go test ./...
	@set -e; for m in $(MODULES); do echo "go -C $$m test ./..."; go -C $$m vet ./...; go -C $$m test ./...; done

lint: $(GOLANGCI)
	$(GOLANGCI) run ./...
	@set -e; for m in $(MODULES); do echo "golangci-lint run in $$m"; (cd $$m && $(GOLANGCI) run --config $(CURDIR)/.golangci.yml ./...); done

$(GOLANGCI):
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

FUZZTIME ?= 1m
fuzz:
	go test -run '^$$' -fuzz '^FuzzTable$$' -fuzztime $(FUZZTIME) ./collector/tcptable

# Go benchmarks, then real sockets in private network namespaces beside other readers.
bench:
	go test -run '^$$' -bench . -benchmem ./collector/...
	go -C test/bench run .

# docs/metrics.md from the code.
docs:
	go test -run '^TestMetricsDoc$$' ./collector -update

clean:
	rm -rf timewait_exporter .tools
