# make demo    the whole workflow on synthetic tissue: release, preparation, training, test, report, overlays
# make test    run the tests
# make test-cuda  run the tests that need an NVIDIA GPU
# make setup   install into .venv only
# make lint    run ruff
# make clean   remove everything that these targets created
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := work_dirs/demo
CONFIG := configs/segformer/segformer_mit-b0_1xb8-demo_ignite-256x256.py

.PHONY: demo test test-cuda setup lint clean
.DELETE_ON_ERROR:

$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
# opencv-python needs libGL, which machines without a display may lack. Install the headless build there.
	$(BIN)/python -c 'import cv2' 2>/dev/null || { $(BIN)/python -m pip uninstall -q -y opencv-python && \
	  $(BIN)/python -m pip install -q -c constraints.txt opencv-python-headless; }
	touch $@

setup: $(VENV)/installed

# Each step writes its file only when complete, so a second call repeats only what is missing.
$(DEMO)/release/data_overview.csv: | $(VENV)/installed
	$(BIN)/python tools/make_synthetic_release.py --out $(DEMO)/release --rois 80 --patients 20 --size 384x384 --seed 1

$(DEMO)/ignite/index.json: $(DEMO)/release/data_overview.csv
	$(BIN)/python tools/prepare_ignite.py --release $(DEMO)/release --out $(DEMO)/ignite

$(DEMO)/trained: $(DEMO)/ignite/index.json
	$(BIN)/python tools/train.py $(CONFIG) --work-dir $(DEMO)/segformer --resume
	touch $@

$(DEMO)/segformer/report.html: $(DEMO)/trained
	$(BIN)/python tools/test.py $(CONFIG) $(DEMO)/segformer \
	  --work-dir $(DEMO)/segformer --out $(DEMO)/overlays

demo: $(DEMO)/segformer/report.html
	@cat $(DEMO)/segformer/metrics.txt
	@echo "report: $(DEMO)/segformer/report.html    overlays of the test ROIs: $(DEMO)/overlays"

test: $(VENV)/installed
# Two processes with one thread each are faster than one with two. A test file stays in one process, with its fixtures.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-cuda: $(VENV)/installed
# Two processes share the GPU; CUDA_TESTS are options of pytest, e.g. "-n 8" or "tests/models".
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cuda -n 2 --dist loadfile $(CUDA_TESTS)

lint: $(VENV)/installed
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
