# `make demo`, `make test` and `make bench` set up everything they need on first use: Python 3.11 or newer and make do;
# `make bench` needs a C++ compiler too, and so does one of the tests of `make test-ci`.
PYTHON ?= python3
VENV := .venv
PROGRAMS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := $(VENV)/$(PROGRAMS)
# One job per core: two jobs of two threads each on two cores slow each other tenfold.
SINGLE := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# No plugins but those of pyproject.toml, whose sources pytest would rewrite. Each worker goes through its half of the
# tests in order, so that what a module shares is made once.
PYTEST := $(SINGLE) PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/python -m pytest
# Tests wait for a third of their time, for other processes and for limits that they try.
JOBS ?= 3
WORKERS := -n $(JOBS) --dist worksteal

# Versions that were tried; see constraints.txt.
# A module is compiled when it is first imported, and then kept, even where the environment says otherwise, as many
# containers do. To compile all of them at once would make the installation twice as long.
INSTALL := pip install --quiet --disable-pip-version-check --no-compile
export PYTHONDONTWRITEBYTECODE :=
LOCKED := -c constraints.txt
OLDEST := .venv-oldest
LOCK := .venv-lock
MILVUS := .venv-milvus
CLIENTS := .venv-clients
EVERYWHERE := .venv-everywhere
CORE := .venv-core
RELEASE := .venv-release
TAG :=
SLOW := not slow
ONLY :=

# What we are measured against, which needs other versions of what we need.
PEERS := .venv-peers
BENCHMARKS := training captioning imported engines precision busy footprint loader order remote search serving

# Two installations into one environment at a time would break it.
.NOTPARALLEL:

.PHONY: try demo page test test-gpu bench-gpu test-slow test-ci test-milvus test-ray test-browser test-clients attack attack-drawings attack-pictures attack-indexes test-core test-everywhere test-newest ci check-workflows dist release servers-milvus servers-ray servers-browser servers-clients test-oldest lock lint coverage bench $(BENCHMARKS:%=bench-%) bench-docs study-docs icons icon-site docs paper notebook weights clean

# A caption of each drawing by the model that comes with the code; without PyTorch. One is wrong, so that nobody expects too much.
try: $(VENV)/.use
	$(BIN)/grr-coca caption docs/drawings
	@echo "sailboat.webp is a failure: the model knows icons, and has never seen this style of emoji. docs/icons.md has its accuracy."

demo: $(VENV)/.demo
	$(BIN)/grr-coca demo

# A page that searches pictures: `make page IMAGES=~/Pictures/icons`, or the drawings that come with the code. Other pictures
# get another index. If another server has the port: `make page PORT=8001`. One path may have spaces.
IMAGES := docs/drawings datasets/pictograms/test_style-00000.tar
PORT := 8000
page: export IMAGES := $(IMAGES)
page: $(VENV)/.page
	@set -e; if [ -e "$$IMAGES" ]; then set -- "$$IMAGES"; else set -- $(IMAGES); fi; \
	index="runs/page-$$(printf %s "$$IMAGES" | cksum | cut -d ' ' -f 1)/$$(basename "$$1").index"; set -x; \
	$(BIN)/grr-coca index "$$@" --out "$$index"; \
	$(BIN)/grr-coca serve "$$index" --port $(PORT) --open

# GRR_COCA_CHECK_SHAPES=1 checks the shapes of all tensors, too, as continuous integration does.
test: $(VENV)/.dev
	$(PYTEST) $(WORKERS) -m "not slow"
	$(MAKE) lint

# The rest of what every change must pass: more kills, ranks and processes, exports of graphs, each extra by itself; and what
# is no part of the package, in a small form: builders of corpora, every benchmark, our own
# plans and reports. Training on a simulated device takes a C++ compiler.
# Only files with such tests are collected: the others would take each worker ten seconds.
test-ci: $(VENV)/.dev
	$(PYTEST) $(WORKERS) -m ci $$(grep -rl --include='*.py' 'mark\.ci' tests | sed 's,/conftest.py,,')

# On a machine with an NVIDIA GPU: tests, and a measurement that writes runs/gpu.json; see docs/gpu.md.
test-gpu: $(VENV)/.dev
	$(PYTEST) -m gpu tests/test_gpu.py

bench-gpu: $(VENV)/.demo $(PEERS)/.installed
	$(BIN)/python benchmarks/gpu.py --peer-python $(PEERS)/bin/python --out runs

test-slow: $(VENV)/.docs
	$(PYTEST) -m slow --timeout 3600

