# `make` lists the targets. The tools live in tools/go.mod, so that the product's
# own go.mod stays small; they are built when first used.

SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

GO      ?= go
TOOL     = $(GO) tool -modfile=tools/go.mod
POSTERN  = bin/postern
VERSION ?=

FUZZTIME ?= 60s
ROUNDS   ?= 20
FLOWS    ?= 100000000
SEED     ?= $(shell date +%s)
BENCH    ?= .
COUNT    ?= 6
PKG      ?= ./...

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

.PHONY: check-go
check-go:
	@command -v $(GO) >/dev/null || { echo "Go is not installed; version 1.26 or later is needed: https://go.dev/doc/install" >&2; exit 1; }
	@$(GO) version | awk '{ sub("go", "", $$3); split($$3, v, "."); exit !(v[1] > 1 || v[2] >= 26) }' || \
		{ echo "$$($(GO) version) is too old; version 1.26 or later is needed: https://go.dev/doc/install" >&2; exit 1; }

.PHONY: build
build: check-go ## build bin/postern
	$(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o $(POSTERN) ./cmd/postern

.PHONY: engine
engine: build ## fetch the embedded ClickHouse engine into the cache (178 MB, once)
	$(POSTERN) engine fetch

.PHONY: kafka
kafka: ## fetch Apache Kafka for the tests (44 MB, once)
	@test/kafka/broker fetch

.PHONY: kubernetes
kubernetes: check-go ## build a Kubernetes API server, etcd and helm for the tests (minutes, once)
	@test/kubernetes/apiserver build

.PHONY: deploy-tools
deploy-tools: check-go ## build the other tools that check deploy/ (a minute, once)
	@test/deploy/tools build

.PHONY: demo
demo: engine ## see it all work on this machine; Ctrl-C ends it
	$(POSTERN) demo

.PHONY: test
test: check-go ## vet, lint and run every test; installs and fetches what they need
	@test/run

.PHONY: race
race: check-go ## run the tests under the race detector
	$(GO) test -race -timeout 40m $(PKG)

.PHONY: chaos
chaos: check-go kafka ## let things happen to every role while flows are sent, for ROUNDS (20); SEED repeats; ends with a verdict
	@mkdir -p .cache
	@set -o pipefail; POSTERN_ROUNDS=$(ROUNDS) POSTERN_SEED=$(SEED) \
		$(GO) test -run '^TestChaos$$' -count=1 -v -timeout 4h ./test | tee .cache/chaos.log; \
	status=$$?; grep -o 'chaos: [0-9]* rounds, .*' .cache/chaos.log || echo "chaos: no verdict: FAIL"; exit $$status

.PHONY: bench
bench: check-go ## benchmark every stage and the whole chain beside goflow2; OLD=file compares
	@mkdir -p .cache
	$(GO) test -run '^$$' -bench '$(BENCH)' -skip Estate -benchmem -benchtime 0.3s -count=$(COUNT) -timeout 30m ./policy ./ingest/... ./enrich ./detect ./sink | tee .cache/bench.txt
	$(GO) test -run '^$$' -bench 'Chain|Stages|Receive|Peer' -benchtime 5x -count=$(COUNT) -timeout 30m ./cmd/postern | tee -a .cache/bench.txt
	$(GO) test -run '^$$' -bench Estate -benchtime 40x -timeout 30m ./detect | tee -a .cache/bench.txt
	$(TOOL) benchstat $(OLD) .cache/bench.txt

.PHONY: month
month: check-go ## store a month of FLOWS (100 million), roll them up and open every panel of the dashboards over it (docs/performance.md)
	POSTERN_MONTH_FLOWS=$(FLOWS) $(GO) test -run '^$$' -bench Month -benchtime 1x -timeout 3h ./dashboards

.PHONY: eval
eval: check-go ## measure what detection finds and how often it is wrong (docs/evaluation.md); DATA=DIR scores another folder, FULL=1 everything
	@DATA='$(DATA)' FULL='$(FULL)' $(GO) run ./test/eval $(ARGS)

.PHONY: fuzz
fuzz: check-go ## run every fuzz target for FUZZTIME (60s)
	@set -e; grep -rnoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sort | while IFS=: read -r file _ target; do \
		target=$${target#func }; echo "== $$(dirname $$file) $$target"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10s "$$(dirname $$file)" </dev/null; \
	done

.PHONY: lint
lint: check-go ## go vet, golangci-lint (.golangci.yml says what and why), gofmt
	$(GO) vet ./...
	$(TOOL) golangci-lint run ./...
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "gofmt would change:"; echo "$$out"; exit 1; }

.PHONY: docs
docs: check-go ## write the reference pages anew from the code
	$(GO) test ./cmd/postern -run '^(TestReferencePages|TestDemoExamples)$$' -count=1 -update
	$(GO) test ./sink/siem -run '^TestFindingSchema$$' -count=1 -update
	$(GO) generate ./sink ./dashboards

.PHONY: clean
clean: ## remove what was built; data and the engine cache stay
	rm -rf bin .cache
