# Everything a person does with Carob's sources. CI runs the same targets.

# A kubectl that scripts/kubectl had to fetch comes first.
export PATH := $(CURDIR)/target/tools:$(PATH)

IMAGES := busybox nginx redis python tools

.PHONY: all demo test test-vm bench images build lint fmt clippy deny matrix setup

all: build

## demo: build everything, run the guestbook on it, show its bill; Ctrl-C removes all of it again
demo: setup build images
	scripts/demo

## test: the whole suite, against the real binary, kernel, registry and client
test: setup
	scripts/test

## test-vm: the tests for which cgroups matter, in an emulated guest that has version 2 alone
test-vm: setup
	scripts/test-vm

## bench: one table, Carob beside its peers, in one run
bench: setup build images
	scripts/bench

## build: the release binary, target/release/carob
build: setup
	cargo build --release --locked

## images: OCI layouts of the example images in target/images
images: setup
	vendor-images/build $(IMAGES)

## lint: what CI demands of every commit
lint: fmt clippy deny

fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --workspace --all-targets --locked -- -D warnings

deny:
	scripts/cargo-tool cargo-deny 0.20.2
	cargo deny check bans licenses sources

## matrix: docs/support-matrix.md from the kinds table
matrix:
	cargo run --quiet --example support_matrix -p carob-api > docs/support-matrix.md

## setup: what is missing on this machine: Debian packages, a current kubectl
setup:
	scripts/setup
