# Every target is a few lines here or a script in tools/. `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory --no-builtin-rules

# Images that `make images` builds, in this order: recipes of images/.
IMAGES ?= base incus-node lxd-node debian-12
# Seconds that `make fuzz` gives each target.
FUZZ_SECONDS ?= 30
CARGO ?= cargo

STEAD := build/stead
# For tools/build.sh: --tests builds the test runner, too.
BUILD_FLAGS ?=

# Built by `make build BUILD_FLAGS=--tests`.
XTASK := $(or $(CARGO_TARGET_DIR),target)/$(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')/release/xtask

.PHONY: help deps deps-dry build images demo demo-down test test-fast test-placement faults bench fuzz lint deny man completions clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install the Debian packages of tools/debian-packages.txt (root); DRY=1 only prints
	@tools/deps.sh $(if $(DRY),--dry)

deps-dry: ## print what `make deps` would install
	@tools/deps.sh --dry

build: ## build/stead and build/stead-node, both static
	@tools/build.sh $(BUILD_FLAGS)

images: build ## the images of images/*.yaml, into the store (root)
	@for image in $(IMAGES); do echo "images: $$image"; $(STEAD) image build "images/$$image.yaml"; done

demo: deps ## a three-node Incus cluster with two containers, from nothing (root)
	@tools/demo.sh

demo-down: ## take the demo's cluster down and check that nothing is left (root)
	@tools/demo-down.sh

test: ## everything: packages, lint, build, images, all tests, real engines too (root)
	@tools/test.sh

test-fast: ## unit tests and golden files: no root, no engines
	@$(CARGO) test --locked --workspace --lib --bins
	@$(CARGO) test --locked -p stead-model -p xtask

test-placement: ## the placement scriptlet in an interpreter of its language (two minutes to build)
	@$(CARGO) test --locked --manifest-path scriptlet/Cargo.toml

faults: BUILD_FLAGS := --tests
faults: build ## the tests that inject faults into real engines, with many more of them (root; takes minutes)
	@STEAD_TEST_FAULTS=1 $(XTASK) test --profile release --out build/faults stead-node::it::engine:: stead::it::kill:: stead::it::fleet::

bench: BUILD_FLAGS := --tests
bench: $(if $(filter ci placement,$(ONLY)),,deps) build ## the table of docs/bench.md, and target/bench.json (root); ONLY=name for one row
	@$(XTASK) bench $(if $(ONLY),--only $(ONLY))

fuzz: ## each fuzz target for FUZZ_SECONDS (30) seconds, on nightly
	@tools/fuzz.sh $(FUZZ_SECONDS)

lint: ## cargo fmt --check, clippy without warnings, bash -n
	@tools/lint.sh

deny: ## licences, sources and banned crates, by cargo-deny
	@tools/deny.sh

man: build ## man pages, into build/man
	@$(STEAD) man build/man && echo "man: build/man"

completions: build ## shell completions, into build/completions
	@mkdir -p build/completions
	@for shell in bash zsh fish; do $(STEAD) completions $$shell >build/completions/stead.$$shell; done
	@echo "completions: build/completions"

clean: ## remove build/ and target/ (images and clusters stay: `stead down`, `stead image rm`)
	rm -rf build target fuzz/target
