# `make demo` and `make test` each build .venv from nothing (once), then do their job.
#
#   make demo          train the starter pair, ask it, write a page
#   make test          all tests but those marked long, in two processes (WORKERS=4: in four)
#   make test-fast     while you work: without those marked slow too, under 90 s on two cores
#   make test-long     those marked long
#   make test-kill     kill 300 runs at any moment (KILLS=30: 30): each must end as if it never was (docs/reliability.md)
#   make test-serve    ten minutes of made and damaged requests to the server (MINUTES=1: one): never a 500
#   make test-kill-annotate   kill 100 calls of `visgraft annotate`: every row once (docs/annotate.md)
#   make test-ray      actors on Ray label as one process does, and are killed too, in an environment that has Ray
#   make test-oldest   all but what needs tools of development, with the oldest releases that pyproject.toml allows
#   make test-oldest-fast   the model and the data with them, in five minutes (TORCH=2.13.0: with this torch)
#   make test-newest   all with the newest releases there are (TORCH=... as above)
#   make test-elsewhere   without what Linux alone has: SIGUSR1, SIGHUP, fcntl, resource, /proc (docs/compatibility.md)
#   make test-coco     captions' tokens and scores beside COCO's own programs (needs Java)
#   make test-lmms-eval  lmms-eval, as it is, asks a model of ours and counts as many right answers as we do
#   make test-scripts  scores of short answers beside copies of the field's scripts that lmms-eval carries
#   make test-libraries   trl's own data path for images, and all that stands around, with their newest releases
#   make test-peer     transformers' own tests of models and processors, on ours (docs/compatibility.md)
#   make test-timm     encoders of timm, in an environment that has it
#   make gpu           on a machine with a GPU, 8 minutes: bench/gpu.py for two models, and the tests marked gpu
#   make sweep         every language model and vision class of transformers: joined, or why not (docs/models.md; 20 minutes)
#   make lint types    format and style, of shell scripts too; strict types
#   make check         lint, types, test
#   make map           write the file map of docs/architecture.md and the pages of docs/reference/ again
#   make docs          the documentation as pages, in build/docs
#   make notebook      run docs/notebooks from top to bottom in a kernel; build/notebooks holds them with their outputs
#   make wheel         build the package, install it into an empty environment and try it there

PYTHON ?= python3
COMMA := ,
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
NEWEST := .venv-newest
# of test-oldest, test-oldest-fast and test-newest; PyPI has builds of torch for Linux that bring gigabytes of CUDA along
TORCH ?=
COCO := .venv-coco
LMMS := .venv-lmms-eval
SCRIPTS := .venv-scripts
TIMM := .venv-timm
RAY := .venv-ray
LIBRARIES := .venv-libraries
PEER := transformers-5.23.0
DOCS := .venv-docs
NOTEBOOK := .venv-notebook
BUILD := .venv-build
WHEEL := .venv-wheel
WORKERS ?= 2
KILLS ?= 300
MINUTES ?= 10
# worksteal: each process gets half of the tests in their order, so that a file's fixtures are mostly made once, and at
# the end the one that is done takes over what the other still has to do
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

.PHONY: test-oldest-fast test-newest test-elsewhere
.PHONY: demo test test-fast test-long test-kill test-serve test-oldest test-coco test-lmms-eval test-scripts test-timm
.PHONY: gpu sweep lint types check map docs notebook wheel clean test-kill-annotate test-ray
.PHONY: test-libraries test-peer

demo: $(STAMP)
	$(BIN)/visgraft demo

test: $(STAMP)
	$(PYTEST) -m "not long"

test-fast: $(STAMP)
	$(PYTEST) -m "not slow and not long"

test-long: $(STAMP)
	$(BIN)/python -m pytest -q -m long

# TINY=1 rehearses every line of it on a CPU
gpu: $(STAMP)
	PYTHONPATH=. $(BIN)/python bench/gpu.py --models llama-2-7b opt-350m --mixes m3it \
		--rungs unpadded shared blocks compile --rounds 2 --minutes 5 $(if $(TINY),--device cpu --tiny --images 4)
	$(if $(TINY),VISGRAFT_REHEARSE=1) timeout 180 $(BIN)/python -m pytest -q -m gpu tests/gpu

