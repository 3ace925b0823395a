# Every target works in a fresh clone: the first one to run creates .venv, later ones need no network.
#
#   make install      .venv with everything
#   make test         the tests but for the slow ones, about five minutes on two cores
#   make test-all     all tests; those that are not slow with shapes and types of what they call checked
#   make check        lint, formatting, types
#   make docs         the documentation into build/site/index.html
#   make report       measure at the quick scale and check the claims into build/records, typeset into build/reports
#   make report-full  measure at full scale, check the claims and rewrite everything under reports/
#   make report-sd    run section 5 of the paper on the tiny Stable Diffusion and rewrite its report under reports/
#   make clean        remove build/ (make distclean: .venv as well)

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/installed-from
STAMP_SD := $(VENV)/installed-sd-from
# Neighbouring tests stay on one worker, so that what a file prepares is made once.
PYTEST := $(RUN) -m pytest -n $(WORKERS) --dist worksteal
STUDIES := convergence
FULL := convergence tightness guidance guidance_network linear pendulum mixture training variance lq_sweeps socm fixed_points flow_budget sde_ode

export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE
# Bytecode is kept, or every worker and every process that a test starts would compile all sources anew.
export PYTHONDONTWRITEBYTECODE :=

.DELETE_ON_ERROR:
.PHONY: install test test-all check format docs report report-full report-sd clean distclean

install: $(STAMP_SD)

test: $(STAMP_SD)
	$(PYTEST) -m "not slow"

test-all: $(STAMP_SD)
	$(PYTEST) -m "not slow" --shapes
	$(PYTEST) -m slow

check: $(STAMP_SD)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

format: $(STAMP)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(STAMP_SD)
	$(RUN) -m mkdocs build --strict --quiet
	@echo 'build/site/index.html'

report: $(STAMP)
	$(call measure,$(STUDIES),--quick,build/records,build/reports)

report-full: $(STAMP)
	$(call measure,$(FULL),,reports/records,reports)

report-sd: $(STAMP_SD)
	$(RUN) -m socft.cli sd costate-size --workers $(WORKERS) --out reports/records
	$(RUN) -m socft.cli sd gradient-norm --workers $(WORKERS) --out reports/records
	$(RUN) -m socft.cli sd benchmark --config sd_experiments/configs/tiny.toml --out reports/records
	$(RUN) -m socft.cli sd reproduce --variants --workers $(WORKERS) --out reports/records --reports reports

# Studies, scale, folder of the records, folder of the reports. Claims that fail are in the report too, which is typeset before make stops.
define measure
set -e; for study in $(1); do \
  $(RUN) -m socft.cli toy $$study $(2) --workers $(WORKERS) --out $(3); done; \
claims=0; $(RUN) -m socft.cli verify --workers $(WORKERS) --out $(3) || claims=$$?; test $$claims -le 1 || exit $$claims; \
$(RUN) -m socft.cli report --records $(3) --out $(4); exit $$claims
endef

# An environment made for another folder is brought up to date too.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("socft needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@$(RUN) -c '' 2>/dev/null || rm -rf $(VENV)
	@echo 'socft: installing what pyproject.toml asks for into $(VENV), which takes some minutes'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cluster,dev,docs,plot,report]'
	@echo '$(CURDIR)' > $@

# Stable Diffusion is needed by its tests and by the type checker alone.
$(STAMP_SD): $(STAMP)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[sd]'
	@echo '$(CURDIR)' > $@

clean:
	rm -rf build

distclean: clean
	rm -rf $(VENV)
