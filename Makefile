# `make` alone lists what one can do.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export BASALT_ROOT := $(CURDIR)
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help need build run test test-rust test-go test-run test-zfs test-life test-plane test-snapshots load-plane test-runbooks testbed lint fmt bench bench-peers crash-search fuzz broken-rules kill-test soak power-cut full-disk clean

go_module := $(dir $(wildcard ffi/go/go.mod))

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

need: # checks the machine; installs Debian packages where it may
	@tools/need

build: need ## build bin/basalt, bin/ipfs (pure Go), bin/ipfs-ffi and bin/basalt-migrate
	@tools/build

run: build ## start an agent and a Kubo on it, add 256 MiB, read it back, stay up (FFI=1: all in one process)
	@tools/run

test: ## run all tests: Rust, Go, `make run` in small, and a part of the suites on OpenZFS (BASALT_ZFS=skip leaves that out)
	@tools/test

test-rust: need ## run the Rust tests
	@tools/test rust

test-go: need ## run the Go tests
	@tools/test go

test-run: need # what `make run` does, with a small tree, once
	@tools/test run

test-zfs: need ## run the ZFS suites on real OpenZFS, in a guest or on BASALT_TEST_POOL (SEED=0x... ONLY=words)
	@tools/test-zfs

test-life: need ## let a node live on real OpenZFS in a guest: bad sectors, lost disks, full pools, keys, restores (ONLY=words)
	@tools/test-zfs --life

test-snapshots: need ## take, compare, mount, restore and prune snapshots of a node under Kubo on real OpenZFS, in a guest
	@tools/test-snapshots

test-runbooks: need ## run every command of docs/runbooks and of the snapshots' example on real OpenZFS, in a guest (ONLY=words)
	@tools/test-snapshots runbooks

test-plane: need ## run the state plane's suites on real CQL servers, which it starts (ONLY=words)
	@tools/test-plane

load-plane: need ## load PINS=n (1000000) pins into both engines of the state plane: rates, memory, bytes a row
	@tools/load-plane

testbed: ## build the guest with OpenZFS, once (needs root)
	@tools/testbed

lint: need ## formatting, clippy, gofmt, go vet, shell syntax
	@tools/lint

fmt: ## format Rust and Go
	. tools/env; cargo fmt --all
	$(if $(go_module),gofmt -w $(go_module) bench/peers)

crash-search: need ## cut the power before every disk operation of SEEDS=n workloads; SEED=0x… replays one
	@tools/crash-search

fuzz: need ## feed hostile bytes to every decoder, each for SECONDS=n (60)
	@FUZZ_SECONDS=$(or $(SECONDS),60) tools/fuzz

broken-rules: need ## break each rule of the store in a copy, and see that a test notices
	@tools/broken-rules

bench: build ## measure against raw disk and against flatfs; writes docs/benchmarks.md
	@tools/bench

bench-peers: build ## measure all stores of Kubo side by side; writes docs/benchmarks/ (ONLY=W1,W6 STORES=flatfs,Basalt FULL=1)
	@tools/bench-peers

kill-test: build ## kill the agent, Kubo or both ROUNDS times under Kubo's load (SEED=0x... replays)
	@tools/build basalt-chaos
	@bin/basalt-chaos kill --rounds $(or $(ROUNDS),100) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY))

soak: build ## keep Kubo busy on Basalt for MINUTES=n with restarts; memory, files, threads and disk space must stay flat (SEED=0x... replays)
	@tools/build basalt-chaos
	@bin/basalt-chaos soak --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY))

power-cut: need ## cut the power of a guest ROUNDS times under Basalt on ext4 and ZFS (SEED=0x... replays; COMPARE=1: what Kubo has otherwise)
	@tools/power-cut

full-disk: need ## fill ext4 and ZFS under Kubo, by blocks, inodes, other programs and snapshots (ONLY=zfs-quota: one case)
	@tools/full-disk

clean: ## remove bin/ and run/ (the cache in BASALT_CACHE stays)
	rm -rf bin run