test-kill: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.training.kill_many --kills $(KILLS)

test-serve: $(STAMP)
	VISGRAFT_SERVE_MINUTES=$(MINUTES) $(BIN)/python -m pytest -q tests/serving/test_contract.py

test-kill-annotate: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.annotate.kill_many --kills 100

test-ray: $(RAY)/.installed
	PYTHONPATH=. $(RAY)/bin/python -m pytest -q tests/annotate
	PYTHONPATH=. OMP_NUM_THREADS=1 $(RAY)/bin/python -m tests.annotate.kill_many --kills 20 --minutes 10 --only ray

# The oldest releases that pyproject.toml allows, in an environment of their own. What asks the server with clients, looks
# at pages, or reads this repository alone does so with one release of each tool.
OF_TOOLS := tests/serving tests/bench tests/timm_encoders tests/reporting tests/test_house.py tests/test_docs.py
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -q -m "not long" tests $(addprefix --ignore=,$(OF_TOOLS))

test-oldest-fast: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -q -m "not slow and not long" tests/model tests/data tests/test_processor.py

# no constraints: what pip takes today, so that a release that breaks something is known before a user meets it
test-newest: $(NEWEST)/.installed
	$(NEWEST)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not long"

# a plugin takes them away before anything is imported (tests/elsewhere.py)
test-elsewhere: $(STAMP)
	$(BIN)/python -m pytest -q -p tests.elsewhere -m "not long" $(ELSEWHERE)

# captions' tokens and scores beside COCO's own programs, in an environment of their own; no torch is needed
test-coco: $(COCO)/.installed
	PYTHONPATH=. $(COCO)/bin/python -m tests.metrics.compare_coco

# lmms-eval requires much that a local task does not import, torchvision among it: here it is installed without
test-lmms-eval: $(LMMS)/.complete
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(LMMS)/bin/python tests/evaluation/compare_lmms_eval.py

# without what lmms-eval requires: only single functions of it are run
test-scripts: $(SCRIPTS)/.installed
	PYTHONPATH=. $(SCRIPTS)/bin/python -m tests.metrics.compare_scripts

# timm imports torchvision, whose compiled part needs a PyTorch built for CUDA; the tests define its operators themselves
test-timm: $(TIMM)/.complete
	$(TIMM)/bin/python -m pytest -q tests/timm_encoders

# the newest trl and peft, beside the torch and transformers that constraints.txt names
test-libraries: $(LIBRARIES)/.complete
	HF_HUB_OFFLINE=1 $(LIBRARIES)/bin/python -m pytest -q tests/convert/test_at_home.py tests/convert/test_libraries.py \
		tests/test_registration.py

# its source distribution is unpacked into build/, never copied
test-peer: $(LIBRARIES)/.complete build/peer/$(PEER)
	HF_HUB_OFFLINE=1 PYTHONPATH=. $(LIBRARIES)/bin/python -W ignore tests/peer/run_peer.py build/peer/$(PEER)

sweep: $(STAMP)
	PYTHONPATH=. $(BIN)/python bench/sweep.py -o bench/results/sweep.json
	$(BIN)/python -m tests.sweep_encoders --json bench/results/sweep_encoders.json
	PYTHONPATH=. $(BIN)/python bench/models_page.py

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/shellcheck .ci/run .ci/chromium visgraft/recipes/launch/slurm.sh

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

# from the first lines of the files
map: $(STAMP)
	$(BIN)/python docs/make_reference.py
	$(BIN)/python tests/test_house.py --fix

# a warning is an error; nothing is fetched from the net
docs: $(DOCS)/.installed
	$(DOCS)/bin/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

notebook: $(NOTEBOOK)/.installed
	mkdir -p build/notebooks
	$(NOTEBOOK)/bin/jupytext --to ipynb -o build/notebooks/first_model.ipynb docs/notebooks/first_model.py
	cd build/notebooks && ../../$(NOTEBOOK)/bin/jupyter execute --inplace first_model.ipynb
	@echo build/notebooks/first_model.ipynb

