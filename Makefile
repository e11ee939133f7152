# tallywire: `make help` lists what there is.

SHELL := /bin/bash
GO ?= go
BIN := bin/tallywire
KAFKA ?= embedded
REDIS ?= embedded
ARGS ?=
BENCH_RUNS ?= 5
PEERS_ARGS ?=

.PHONY: help build demo test race lint bench bench-drain bench-peers profile profile-whole mutants fuzz chaos docs needs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## build bin/tallywire
	@mkdir -p bin
	$(GO) build -o $(BIN) ./cmd/tallywire

demo: build ## run the main job end to end; ARGS="--for 60s" checks itself; KAFKA=real REDIS=real
	@deploy/needs.sh demo KAFKA=$(KAFKA) REDIS=$(REDIS)
	$(BIN) demo --kafka $(KAFKA) --redis $(REDIS) $(ARGS)

needs: ## install what the tests need (Debian as root), or say what is missing
	@deploy/needs.sh test

test: needs ## all tests, on real servers
	$(GO) vet ./...
	$(GO) test -timeout 19m -p 2 ./...

race: ## the unit tests under the race detector
	$(GO) test -race -short -timeout 19m -p 2 ./change/... ./avro/... ./pipeline/... ./transforms/... ./internal/config/... ./internal/secret/... ./internal/obs/...

lint: ## gofumpt, go vet, golangci-lint
	deploy/lint.sh

bench: ## the hot path beside its oracle, in seconds, without servers; compares with the recorded ratios (RECORD=1 records)
	$(GO) run ./benchmarks/hotpath $(if $(RECORD),-record)

bench-drain: ## the drain of a backlog to the warehouse (BENCH_RUNS=5); writes its section of benchmarks/RESULTS.md
	@deploy/needs.sh demo KAFKA=real REDIS=real
	$(GO) run ./benchmarks/drain -runs $(BENCH_RUNS) -out benchmarks/RESULTS.md -command "make bench-drain"

bench-peers: ## capture beside Debezium and pg_recvlogical, the same backlogs in one run (PEERS_ARGS="-help" tells more)
	@deploy/needs.sh peers
	$(GO) run ./benchmarks/peers -command "make bench-peers" $(PEERS_ARGS)

profile: ## profiles of the hot path as text, in benchmarks/profiles: nanoseconds, and instructions where valgrind is
	deploy/profile.sh

profile-whole: ## the same of the whole process on backlog A (STATE=folder keeps the backlog)
	STATE=$(STATE) deploy/profile.sh whole

mutants: needs ## apply each patch of testdata/mutants and require its test to go red
	deploy/mutants.sh

fuzz: ## each fuzz target for FUZZTIME (10s)
	deploy/fuzz.sh

chaos: needs ## the long form of the crash tests
	CHAOS_KILLS=30 $(GO) test -timeout 60m -count=1 -v -run Chaos ./internal/chaos/...

docs: ## generated references
	$(GO) run ./cmd/tallywire docs

clean: ## remove what was built and the demo's state
	rm -rf bin .tallywire