# The index on a real Milvus server, and `--on ray` on a cluster of two workers that are killed. SLOW= runs the long forms,
# ONLY= the tests of some names.
test-milvus: $(VENV)/.milvus
	scripts/with_milvus.sh $(MILVUS)/bin/milvus-server $(PYTEST) -m "$(SLOW)" -k "$(ONLY)" -W ignore --timeout 3600 \
		$(addprefix tests/search/test_,index_store.py update.py portable.py milvus.py index_kills.py \
		photo_fields.py left_out.py)

test-ray: $(VENV)/.ray
	scripts/own_network.sh GRR_COCA_TEST_RAY=1 RAY_USAGE_STATS_ENABLED=0 $(PYTEST) -m "$(SLOW)" -k "$(ONLY)" -W ignore --timeout 3600 \
		tests/search/test_ray.py

# The page in Chromium, which must be installed: `apt-get install chromium`. npm fetches ONNX Runtime Web and axe-core once.
test-browser: $(VENV)/.browser
	GRR_COCA_TEST_BROWSER=1 $(PYTEST) -m "$(SLOW)" -k "$(ONLY)" --timeout 3600 tests/serve/page

servers-browser: $(VENV)/.browser
	(command -v chromium && command -v npm) > /dev/null || apt-get install --yes --quiet --no-install-recommends chromium npm
	$(BIN)/python -c "from grr_coca_serve.site import find_runtime; find_runtime()"

# A server under requests by grammar and pictures by mutation, for an hour from the request FIRST; prints what held. A request that went wrong is
# sent again by its number: `tests/serve/grammar.py --first NUMBER --count 1`.
SECONDS ?= 3600
FIRST ?= 0
ATTACK = $(SINGLE) nice -n 19 $(BIN)/python
attack: $(VENV)/.dev
	$(ATTACK) tests/serve/grammar.py --first $(FIRST) --seconds $(SECONDS)

# What one file does: drawings by grammar, pictures by mutation and with too many parts, and damaged indexes.
attack-drawings attack-pictures: attack-%: $(VENV)/.dev
	$(ATTACK) tests/core/data/file_attack.py $* --first $(FIRST) --seconds $(SECONDS)

attack-indexes: $(VENV)/.dev
	$(ATTACK) tests/search/damage.py --first $(FIRST) --seconds $(SECONDS)

# Clients of other projects against `grr-coca serve`: openai, litellm, langchain-openai, huggingface_hub, curl; and npm's
# inspector against `grr-coca mcp`, and npm's shadcn with a map of `match`, with a newer Node than that of Debian.
INSPECTOR := @modelcontextprotocol/inspector@0.15.0 node@22.23.3
SHADCN := shadcn@4.23.1
test-clients: $(VENV)/.dev $(CLIENTS)/.installed
	GRR_COCA_TEST_CLIENTS=$(CLIENTS)/bin/python $(PYTEST) -k "$(ONLY)" tests/serve/test_serve_clients.py \
		tests/icons/commands/test_shadcn.py

servers-clients: $(CLIENTS)/.installed
	command -v curl > /dev/null || apt-get install --yes --quiet --no-install-recommends curl

# What these two need, for continuous integration to try.
servers-milvus servers-ray: servers-%: $(VENV)/.%
	scripts/own_network.sh

# The tests of the core, where only what the core needs is installed.
test-core:
	$(PYTHON) -m venv --clear $(CORE)
	$(CORE)/bin/$(INSTALL) $(LOCKED) -e ".[train,report,hub,parquet,probe,export,test]"
	$(SINGLE) PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(CORE)/bin/python -m pytest $(WORKERS) -m "not slow" tests/core

# On any system, with any Python: index, captions, search, a server, a small training and its resume, without anything that
# only POSIX has. EXTRAS= does it without PyTorch, the server and drawings.
EXTRAS := serve,train,icons
TRY_EVERYWHERE = $(SINGLE) $(EVERYWHERE)/$(PROGRAMS)/python -m pytest --confcutdir tests/any_system tests/any_system
test-everywhere:
	$(PYTHON) -m venv --clear $(EVERYWHERE)
	$(EVERYWHERE)/$(PROGRAMS)/python -m $(INSTALL) $(LOCKED) -e ".$(if $(EXTRAS),[$(EXTRAS)])" pytest pytest-timeout pytest-xdist
	$(TRY_EVERYWHERE)

# The same with the newest version of each package.
test-newest: LOCKED :=
test-newest: test-everywhere

