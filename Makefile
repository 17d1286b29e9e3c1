# stratisd: `make help` lists what can be made.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PREFIX ?= /usr
DESTDIR ?=
LIBEXECDIR ?= $(PREFIX)/libexec
# dbus-daemon reads policies below /usr/share and /etc only, wherever the program is.
POLICYDIR ?= $(if $(filter /usr,$(PREFIX)),/usr/share,/etc)/dbus-1/system.d
# udev reads rules in three places, and runs helpers from wherever a rule says.
UDEVDIR ?= $(PREFIX)/lib/udev
RULESDIR ?= $(if $(filter /usr /usr/local,$(PREFIX)),$(PREFIX)/lib,/etc)/udev/rules.d
CARGO ?= cargo

BUILT := target/release
# What udev's rules run.
UDEV_HELPERS := stratis-base32-decode stratis-str-cmp
TEST_LOG := target/test.log

# To build: headers of the libraries, and libclang for the bindings made from them. To test: a
# message bus, the programs that make and check what pools are made of, and a virtual machine.
PACKAGES := libblkid-dev libclang-dev libdevmapper-dev libglib2.0-dev libudev-dev pkg-config \
	busybox-static cpio cryptsetup-bin dbus dmsetup e2fsprogs fdisk kmod qemu-system-x86 \
	thin-provisioning-tools udev xfsprogs

# To build stratisd 3.9.2, which `make test-peer` runs beside ours.
PEER_PACKAGES := libcryptsetup-dev

.PHONY: build deps packages test test-long test-peer zoo demo bench install clean help
.DEFAULT_GOAL := build
# In order, also under `make -j`: cargo uses every CPU by itself.
.NOTPARALLEL:

build: ## the daemon and its helpers, optimised: target/release
	$(CARGO) build --release

deps: ## install the packages that are missing (as root), or say which they are; fetch test kernels
	@$(MAKE) --no-print-directory packages
	@for kind in uml qemu; do \
		tests/vm/rig/build.sh $$kind 2>target/vm.log || \
			echo "deps: no virtual machine of kind $$kind: $$(tail -n1 target/vm.log)"; \
	done

packages:
	@mkdir -p target; have() { [ "$$(dpkg-query -W -f='$${db:Status-Status}' "$$1" 2>/dev/null)" = installed ]; }; \
	command -v $(CARGO) >/dev/null || echo "deps: cargo is missing (Rust 1.95 or newer): see https://rustup.rs"; \
	if ! command -v dpkg-query >/dev/null; then \
		echo "deps: this is no Debian: what these packages hold is needed: $(PACKAGES)"; exit 0; \
	fi; \
	missing=; \
	for package in $(PACKAGES); do have "$$package" || missing+=" $$package"; done; \
	command -v cc >/dev/null || missing+=" build-essential"; \
	for python in python3 python3.{11..20}; do \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null && python_found=1 && break; \
	done || true; \
	[ "$${python_found-}" ] || missing+=" python3-venv"; \
	[ "$$missing" ] || exit 0; \
	if [ "$$(id -u)" -ne 0 ]; then \
		echo "deps: missing:$$missing (sudo apt-get install --no-install-recommends$$missing)"; exit 0; \
	fi; \
	echo "deps: installing$$missing"; \
	mkdir -p target; \
	get() { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; }; \
	{ get || { apt-get update && get; }; } >target/deps.log 2>&1 || \
		echo "deps: cannot install$$missing: $$(grep -m1 '^E:' target/deps.log || tail -n1 target/deps.log) (whole log: target/deps.log)"

test: deps ## format, lints, all tests, loom; says at the end what was skipped
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@mkdir -p target; tests/venv.sh || true
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$$(( $$(nproc) > 3 ? $$(nproc) : 3 ))} $(CARGO) test --workspace -- --show-output 2>&1 | tee $(TEST_LOG)
	RUSTFLAGS="--cfg loom" $(CARGO) test -p ring --release --test loom --target-dir target/loom
	@if grep -ho 'SKIPPED .*' $(TEST_LOG) | sort -u > target/skipped.log; then \
		echo "Passed. Skipped:"; sed 's/^SKIPPED /  /' target/skipped.log; \
	else \
		echo "Passed. Nothing was skipped."; \
	fi

