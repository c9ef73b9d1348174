# Every target says what it does. Longer ones live in scripts beside their subject.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X caponier/shared/daemon.Version=$(VERSION)
GOBUILD := CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)'
FUZZTIME ?= 30s

.PHONY: help setup run stop build console api screenshots build-all check test e2e bench fuzz images clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: ## install what run and test need (idempotent)
	@sh deploy/dev/setup.sh

run: setup build ## bring the whole product up with a demo VPC; builds the browser's image once
	@sh deploy/demo/demo.sh up

stop: ## remove everything `make run` made
	@sh deploy/demo/demo.sh down

build: ## static binaries for this machine into bin/
	@echo "build: static binaries, version $(VERSION) -> bin/"
	@mkdir -p bin
	@sh deploy/dev/console.sh
	@$(GOBUILD) -o bin/caponier-core ./core
	@$(GOBUILD) -o bin/caponier-extender ./extender
	@$(GOBUILD) -o bin/caponier-router ./router
	@$(GOBUILD) -o bin/caponier-carrier ./carrier
	@$(GOBUILD) -o bin/caponier-webproxy ./webproxy
	@$(GOBUILD) -o bin/caponier ./core/cmd/caponier

console: ## only the web console, into core/internal/webui/dist (needs Node)
	@sh deploy/dev/console.sh

api: ## the console's client from core's OpenAPI document (needs Node)
	@sh deploy/dev/console.sh modules
	@go test ./core/internal/server -run '^TestConsoleClientIsFresh$$' -count=1 -args -openapi "$(CURDIR)/core/internal/webui/node_modules/.openapi.json" >/dev/null
	@cd core/internal/webui && npm run --silent api
	@echo "api: core/internal/webui/src/api/schema.d.ts"

build-all: ## static binaries for linux amd64 and arm64 into bin/<arch>/
	@sh deploy/dev/console.sh
	@for arch in amd64 arm64; do \
		echo "build-all: linux/$$arch, version $(VERSION) -> bin/$$arch/"; mkdir -p bin/$$arch; \
		for b in caponier-core:./core caponier-extender:./extender caponier-router:./router caponier-carrier:./carrier caponier-webproxy:./webproxy caponier:./core/cmd/caponier; do \
			GOOS=linux GOARCH=$$arch $(GOBUILD) -trimpath -o bin/$$arch/$${b%%:*} $${b##*:} || exit 1; \
		done; \
	done

check: ## formatting, vet, fix, staticcheck, layout, unit tests (some 4 minutes on two idle cores)
	@sh deploy/dev/check.sh

test: setup ## everything: unit tests with the race detector on both databases, then end to end
	@sh deploy/dev/test.sh

e2e: setup build ## only the end-to-end tests
	@echo "e2e: real binaries in network namespaces"
	@go test -count=1 -timeout 40m ./e2e/...

screenshots: setup build ## every page of the console, light and dark, wide and phone, into var/screenshots
	@echo "screenshots: var/screenshots"
	@mkdir -p var/screenshots
	@CAPONIER_TEST_ALL=1 CAPONIER_TEST_BIN="$(CURDIR)/bin" CAPONIER_SCREENSHOTS="$(CURDIR)/var/screenshots" go test -count=1 -timeout 40m -run '^TestConsole|^TestWebViewer$$' ./e2e

bench: build ## tunnel and decision benchmarks, table with pass/short per row
	@sh deploy/dev/bench.sh

fuzz: ## every fuzz target for FUZZTIME (30s)
	@sh deploy/dev/fuzz.sh $(FUZZTIME)

images: ## the images that browser sessions run in (needs Docker and mmdebstrap); CAPONIER_IMAGES=firefox: one
	@CAPONIER_IMAGES="$${CAPONIER_IMAGES:-firefox chromium}" sh carrier/image/build.sh

clean: ## remove build output
	@echo "clean: removing bin/"
	@rm -rf bin
