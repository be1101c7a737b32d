# dhow's workshop. `make help` lists the targets. Everything that is missing is installed by
# the target that needs it, from Debian and crates.io only.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.SUFFIXES:

PREFIX ?= /usr/local
DESTDIR ?=
TOOLS ?= $(or $(DHOW_TOOLS),/var/tmp/dhow-tools)
# Asked once, and only by the targets that build.
TARGET = $(eval TARGET := $(shell .ci/target))$(TARGET)
STATIC_CARGO = DHOW_TARGET=$(TARGET) .ci/cargo

# A heading between the steps of a long target.
say = @printf '\n== %s\n' "$(1)"

.PHONY: help build test suites test-crash test-long fuzz test-vm test-arm64 test-images lint deny unit integration demo bench order bench-images peers engines conformance validation install dist deb dist-check clean test-needs

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1	\2/p' $(MAKEFILE_LIST)

build: bin/dhow-registry ## bin/dhow and its companions beside it: static executables
	@case "$(TARGET)" in *-musl) .ci/need musl-gcc:musl-tools;; esac
	$(STATIC_CARGO) build --locked --release --package dhow --bin dhow
	$(STATIC_CARGO) build --locked --release --package dhow-monitor
	$(STATIC_CARGO) build --locked --release --package containerd-shim-dhow-v2
	@mkdir -p bin
	@for program in dhow dhow-monitor containerd-shim-dhow-v2; do \
	    cp target/$(TARGET)/release/$$program bin/.$$program.new && mv bin/.$$program.new bin/$$program; done
	@ls -l bin/dhow bin/dhow-monitor bin/containerd-shim-dhow-v2

