# Two commands do all the set-up: `make demo` runs the main job on embedded data, `make test` passes the tests. `make report` renders what was recorded.
# Each makes .venv and installs everything first; it needs Python 3.11 or newer, git and make.

.DELETE_ON_ERROR:
.PHONY: demo test test-paper report site check-results notebooks clean

VENV := .venv
PY := $(VENV)/bin/python
# the first Python that is new enough and can make a virtual environment; PYTHON=… overrides
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
DEMO := _demo
PROFILE ?= strong
FIGURES ?= figures

$(VENV)/installed: settings.ini setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv was found; install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): a few minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/installed
	@mkdir -p $(DEMO)
	@echo "Training the four rows of Table 6 on drawn faces, two seeds: about eight minutes on two cores"
	@WAE_NB_TERMINAL=$$(tty -s && tty || true) $(VENV)/bin/papermill nbs/05_cacd.ipynb $(DEMO)/05_cacd.ipynb -p runs_dir $(DEMO)/runs -p figures_dir $(DEMO)/figures --cwd . --progress-bar --log-level WARNING
	@echo; cat $(DEMO)/figures/strong/table6-demo-faces-vgg16_bn.md; echo; cat $(DEMO)/figures/strong/compared-demo-faces-vgg16_bn.md
	@echo; echo "The executed notebook: $(DEMO)/05_cacd.ipynb   (open it: $(VENV)/bin/jupyter lab $(DEMO)/05_cacd.ipynb)"

test: $(VENV)/installed
	$(VENV)/bin/ruff check .
	OMP_NUM_THREADS=1 $(VENV)/bin/nbdev_test --n_workers 2
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile $(addprefix --ignore tests/test_,cli.py export.py face.py front_page.py quantise.py takeaway.py timing.py tradeoff.py)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile tests/test_export.py tests/test_face.py tests/test_front_page.py tests/test_quantise.py  # engines bring threads and OpenMPs of their own:
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile tests/test_tradeoff.py tests/test_cli.py  # not in a process that trains afterwards
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/test_takeaway.py
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal tests/test_timing.py

# the paper's own recipe at full width and 224 px, a few updates of every stage: half an hour on two cores, below 20 GB
test-paper: $(VENV)/installed
	$(PY) -m pytest -m slow -s

# every table from the records, PROFILE=strong, small or paper; fails where a record is refused, after the page is written
report: $(VENV)/installed
	@$(PY) -c "from wae_nb.cli import main; main(prog_name='wae')" report --profile $(PROFILE) --figures $(FIGURES)

# every notebook, README and the report as HTML pages in _site/, every link checked; needs no network to read
site: $(VENV)/installed
	@rm -rf _site
	@$(PY) -m wae_nb.lab.site _site

# one seed of three rows of Table 6, trained again and compared with the committed records: minutes
check-results: $(VENV)/installed
	$(PY) figures/check_results.py

# the committed notebooks with outputs, the figures and README's tables, from real runs
notebooks: $(VENV)/installed
	$(VENV)/bin/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=-1 nbs/*.ipynb nbs/lib/*/*.ipynb
	$(VENV)/bin/nbdev_clean
	$(PY) figures/make_readme.py
	$(PY) figures/make_times.py

clean:
	rm -rf $(VENV) $(DEMO) _site figures/*/report.html *.egg-info .pytest_cache .ruff_cache
