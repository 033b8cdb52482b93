# Each target is a whole job; install, deb and test-deployment take what `make executable` has made.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ONCE ?=
PYTEST ?=
BENCH ?=
HASHED ?=
TARGET ?=
SECONDS ?= 45
FULL ?=
SNIPROXY ?=
# Tests mostly wait. Those of a file stay together, in one of so many processes (0: all in this one).
PROCESSES ?= 3
PARALLEL = -n $(PROCESSES) --dist loadfile
FOREIGN = $(filter-out $(shell uname -m),$(TARGET))
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' sniproxy/__init__.py)
FLAVOURS = $(CURDIR)/dist/sniproxy $(CURDIR)/dist/sniproxy-hashed
PREFIX ?= /usr/local
DESTDIR ?=

.DEFAULT_GOAL := help
.PHONY: help run test coverage lint bench clean
.PHONY: executable test-executable reproducible train dist
.PHONY: install uninstall deb image wheel test-deployment
.PHONY: fuzz test-faults test-peers

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

run: $(VENV)/.demo ## Show the proxy at work with real TLS backends (ONCE=1: leave after the table)
	$(BIN)/python demo/demonstration.py $(if $(ONCE),--once)

test: $(VENV)/.test ## Run all tests from source (PYTEST="-k name" for some)
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST)

coverage: $(VENV)/.test ## Run each module's own tests; they must run most of it (as root: all of them)
	$(BIN)/python -m pytest $(PARALLEL) --covered tests/test_*.py $(PYTEST)

executable: python ## Build dist/sniproxy, one static file (HASHED=1: -hashed; TARGET=aarch64: for that)
	$(PYTHON) launcher/build.py $(if $(filter-out 0,$(HASHED)),--hashed) \
	  $(if $(TARGET),--target $(TARGET))

test-executable: python $(VENV)/.test ## Build both flavours; end-to-end tests and proofs (TARGET=aarch64: emulated)
ifneq ($(FOREIGN),)
	$(PYTHON) launcher/build.py --target $(FOREIGN)
	$(BIN)/python -m pytest tests/executable/test_static.py --sniproxy=dist/$(FOREIGN)/sniproxy
	$(BIN)/python -m tests.emulation $(FOREIGN) dist/$(FOREIGN)/sniproxy $(PYTEST)
else
	$(PYTHON) launcher/build.py
	$(PYTHON) launcher/build.py --hashed
	set -e; for file in $(FLAVOURS); do \
	  $(BIN)/python -m pytest $(PARALLEL) tests/end_to_end tests/executable --sniproxy="$$file" \
	    $(PYTEST); done
endif

reproducible: python ## Build the committed state twice, in two folders; the bytes must be the same
	$(PYTHON) launcher/reproducible.py

train: python ## Take the interpreter's profile anew, for this machine's architecture and compiler
	$(PYTHON) launcher/build.py --train $(if $(TARGET),--target $(TARGET))

dist: python ## Make all that a release has for a machine, and SHA256SUMS (TARGET= as above)
	$(PYTHON) launcher/archives.py $(TARGET)
	$(MAKE) deb image HASHED=
	$(MAKE) deb HASHED=1
	$(if $(FOREIGN),,$(MAKE) wheel)
	cd dist/$(FOREIGN) && sha256sum sniproxy*[-_]$(VERSION)[-.]* > SHA256SUMS

fuzz: $(VENV)/.fuzz ## Fuzz what takes bytes from outside (SECONDS=600: for longer; FUZZ=--update: keep)
	$(BIN)/python -m tests.fuzz.fuzz --seconds $(SECONDS) $(FUZZ)

test-faults: $(VENV)/.test ## Attack it (FULL=1: full size, half an hour; SNIPROXY=dist/sniproxy: that one)
	$(BIN)/python -m pytest tests/faults $(if $(FULL),--full --timeout=900 -s) \
	  $(if $(SNIPROXY),--sniproxy=$(abspath $(SNIPROXY))) $(PYTEST)

test-peers: $(VENV)/.test ## Try every client with every server through it (PYTEST=--update-tables: docs)
	$(BIN)/python -m pytest tests/peers $(PYTEST)

lint: $(VENV)/.lint ## Check style and types, the workflows and what is for containers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec chroot/containers/compose.yaml
	$(BIN)/kubernetes-validate --strict chroot/containers/daemonset.yaml

bench: $(VENV)/.demo ## Compare with nginx, HAProxy and others (BENCH=--quick: in 1.5 minutes)
	$(BIN)/python -m bench.compare $(BENCH)

install: ## Install dist/sniproxy, units, manual pages (DESTDIR= PREFIX=/usr/local)
	sh chroot/install '$(DESTDIR)' '$(PREFIX)'

uninstall: ## Remove what install has installed
	sh chroot/install --remove '$(DESTDIR)' '$(PREFIX)'

deb: python ## Pack dist/sniproxy as a Debian package, beside it (HASHED=1, TARGET=aarch64: that one)
	HASHED='$(HASHED)' PYTHON='$(PYTHON)' TARGET='$(FOREIGN)' sh chroot/debian/build dist/$(FOREIGN)

image: python ## Pack dist/sniproxy as an OCI image, beside it (HASHED=1, TARGET=aarch64: that one)
	$(PYTHON) launcher/image.py dist/$(FOREIGN:%=%/)sniproxy$(if $(filter-out 0,$(HASHED)),-hashed)

wheel: python ## Make the source distribution and the wheel, into dist/
	$(PYTHON) launcher/wheel.py

test-deployment: $(VENV)/.test ## Boot Debian 12 and 13 with dist/sniproxy installed and test it there
	$(BIN)/python -m pytest tests/deployment $(PYTEST)

clean: ## Remove everything that was made here
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache

.PHONY: python
python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than 3.11: install one, or say make PYTHON=..." >&2; exit 1; }

$(BIN)/python: | python
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) can't make virtual environments: install python3-venv (Debian)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp an extra of pyproject.toml, so that `make run` waits for nothing that it does not use.
$(VENV)/.%: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
