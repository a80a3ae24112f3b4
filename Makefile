# Everyday commands. `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help demo test chaos fuzz e2e soak check bench bench-code bench-hapi bench-polite bench-proxy image lint fmt

# What `sidecar version` says in an image: the nearest tag, else the commit.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
IMAGE ?= sidecar:$(VERSION)

# .ci/tools installs the linter once, at the version that CI uses, and prints where it is.
LINT = $$(bash .ci/tools golangci-lint)

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a sample FHIR server, the sidecar in front of it, one whole export
	go run ./cmd/sidecar demo

test: ## the tests that need nothing but Go
	go test ./...

chaos: ## 2,000 random exports beside random writes, on a virtual clock (CHAOS_SEED=n CHAOS_RUNS=1 repeats one)
	CHAOS_RUNS=$${CHAOS_RUNS:-2000} go test -count=1 -timeout 30m -run 'TestChaos|TestChain' ./exporter

fuzz: ## new inputs for what reads requests and answers, a minute each (FUZZTIME=10m for longer)
	for package in ./proxy ./proxy/auth ./proxy/upstream; do \
		for name in $$(go test -list '^Fuzz' $$package | grep ^Fuzz); do \
			go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $${FUZZTIME:-1m} $$package || exit 1; \
		done; \
	done

e2e: ## the built binary against HAPI FHIR, S3, GCS and identity servers (needs Java 17, Maven and npm)
	cd e2e && go test -count=1 -timeout 25m ./...

soak: ## mixed traffic against the sidecar built with the race detector, and while its server restarts (SOAK=10m for each; needs gcc)
	cd e2e && SOAK=$${SOAK:-10m} go test -count=1 -timeout 0 -v -tags soak -run '^TestSoak' .

check: ## exactly what CI runs: everything above and the linters, race tests, image build line, manifests
	bash .ci/run

bench: ## the figures of docs/performance.md, about ten minutes; BENCH_ROWS=n scales the largest (default 10000000)
	@bash bench/run

bench-code: ## the benchmarks that live with the code
	go test -run '^$$' -bench . ./...

bench-hapi: ## a system export beside plain paging with curl, on one HAPI in one run (needs Java 17, Maven and curl)
	cd e2e && E2E_FULL=1 go test -count=1 -timeout 25m -v -tags figures -run TestFigures .

bench-polite: ## what users of HAPI feel of an export, twelve to twenty minutes (POLITE_ROUNDS=n POLITE_SECONDS=n; needs Java 17, Maven and root, to go before the server)
	cd e2e && go test -count=1 -timeout 25m -v -tags figures -run TestPolite .

bench-proxy: ## the forwarder beside nginx, Caddy and a plain ReverseProxy (needs two processors, wrk, nginx; BENCH_CELLS=2k BENCH_ROUNDS=3)
	@bash bench/proxy/run

image: ## the container image, with the image builder at hand (IMAGE=name:tag, VERSION=...)
	@for builder in docker podman buildah; do \
		command -v $$builder >/dev/null 2>&1 || continue; \
		$$builder info >/dev/null 2>&1 || continue; \
		echo "$$builder build $(IMAGE)"; \
		exec $$builder build --build-arg VERSION=$(VERSION) -t $(IMAGE) .; \
	done; \
	echo "make image: no working docker, podman or buildah here; install and start one, or run: bash .ci/binary" >&2; \
	exit 1

lint: ## the linters over both modules
	@lint=$(LINT) && $$lint run --build-tags figures ./... && cd e2e && $$lint run -c ../.golangci.yml --build-tags figures,soak ./...

fmt: ## format both modules
	@lint=$(LINT) && $$lint fmt
