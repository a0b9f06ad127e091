# Everything sets itself up: `make demo` and `make test` need Python 3.11 to 3.13, gcc and pip, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The folders with code: what is formatted, linted and type-checked.
CODE := core client server export serve simulations tests benchmarks tools
# What `make check` asks of the whole tree, so that `make test` need not ask it again.
HOUSE := tests/test_architecture.py tests/test_locks.py

# Python keeps what it has compiled, whatever a shell says: tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test check format integration slow page aarch64 faults soak fuzz lock audit release clean

setup: $(VENV)/.ready

# torch first and exactly: a looser requirement may bring a build with gigabytes of CUDA. TORCH_INDEX is the index that it is
# taken from, such as https://download.pytorch.org/whl/cpu (the CPU build); unless told, pip's own.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/fedlora demo simulations/scenarios/demo.toml

# A process per core, each with a share of the tests; `pytest PATH` runs some of them in one.
test: setup
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(HOUSE:%=--ignore %)

check: setup
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/python -m bandit --quiet --recursive --configfile pyproject.toml $(filter-out tests,$(CODE))
	$(BIN)/python -m pytest $(HOUSE)

format: setup
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

integration: setup
	$(BIN)/python -m pytest -m integration

slow: setup
	$(BIN)/python -m pytest -m slow

# The service's page and a report in a real browser; screenshots lie in build/page. Debian's Chromium, where none is installed.
page: setup
	command -v chromium > /dev/null || { \
	  sudo=$$(test "$$(id -u)" = 0 || echo sudo); \
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq chromium > /dev/null; }
	$(BIN)/python -m pytest -m browser tests/serve/page tests/simulations/reports

# The C code on the processor of small boards, under an emulator. Debian's packages, where they are not installed.
aarch64: setup
	command -v qemu-aarch64 > /dev/null && command -v aarch64-linux-gnu-gcc > /dev/null || { \
	  sudo=$$(test "$$(id -u)" = 0 || echo sudo); \
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq qemu-user gcc-aarch64-linux-gnu > /dev/null; }
	$(BIN)/python -m pytest -m aarch64 tests/aarch64

# A fleet of real processes that are killed, cut off and starved.
faults: setup
	$(BIN)/python -m pytest -m faults -rs tests/faults

# The same for many rounds, beside a run to which nothing happens; the report is docs/soak.md.
SOAK := --devices 8 --rounds 50 --seed 1
soak: setup
	$(BIN)/python -m tests.faults.soak $(SOAK) --out docs/soak.md

# Every reader of what strangers send, with what goes too far; findings lie in build/fuzz. FUZZ_MINUTES says how long.
FUZZ_MINUTES ?= 60
fuzz: setup
	nice $(BIN)/python -m tests.fuzz --minutes $(FUZZ_MINUTES)

# locks/*.txt from constraints.txt: the hashes of every file of a release on PyPI, for every system. uv comes with flwr.
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 \
  --constraint constraints.txt --default-index https://pypi.org/simple
TORCH_APART := --config-file tools/lock/uv.toml --no-emit-package torch
lock: setup
	$(LOCK) $(TORCH_APART) --extra client pyproject.toml --output-file locks/device.txt
	$(LOCK) --no-config --extra server --extra export --extra serve pyproject.toml --output-file locks/server.txt
	echo torch==2.13.0 | $(LOCK) --no-config - --output-file locks/torch.txt

# What is known against the locked versions. It asks PyPI, so it is no part of `make check`.
audit: setup
	for lock in device server torch; do $(BIN)/python -m pip_audit --disable-pip --require-hashes -r locks/$$lock.txt || exit 1; done

# dist/: the wheel, the same bytes from the same commit; what a device and a server run, as CycloneDX; the sums of them all.
SBOM := $(BIN)/python -m cyclonedx_py requirements - --pyproject build/release/pyproject.toml --mc-type application \
  --spec-version 1.6 --output-format JSON --output-reproducible --validate
release: setup
	rm -rf dist build/release && mkdir -p dist build/release
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
	  $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	version=$$(ls dist/*.whl | cut -d- -f2) && \
	  sed "s/^dynamic = .*/version = \"$$version\"/" pyproject.toml > build/release/pyproject.toml
	(cat locks/device.txt; echo torch==2.13.0) | $(SBOM) --output-file dist/fedlora-device.cdx.json
	$(SBOM) --output-file dist/fedlora-server.cdx.json < locks/server.txt
	cd dist && sha256sum *.whl *.cdx.json > SHA256SUMS

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