# what users get: built from the sources alone, installed into an environment that has nothing else, tried elsewhere
wheel: $(BUILD)/.installed
	rm -rf dist $(WHEEL) build/elsewhere && mkdir -p build/elsewhere
	$(BUILD)/bin/python -m build --outdir dist .
	$(BUILD)/bin/python tests/check_wheel.py dist
	$(call install,$(WHEEL),constraints.txt,dist/*.whl)
	cd build/elsewhere && ../../$(WHEEL)/bin/python ../../tests/check_wheel.py --installed
	@ls dist/*

# install(environment, constraints, what)
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "visgraft needs Python 3.11 or newer; name one: make PYTHON=python3.11 ..." >&2; exit 2; }
$(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) $(3)
@touch $(1)/.installed
endef

$(STAMP): pyproject.toml constraints.txt
	$(call install,$(VENV),constraints.txt,-e '.[dev]')

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	@mkdir -p build
	sed $(if $(TORCH),'s/^torch==.*/torch==$(TORCH)/',-n p) constraints-oldest.txt > build/constraints-oldest.txt
	$(call install,$(OLDEST),build/constraints-oldest.txt,-e '.[video]' pytest)

$(NEWEST)/.installed: pyproject.toml
	@mkdir -p build
	echo $(if $(TORCH),'torch==$(TORCH)') > build/constraints-newest.txt
	$(call install,$(NEWEST),build/constraints-newest.txt,-e '.[dev]')

$(COCO)/.installed: pyproject.toml constraints.txt
	$(call install,$(COCO),constraints.txt,numpy 'pycocoevalcap>=1.2')

$(LMMS)/.installed: pyproject.toml constraints.txt
	$(call install,$(LMMS),constraints.txt,-e .)

LMMS_NEEDS := evaluate httpx jsonlines aiohttp numexpr pytablewriter sacrebleu scikit-learn einops ftfy openai hf_transfer \
	nltk sentencepiece tqdm-multiprocess zstandard latex2sympy2 openpyxl loguru tenacity tiktoken zss protobuf python-dotenv \
	math-verify opencv-python-headless

$(LMMS)/.complete: $(LMMS)/.installed
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check $(LMMS_NEEDS)
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps lmms-eval==0.7.3 wandb==0.25.0
	@touch $@

$(SCRIPTS)/.installed: constraints.txt
	$(call install,$(SCRIPTS),constraints.txt,--no-deps numpy lmms-eval==0.7.3)

$(TIMM)/.installed: pyproject.toml constraints.txt
	$(call install,$(TIMM),constraints.txt,-e '.[video]' pytest)

$(TIMM)/.complete: $(TIMM)/.installed
	$(TIMM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps timm==1.0.31 torchvision==0.28.0
	@touch $@

$(RAY)/.installed: pyproject.toml constraints.txt
	$(call install,$(RAY),constraints.txt,-e '.[ray]' pytest)

$(LIBRARIES)/.installed: pyproject.toml constraints.txt
	$(call install,$(LIBRARIES),constraints.txt,-e . pytest parameterized)

$(LIBRARIES)/.complete: $(LIBRARIES)/.installed
	$(LIBRARIES)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade trl peft
	@touch $@

build/peer/$(PEER):
	mkdir -p build/peer
	$(PYTHON) -m pip download --quiet --no-deps --no-binary transformers transformers==$(PEER:transformers-%=%) -d build/peer
	tar -xzf build/peer/$(PEER).tar.gz -C build/peer

$(DOCS)/.installed: pyproject.toml constraints.txt
	$(call install,$(DOCS),constraints.txt,-e '.[docs$(COMMA)serve]')

$(NOTEBOOK)/.installed: pyproject.toml constraints.txt
	$(call install,$(NOTEBOOK),constraints.txt,-e '.[notebook]')

$(BUILD)/.installed:
	$(call install,$(BUILD),constraints.txt,build)

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(COCO) $(LMMS) $(SCRIPTS) $(TIMM) $(RAY) $(LIBRARIES) $(DOCS) $(NOTEBOOK) $(BUILD) $(WHEEL) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