# What talks to registries has its own dependencies, and is built when it has changed.
bin/dhow-registry: $(wildcard shims/registry/src/*.rs) shims/registry/Cargo.toml shims/registry/Cargo.lock
	@case "$(TARGET)" in *-musl) .ci/need musl-gcc:musl-tools;; esac
	$(STATIC_CARGO) build --locked --release --manifest-path shims/registry/Cargo.toml --target-dir target/registry
	@mkdir -p bin
	@cp target/registry/$(TARGET)/release/dhow-registry $@

# The integration tests come last: CI ends with cargo test's own output.
test: test-needs lint deny build unit suites integration ## everything that must hold before a merge

test-needs:
	@[ "$$(id -u)" = 0 ] || { echo "make test needs root: it makes containers" >&2; exit 1; }
	$(call say,needs)
	@.ci/need cc:gcc musl-gcc:musl-tools busybox:busybox-static newuidmap:uidmap
	@.ci/need containerd:containerd podman:podman || echo "the tests with engines will be skipped"
	@.ci/need debootstrap:debootstrap curl:curl || echo "runc's suite and runtime-tools may be skipped"
	@.ci/need zsh:zsh fish:fish || echo "the completions of a shell that is not there will not be read"

lint: ## rustfmt and clippy
	$(call say,rustfmt)
	cargo fmt --all --check
	cargo fmt --manifest-path shims/registry/Cargo.toml --check
	$(call say,clippy)
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --manifest-path shims/registry/Cargo.toml --target-dir target/registry --all-targets -- -D warnings

deny: ## licences, sources and duplicates of the dependencies
	$(call say,cargo-deny)
	@.ci/deny $(TOOLS)

unit: ## unit tests
	$(call say,unit tests)
	cargo test --locked --package dhow
	cargo test --locked --package dhow-bench --package dhow-shim-common --package containerd-shim-dhow-v2
	cargo test --locked --manifest-path shims/registry/Cargo.toml --target-dir target/registry

# Twice: with the machine's own cgroup layout, and with cgroup v2 alone where that differs.
integration: ## the binary on the real kernel (bin/dhow must be there)
	$(call say,integration tests: build)
	$(STATIC_CARGO) test --locked --package dhow-integration --no-run
	$(call say,integration tests: cgroup v2 only)
	if grep -q ' - cgroup ' /proc/self/mountinfo; then \
	    DHOW_TARGET=$(TARGET) integration/layout.sh v2 .ci/cargo test --locked --package dhow-integration --no-fail-fast; fi
	$(call say,integration tests)
	$(STATIC_CARGO) test --locked --package dhow-integration --no-fail-fast

# From nothing this takes some minutes more: a folder of Debian sid is made, once.
suites: ## the fast part of runc's suite, and runtime-tools (four minutes)
	$(call say,the suites of others)
	@if integration/peers.sh reachable; then integration/conformance.sh --fast && integration/validation.sh; \
	else echo "SKIPPED runc's suite and runtime-tools: Debian's packages cannot be reached"; fi

test-crash: build ## a crash and four errors at every syscall, and a minute of 16 commands at a time (ten minutes)
	$(STATIC_CARGO) test --locked --package dhow-integration --no-run
	DHOW_CRASH_STRIDE=1 nice env $(STATIC_CARGO) test --locked --package dhow-integration --test crash -- --nocapture
	DHOW_CROWD=1000 DHOW_CROWD_SECONDS=60 nice env $(STATIC_CARGO) test --locked --package dhow-integration --test crowd -- --nocapture

test-long: build ## a layer of a million entries, seccomp against libseccomp, cgroups measured (some minutes)
	$(STATIC_CARGO) test --locked --package dhow-integration --test images -- --ignored --nocapture
	cargo test --locked --package dhow --test seccomp_oracle --test cgroups_kernel -- --ignored --nocapture

# Unstable options of the stable compiler stand for a nightly one. What is found is kept in fuzz/artifacts.
FUZZ_SECONDS ?= 600
fuzz: ## the fuzzer on every target, ten minutes in all (FUZZ_SECONDS), from fuzz/seeds
	@command -v cargo-fuzz >/dev/null || PATH="$(TOOLS)/bin:$$PATH" command -v cargo-fuzz >/dev/null || \
	    cargo install --quiet --locked --root $(TOOLS) cargo-fuzz
	@.ci/need c++:g++
	@set -e; targets=$$(ls fuzz/seeds); each=$$(( $(FUZZ_SECONDS) / $$(echo $$targets | wc -w) )); \
	for target in $$targets; do \
	    printf '\n== %s, %s seconds\n' $$target $$each; mkdir -p fuzz/corpus/$$target; \
	    PATH="$(TOOLS)/bin:$$PATH" RUSTC_BOOTSTRAP=1 RUSTFLAGS= nice cargo fuzz run --target $$(uname -m)-unknown-linux-gnu $$target \
	        fuzz/corpus/$$target fuzz/seeds/$$target -- -max_total_time=$$each -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 \
	        > fuzz/corpus/$$target.log 2>&1 || { tail -n 60 fuzz/corpus/$$target.log; exit 1; }; \
	    grep -E 'number_of_executed|peak_rss' fuzz/corpus/$$target.log; \
	done

test-vm: build ## an older kernel, cgroup v2 with every controller, systemd: in an emulated machine (half an hour)
	@.ci/need qemu-system-x86_64:qemu-system-x86 debootstrap:debootstrap cpio:cpio mkfs.ext4:e2fsprogs depmod:kmod
	integration/test-vm.sh

test-arm64: ## dhow for aarch64, tested on a 64-bit ARM kernel in an emulated machine (half an hour)
	@.ci/need 'aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu libc6-dev-arm64-cross' qemu-system-aarch64:qemu-system-arm debootstrap:debootstrap \
	    cpio:cpio depmod:kmod
	integration/test-arm64.sh

test-images: build ## a real image against umoci, skopeo and erofs-utils (some minutes, downloads packages)
	@.ci/need debootstrap:debootstrap zstd:zstd
	integration/test-images.sh

engines: build ## Docker, Podman, Buildah and containerd on dhow, and the table in docs/engines.md (minutes; downloads packages)
	@.ci/need debootstrap:debootstrap containerd:containerd iptables:iptables busybox:busybox-static
	integration/peers.sh engines
	integration/peers.sh docker
	integration/engines.sh --write

conformance: build ## runc's own test suite against dhow (some minutes); FILES="exec.bats" for some
	@.ci/need debootstrap:debootstrap
	integration/conformance.sh $(FILES)

validation: build ## the specification's own validation programs (runtime-tools) against dhow
	@.ci/need debootstrap:debootstrap curl:curl
	integration/validation.sh

demo: build ## a container's whole life, shown step by step
	@.ci/need busybox:busybox-static
	@integration/demo.sh bin/dhow

bench: build ## dhow against crun, runc and the kernel's floor; BENCH="--quick" for options
	@.ci/need debootstrap:debootstrap musl-gcc:musl-tools strace:strace
	integration/peers.sh bench
	$(STATIC_CARGO) build --locked --profile ci --package dhow-bench
	target/$(TARGET)/ci/dhow-bench $(BENCH)

order: ## .ci/order.txt anew, by which the linker puts together what the common commands run (some minutes)
	@.ci/need musl-gcc:musl-tools python3:python3 busybox:busybox-static
	benches/order.sh

bench-images: build ## images: dhow against umoci, skopeo, podman and plain tools; BENCH="--runs 3"
	@.ci/need debootstrap:debootstrap zstd:zstd
	integration/peers.sh images
	$(STATIC_CARGO) build --locked --profile ci --package dhow-bench
	unshare --mount --propagation private target/$(TARGET)/ci/dhow-bench --images $(BENCH)

peers: ## other runtimes and engines, in a Debian sid folder
	@.ci/need debootstrap:debootstrap
	integration/peers.sh all

install: build ## bin/dhow, its companions, man pages and completions below $(DESTDIR)$(PREFIX)
	install -D -m 755 bin/dhow $(DESTDIR)$(PREFIX)/bin/dhow
	install -D -m 755 bin/dhow-registry $(DESTDIR)$(PREFIX)/bin/dhow-registry
	install -D -m 755 bin/dhow-monitor $(DESTDIR)$(PREFIX)/bin/dhow-monitor
	install -D -m 755 bin/containerd-shim-dhow-v2 $(DESTDIR)$(PREFIX)/bin/containerd-shim-dhow-v2
	install -d $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 644 man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/,bash-completion/completions zsh/site-functions fish/vendor_completions.d)
	bin/dhow completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/dhow
	bin/dhow completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_dhow
	bin/dhow completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/dhow.fish
	@echo "docker:     dockerd --add-runtime dhow=$(PREFIX)/bin/dhow --default-runtime dhow"
	@echo "containerd: ctr run --runtime io.containerd.dhow.v2 IMAGE ID"
	@echo "podman:     podman --runtime $(PREFIX)/bin/dhow run IMAGE"

dist: ## a release tarball and its checksum in dist/, the same bytes for the same commit
	@.ci/dist tar

deb: ## a Debian package and its checksum in dist/
	@.ci/need dpkg-deb:dpkg
	@.ci/dist deb

dist-check: ## both, built twice in different places from the commit, must be the same bytes (ten minutes)
	@.ci/dist-check

clean: ## what was built
	cargo clean
	rm -rf bin dist
