# make help says what there is. Everything needs Go only; tools are built from tools/ at the versions pinned there.
.DEFAULT_GOAL := help
.PHONY: help build check generate test nats race fuzz bench accounting memory attacks crash cluster-faults failures restarts spread

FUZZTIME ?= 30s
BENCH ?= .

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build bin/runnel
	go build -o bin/runnel ./cmd/runnel

check: ## Everything CI does, exactly: each step with its name and time (.ci/run STEP... runs some)
	@.ci/run

generate: ## Write api/ anew from proto/
	go tool -modfile=tools/go.mod buf format -w proto
	go tool -modfile=tools/go.mod buf generate

test: ## Every test, about a minute
	go test ./...

nats: ## The tests of the server and the SDK with events on a NATS server, about two minutes
	@.ci/run nats

race: ## Every test under the race detector
	go test -race ./...

# Without a limit, minimising finds takes most of a short run.
fuzz: ## Search each fuzz target for FUZZTIME (30s) for inputs that break it
	@go test -list '^Fuzz' ./... | awk '/^Fuzz/ { t[++n] = $$1 } /^ok/ { for (i = 1; i <= n; i++) print $$2, t[i]; n = 0 }' | \
	while read -r package target; do \
		echo "go test -run='^$$' -fuzz=^$$target\$$ -fuzztime=$(FUZZTIME) $$package"; \
		go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=10x $$package || exit 1; \
	done

bench: ## Every benchmark, or those that match BENCH
	go test -run='^$$' -bench='$(BENCH)' -benchmem ./...

accounting: ## 1,000 followers of mixed speed for 5 minutes, twice: every event is accounted for
	RUNNEL_ACCOUNTING=5m RUNNEL_FOLLOWERS=1000 go test -count=1 -timeout=30m -v -run='^TestAccounting' ./e2e

memory: ## 5,000 followers that read nothing, and events of a megabyte
	RUNNEL_FOLLOWERS=5000 go test -count=1 -timeout=30m -v -run='^TestMemory' ./e2e

attacks: ## What hostile clients throw at a server, at full size, beside a bystander; minutes
	RUNNEL_ATTACKS=1 go test -count=1 -timeout=30m -v -run='^TestAttack' ./e2e

crash: ## The long fault tests: the server is killed over and over while clients publish and follow; minutes
	RUNNEL_CRASH=1 go test -count=1 -timeout=60m -v -run='^TestCrash' ./e2e/...
	RUNNEL_CRASH=1 go test -count=1 -timeout=60m ./internal/pebbleengine/...

cluster-faults: ## The engine on NATS while servers are killed and cut off from each other, over and over; minutes
	RUNNEL_CRASH=1 go test -count=1 -timeout=60m -v -run='^TestFaults|^TestLinearizable|^TestIsolation' ./internal/natsengine

failures: ## Kill the parts of a cluster on this machine one by one: nothing lost, nothing twice, and how long clients have waited
	RUNNEL_FAILURES=1 go test -count=1 -v -timeout=20m -run='^TestFailures$$' ./e2e

restarts: ## Ten restarts under 500 subscribers and 1,000 events/s: nothing lost, nothing twice, and the longest pause
	RUNNEL_RESTARTS=1 go test -count=1 -timeout=10m -v -run='^TestRollingRestart' ./e2e

spread: ## How 1,000 sessions spread over servers found in etcd, and over servers of different size
	cd discovery/etcdtest && RUNNEL_SPREAD=1000 go test -count=1 -timeout=10m -v -run='^TestSpread$$' .
	RUNNEL_SPREAD=1 go test -count=1 -timeout=10m -v -run='^TestWeighted$$' ./e2e
