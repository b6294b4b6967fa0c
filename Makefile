# `make` alone lists what one can do.
SHELL := /bin/bash
export BASALT_ROOT := $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help build test test-rust

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

build: ## build bin/basalt
	tools/rocksdb-static
	. tools/env && cargo build --release --workspace

test: test-rust ## run all tests

test-rust: ## run the Rust tests
	tools/rocksdb-static
	. tools/env && cargo test --workspace
