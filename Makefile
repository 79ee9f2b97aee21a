# Two commands do all set-up on a fresh machine with Python >= 3.11 (venv), make and git:
#   make demo    slim the demo model and print the report
#   make test    lint, types, tests (no torch)
# Each has its own virtual environment, installed again only when pyproject.toml changes.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
PYTEST_ARGS ?=
EXTRA ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)

# The two ONNX Runtime wheels overwrite each other: whichever of them EXTRA does not name has to go first.
CLASHING = $(if $(filter gpu,$(EXTRA)),onnxruntime,onnxruntime-gpu)
STAMP = .installed

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-torch check clean

demo: .venv/$(STAMP)-$(EXTRA)
	.venv/bin/python tools/demo.py

test: check
	.venv-test/bin/python -m pytest -m "not torch" $(PYTEST_ARGS)

test-torch: .venv-torch/$(STAMP)
	.venv-torch/bin/python -m pytest -m torch tests/exporters tests/test_device.py $(PYTEST_ARGS)

check: .venv-test/$(STAMP)
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy

clean:
	rm -rf .venv .venv-test .venv-torch build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/$(STAMP)-$(EXTRA): pyproject.toml
	rm -f .venv/$(STAMP)-*
	$(PYTHON) -m venv .venv
	.venv/bin/pip uninstall -q -y $(CLASHING)
	.venv/bin/pip install -q -e '.[$(EXTRA)]'
	touch $@

.venv-test/$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install -q -e '.[cpu,dev]'
	touch $@

# torch goes first and torchvision without dependencies, so that nothing replaces the torch build that was asked for.
# The newer exporter needs onnxscript.
.venv-torch/$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/pip install -q '$(TORCH)'
	.venv-torch/bin/pip install -q --no-deps '$(TORCHVISION)' pillow
	.venv-torch/bin/pip install -q -e '.[cpu,dev]' onnxscript
	touch $@