# The oldest versions that pyproject.toml allows, but for torch: a run of each basic use, pictures, drawings, the server and its
# tools, and graphs.
test-oldest:
	$(PYTHON) -m venv --clear $(OLDEST)
	$(PYTHON) scripts/oldest_pins.py > $(OLDEST)/pins.txt
	$(OLDEST)/bin/$(INSTALL) -c $(OLDEST)/pins.txt \
		-e ".[train,report,study,hub,parquet,probe,open-clip,timm,transformers,icons,serve,mcp,export,photos]" \
		pytest pytest-timeout pytest-xdist hypothesis beartype
	$(SINGLE) $(OLDEST)/bin/python -m pytest -W default tests/test_smoke.py tests/any_system
	$(SINGLE) $(OLDEST)/bin/python -m pytest -m "not slow and not ci" -W default tests/core/data/test_pictures.py \
		tests/icons/test_svg.py tests/core/infer/export/test_onnx.py tests/serve/test_serve_own.py tests/icons/tools/test_mcp.py \
		tests/icons/match

# By hand: the newest versions of everything, written into constraints.txt.
lock:
	$(PYTHON) -m venv --clear --upgrade-deps $(LOCK)
	$(LOCK)/bin/$(INSTALL) -e ".[dev,docs,paper,milvus,ray,browser]"
	grep -E "^(#|torch)" constraints.txt > $(LOCK)/constraints.txt
	$(LOCK)/bin/pip freeze --all --exclude-editable --exclude pip --exclude torch --exclude torchvision \
		| tr A-Z a-z | grep -v -E "^(nvidia-|cuda-|triton=)" | sort >> $(LOCK)/constraints.txt
	mv $(LOCK)/constraints.txt constraints.txt

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell *.md benchmarks docs examples recipes scripts src studies
	$(BIN)/mypy --num-workers $(JOBS)

# What continuous integration runs, whole.
ci:
	bash .ci/run

# The files of .github: valid by their schemas, and without the holes that zizmor knows. The Dockerfile, by hadolint.
check-workflows: $(RELEASE)/.installed
	$(RELEASE)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(RELEASE)/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(RELEASE)/bin/check-jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(RELEASE)/bin/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(RELEASE)/bin/zizmor --offline --persona pedantic .github
	$(RELEASE)/bin/hadolint Dockerfile

# The sdist and the wheel of the last commit, in dist/: built twice, equal byte for byte, and checked.
dist: $(RELEASE)/.installed
	scripts/build_dist.sh $(RELEASE)/bin

