# make demo   the main job on the built-in sample
# make test   the whole test suite
# Both make their own environment in .venv first; nothing else on the machine is touched.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What napari needs to draw on a machine without a screen (Debian's names).
X_PACKAGES := xvfb libegl1 libgl1 libgl1-mesa-dri libxkbcommon-x11-0 libdbus-1-3 libxcb-cursor0 libxcb-icccm4 \
	libxcb-keysyms1 libxcb-xinerama0 libxcb-shape0

.PHONY: help demo test lint docs overrides clean x-server

help:
	@sed -n 's/^# //p' Makefile

# The stamp is written last: an installation that was interrupted is done again.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is missing; install it (Debian: apt-get install python3.11 python3.11-venv)" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' || { echo "Python's venv module is missing; install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps anndata==0.12.19
	@touch $(READY)

demo: $(READY)
	$(BIN)/hematokit demo --output hematokit-demo

test: $(READY) x-server
	$(BIN)/python -m pytest

# The viewer's tests start an X server of their own. Without one, and without the right to install it, they skip and say so.
x-server:
	@command -v Xvfb >/dev/null || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && \
		{ apt-get install -y --no-install-recommends $(X_PACKAGES) >/dev/null 2>&1 || \
		{ apt-get update >/dev/null 2>&1 && apt-get install -y --no-install-recommends $(X_PACKAGES) >/dev/null 2>&1; }; } || \
		echo "no X server, and it cannot be installed here: the viewer's tests will be skipped (Debian: $(X_PACKAGES))" >&2; }

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/sphinx-build -W -q docs docs/_build

# The typed keyword arguments of the commands, from the settings models.
overrides: $(READY)
	$(BIN)/python -c 'import sys; sys.path.insert(0, "docs/_ext"); import generated; \
		generated.write_overrides("src/hematokit/overrides.py")'
	$(BIN)/ruff format --quiet src/hematokit/overrides.py

clean:
	rm -rf $(VENV) hematokit-demo docs/_build