# What takes longer than all the rest: udev needs most of a second for each of a thousand volumes, a power cut half a minute.
test-long: deps ## a million broken messages; 50,000 geometries beside those of mkfs.xfs; 10,000 filesystems; 1,000 histories and every sequence of two operations, and of three up to symmetry; 60,000 times several clients at once; in virtual machines: 300 kills, 300 power cuts, 200 random steps, growth 1,000 times under writers, 1,000 filesystems in a pool (hours)
	FUZZ_INPUTS=1000000 $(CARGO) test --release --lib bus::tests::wire
	$(CARGO) test --release --test bus large:: -- --ignored --test-threads=1
	SEED=$$RANDOM SHAPES=50000 $(CARGO) test --test xfs equal::random_shapes_have_the_geometry -- --nocapture
	for seed in {1..20}; do SEED=$$RANDOM $(CARGO) test --test bus histories::; done
	HISTORIES=1000 $(CARGO) test --test sim history:: -- --nocapture
	$(CARGO) test --test sim deeds::all -- --ignored --nocapture
	$(CARGO) test --test sim longer:: -- --ignored --nocapture
	$(CARGO) test --test sim together:: -- --ignored --nocapture
	VM=required POINTS=200 $(CARGO) test --test vm wander::
	VM=required POINTS=300 $(CARGO) test --test vm kill::
	VM=required POINTS=300 $(CARGO) test --test vm power::
	VM=required POINTS=100 $(CARGO) test --test vm cut::
	VM=required $(CARGO) test --test vm race:: -- --ignored --skip ::guest --test-threads=1
	@grep -h 'race: ' target/vm/logs/race-*/output
	VM=required $(CARGO) test --test vm thousand::vm -- --ignored --exact
	@grep '^thousand:' target/vm/logs/thousand/output
	@$(MAKE) --no-print-directory test-peer

test-peer: ## stratisd 3.9.2 (built from crates.io once: minutes) beside ours in virtual machines: pools go to and fro
	@$(MAKE) --no-print-directory deps PACKAGES='$(PACKAGES) $(PEER_PACKAGES)'
	tests/vm/rig/build.sh peer
	VM=required PEER=required $(CARGO) test --test vm peer::

zoo: ## plants the mistakes of src/zoo.rs one by one and says which are found (half an hour)
	$(CARGO) test --features zoo --test sim zoo:: -- --ignored --nocapture

demo: packages build ## a pool, a filesystem, a restart: in a minute, on files, nothing of this machine is touched
	tests/demo.sh

bench: ## the measurements (minutes)
	$(CARGO) bench --workspace --bench '*'
	$(CARGO) build --release
	$(BUILT)/stratisd-bench bus --start '$(BUILT)/stratisd --sim'

install: ## lay out under DESTDIR and PREFIX (/usr): programs, udev rules, policy, unit, manual page, completion
	@for program in stratisd $(UDEV_HELPERS); do \
		[ -x $(BUILT)/$$program ] || { $(MAKE) --no-print-directory build; break; }; \
	done
	install -D -m 755 $(BUILT)/stratisd $(DESTDIR)$(LIBEXECDIR)/stratisd
	install -D -m 755 -t $(DESTDIR)$(UDEVDIR) $(addprefix $(BUILT)/,$(UDEV_HELPERS))
	install -d $(DESTDIR)$(RULESDIR)
	sed 's#"\(stratis-[bs][a-z0-9-]* \)#"$(UDEVDIR)/\1#' dist/61-stratisd.rules > $(DESTDIR)$(RULESDIR)/61-stratisd.rules
	chmod 644 $(DESTDIR)$(RULESDIR)/61-stratisd.rules
	install -D -m 644 dist/stratisd.conf $(DESTDIR)$(POLICYDIR)/stratisd.conf
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|^ExecStart=/usr/libexec/|ExecStart=$(LIBEXECDIR)/|' dist/stratisd.service \
		> $(DESTDIR)$(PREFIX)/lib/systemd/system/stratisd.service
	chmod 644 $(DESTDIR)$(PREFIX)/lib/systemd/system/stratisd.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/stratisd dist/stratisd-large.conf
	install -D -m 644 dist/stratisd.8 $(DESTDIR)$(PREFIX)/share/man/man8/stratisd.8
	install -D -m 644 dist/stratisd.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/stratisd

clean: ## remove what was built, and the client environments
	$(CARGO) clean
	rm -rf .venv-cli38 .venv-cli39

help: ## this list
	@sed -n 's/^\([a-z-]*\):[a-z ]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10