# All of a release but the upload: the changelog gets its date, in a commit of its own, and what is built of that is checked.
# With TAG=v0.1.0, nothing is committed, and the tag must be the version.
release: $(RELEASE)/.installed
	$(if $(TAG),,$(RELEASE)/bin/python scripts/date_changelog.py)
	$(MAKE) dist
	$(RELEASE)/bin/python scripts/check_release.py $(TAG)
	scripts/check_wheel.sh docs/drawings dist/*.whl
	scripts/try_installers.sh $(RELEASE)/bin dist/*.whl docs/drawings

coverage: $(VENV)/.dev
	$(PYTEST) $(WORKERS) -m "not slow or ci" -p pytest_cov --cov --cov-report term-missing

# The site, in docs/_build/html; a warning is an error.
docs: $(VENV)/.docs
	$(SINGLE) $(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html

# The page of results as a PDF with title, version, date, abstract and methods, in docs/_build.
paper: $(VENV)/.paper
	$(BIN)/python docs/make_paper.py

# The notebook with the outputs of a new run.
notebook: $(VENV)/.docs
	$(SINGLE) PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python docs/run_notebook.py

# One after the other, on an otherwise idle machine; one that fails does not keep the others from being run.
bench: $(VENV)/.demo $(PEERS)/.installed
	$(MAKE) --keep-going --jobs 1 $(BENCHMARKS:%=bench-%) bench-docs

bench-training: $(VENV)/.demo $(PEERS)/.installed
	$(BIN)/python benchmarks/training.py --peer-python $(PEERS)/bin/python

bench-captioning bench-imported: bench-%: $(VENV)/.demo $(PEERS)/.installed
	$(BIN)/python benchmarks/$*.py --peer-python $(PEERS)/bin/python

bench-serving: $(VENV)/.dev
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/serving.py

bench-remote: $(VENV)/.dev
	$(BIN)/python benchmarks/remote.py

bench-loader bench-order: bench-%: $(VENV)/.demo
	$(BIN)/python benchmarks/$*.py

# Those of ONNX graphs, which are exported first.
bench-engines bench-precision bench-busy bench-footprint: bench-%: $(VENV)/.dev
	$(SINGLE) $(BIN)/python benchmarks/$*.py

bench-search: $(VENV)/.demo
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/search_index.py

# The tables that were measured, put into docs/performance.md, and the numbers that other pages lack.
bench-docs: $(VENV)/.demo
	$(BIN)/python benchmarks/publish.py

# The figures of docs/results.md, whose text is held to the ledgers.
study-docs: $(VENV)/.dev
	$(SINGLE) $(BIN)/python studies/draw_results.py
	$(SINGLE) $(BIN)/python studies/check.py

# The model that ships under a name: trained by its recipe, measured, and written into the package with its card. A recipe
# with a text teacher gets its embeddings first.
weights: export OMP_NUM_THREADS := 1
weights: $(VENV)/.dev
	if grep -q '^teacher:' recipes/weights/$(NAME).yaml; then \
		$(BIN)/python scripts/text_teacher.py recipes/weights/$(NAME).yaml; \
	fi
	$(BIN)/grr-coca pretrain recipes/weights/$(NAME).yaml --out runs/weights-$(NAME) --resume
	$(BIN)/python scripts/ship.py runs/weights-$(NAME) $(NAME)

# The large corpus, in the user's cache, and the model `icons` trained on it.
icons: $(VENV)/.dev
	$(BIN)/python scripts/build_datasets icons
	$(MAKE) weights NAME=icons

# A site that searches open icon sets by meaning. ALL=--all takes all sets: 30 MB more to load.
icon-site: $(VENV)/.dev
	$(SINGLE) $(BIN)/python scripts/build_datasets/icon_site.py --out icon-site $(ALL)

# Everything that can be made again; `runs`, with what was trained, stays.
clean:
	rm -rf $(VENV) $(MILVUS) $(CLIENTS) $(PEERS) $(OLDEST) $(LOCK) $(EVERYWHERE) $(CORE) $(RELEASE) dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("%s is Python %s, and 3.11 or newer is needed: make PYTHON=python3.12, for example" % (sys.executable, sys.version.split()[0]))'
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.use: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/$(INSTALL) $(LOCKED) -e .
	touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/$(INSTALL) $(LOCKED) -e ".[train,report]"
	touch $@ $(VENV)/.use

$(VENV)/.page: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/$(INSTALL) $(LOCKED) -e ".[serve,icons]"
	touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/$(INSTALL) $(LOCKED) -e ".[dev]"
	touch $@ $(VENV)/.demo $(VENV)/.use $(VENV)/.page

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/$(INSTALL) $(LOCKED) -e ".[dev,docs]"
	touch $@

$(VENV)/.paper: $(VENV)/.dev
	$(BIN)/$(INSTALL) $(LOCKED) -e ".[dev,paper]"
	touch $@

$(VENV)/.milvus: $(VENV)/.dev $(MILVUS)/.installed
	$(BIN)/$(INSTALL) $(LOCKED) -e ".[milvus]"
	touch $@

$(MILVUS)/.installed:
	$(PYTHON) -m venv $(MILVUS)
	$(MILVUS)/bin/$(INSTALL) milvus==2.3.5
	touch $@

$(VENV)/.browser: $(VENV)/.dev
	$(BIN)/$(INSTALL) $(LOCKED) -e ".[browser]"
	touch $@

$(VENV)/.ray: $(VENV)/.dev
	$(BIN)/$(INSTALL) $(LOCKED) -e ".[ray]"
	touch $@

# All that goes into this environment, at once: each installation more takes ten seconds.
$(VENV)/.all: $(VENV)/.dev
	$(BIN)/$(INSTALL) $(LOCKED) -e ".[dev,docs,paper,milvus,ray,browser]"
	touch $@ $(VENV)/.docs $(VENV)/.paper $(VENV)/.milvus $(VENV)/.ray $(VENV)/.browser

$(CLIENTS)/.installed: tests/serve/clients.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/$(INSTALL) -r tests/serve/clients.txt
	npm install --prefix $(CLIENTS) --silent $(INSPECTOR) $(SHADCN) || echo "NOT TESTED: the inspector of MCP and shadcn cannot be had here"
	touch $@

$(RELEASE)/.installed: scripts/release_tools.txt
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/$(INSTALL) -r scripts/release_tools.txt
	touch $@

$(PEERS)/.installed: $(VENV)/.demo benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/$(INSTALL) -r benchmarks/peers.txt \
		"torch==$$($(BIN)/python -c 'import torch; print(torch.__version__.partition("+")[0])')"
	touch $@
