# make run    a real chat on the bundled demo model       make test   the whole test suite
# make lint   ruff and mypy                               make bench  boot and throughput figures
# make venv   only the environment             make gpu-check   all that needs an NVIDIA GPU

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Where torch comes from on a machine without an NVIDIA GPU; falls back to the default index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: run test lint bench gpu-check venv demo-model clean

run: $(VENV)/.runtime
	@$(BIN)/python handler.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/boot.py
	$(BIN)/python benchmarks/throughput.py

# With GPU_PYTHON, a Python that has torch and triton already, nothing is installed.
ifdef GPU_PYTHON
gpu-check:
	PYTHONPATH=src:kernels:. $(GPU_PYTHON) benchmarks/gpu_check.py
else
gpu-check: $(VENV)/.dev
	$(BIN)/python benchmarks/gpu_check.py
endif

venv: $(VENV)/.dev

demo-model: $(VENV)/.dev
	$(BIN)/python -m builder.demo_model

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Two stamps, so that `make run` does not install what only the tests need.
$(VENV)/.runtime: pyproject.toml constraints.txt builder/environment.py
	@$(PYTHON) builder/environment.py $(VENV) runtime $(TORCH_INDEX)
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@$(PYTHON) builder/environment.py $(VENV) dev $(TORCH_INDEX)
	@touch $@
