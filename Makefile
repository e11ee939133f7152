# tallywire: `make help` lists what there is.

SHELL := /bin/bash
GO ?= go
BIN := bin/tallywire
KAFKA ?= embedded
REDIS ?= embedded
ARGS ?=
BENCH_RUNS ?= 5
PEERS_ARGS ?=

# Go's caches then serve clones in other folders too.
export GOFLAGS := $(GOFLAGS) $(if $(findstring -trimpath,$(GOFLAGS)),,-trimpath)
# One heavy thing at a time on a machine, whichever checkout it belongs to.
ALONE := deploy/alone.sh
CI := $(GO) run ./internal/ci

.PHONY: help build demo needs check test race lint fuzz mutants full steady fresh land chaos applications bench bench-drain bench-lookups bench-peers profile profile-whole docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

build: ## build bin/tallywire
	@mkdir -p bin
	$(GO) build -o $(BIN) ./cmd/tallywire

demo: build ## run the main job end to end; ARGS="--for 60s" checks itself; KAFKA=real REDIS=real
	@deploy/needs.sh demo KAFKA=$(KAFKA) REDIS=$(REDIS)
	$(ALONE) "make demo" $(BIN) demo --kafka $(KAFKA) --redis $(REDIS) $(ARGS)

needs: ## install what the tests need (Debian as root), or say what is missing
	@deploy/needs.sh test

check: ## for every commit, two minutes: build, vet, lint of what changed, tests without Java and without chaos
	@deploy/needs.sh check
	@$(ALONE) "make check" $(CI) check

test: needs ## all packages on real servers, and a slice of the crash tests (TEST=-all: all of them)
	@$(ALONE) "make test" $(CI) test $(TEST)

race: needs ## the unit tests under the race detector
	@$(ALONE) "make race" $(CI) race

lint: ## gofumpt, go vet, golangci-lint
	deploy/lint.sh

fuzz: ## each fuzz target for 10 s (FUZZ="-time 1m")
	@$(ALONE) "make fuzz" $(CI) fuzz $(FUZZ)

mutants: needs ## take each guarantee out and require its test to go red (NAME=… runs one)
	@$(ALONE) "make mutants" $(GO) run ./internal/mutants $(MUTANTS) $(NAME)

full: needs ## everything, in parts that are recorded with the tree (FULL=-list; FULL='mutants "crash over TLS"' runs those)
	@$(ALONE) "make full" $(CI) full $(FULL)

steady: needs ## each package again and again beside two busy loops, with a tally (STEADY="-rounds 10 -for 1h ./pipeline"; STEADY=-show)
	@$(ALONE) "make steady" $(CI) steady $(STEADY)

fresh: needs ## make test with every cache of ours empty, as on a new machine
	@$(ALONE) "make fresh" deploy/new-machine.sh

land: ## merge this branch into main, once .ci/run is green on the merge in a fresh clone (MESSAGE="…")
	@$(ALONE) "make land" deploy/land.sh

chaos: needs ## the long form of the crash tests
	CHAOS_KILLS=30 $(ALONE) "make chaos" $(GO) test -timeout 60m -count=1 -v ./internal/chaos

applications: ## fill contracts from two real applications, Redmine and Tryton, each installed once in a Debian root in the user's cache
	@deploy/needs.sh applications
	TALLYWIRE_APPLICATIONS=1 $(ALONE) "make applications" $(GO) test -count=1 -v -timeout 60m ./internal/applications

bench: ## the hot path beside its oracle, in seconds, without servers; compares with the recorded ratios (RECORD=1 records)
	$(ALONE) "make bench" $(GO) run ./benchmarks/hotpath $(if $(RECORD),-record)

bench-drain: ## the drain of a backlog to the warehouse (BENCH_RUNS=5); writes its section of benchmarks/RESULTS.md
	@deploy/needs.sh demo KAFKA=real REDIS=real
	$(ALONE) "make bench-drain" $(GO) run ./benchmarks/drain -runs $(BENCH_RUNS) -out benchmarks/RESULTS.md -command "make bench-drain"

bench-lookups: ## a mapping's lookups beside Kafka Streams, in one run (LOOKUPS_ARGS="-help" tells more)
	@deploy/needs.sh lookups
	$(ALONE) "make bench-lookups" $(GO) run ./benchmarks/lookups -out benchmarks/RESULTS.md -command "make bench-lookups" $(LOOKUPS_ARGS)

bench-peers: bench-lookups ## capture beside Debezium and pg_recvlogical, the same backlogs in one run (PEERS_ARGS="-help" tells more)
	@deploy/needs.sh peers
	$(ALONE) "make bench-peers" $(GO) run ./benchmarks/peers -command "make bench-peers" $(PEERS_ARGS)

profile: ## profiles of the hot path as text, in benchmarks/profiles: nanoseconds, and instructions where valgrind is
	$(ALONE) "make profile" deploy/profile.sh

profile-whole: ## the same of the whole process on backlog A (STATE=folder keeps the backlog)
	STATE=$(STATE) $(ALONE) "make profile-whole" deploy/profile.sh whole

docs: ## generated references
	$(GO) run ./cmd/tallywire docs

clean: ## remove what was built and the demo's state
	rm -rf bin .tallywire .tallywire-ci
