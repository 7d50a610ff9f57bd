# Two commands: `make course` runs the whole course, `make test` checks it.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
COURSE = data/runs/course
AUDIT = .venv-audit
CODE = dasd_utils benchmarks docs/*.py tests/audit.py
PROCESSES ?= 2  # that share the tests, one thread each
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# a test that hangs is named and ended, and its process not started anew
NAMED = --max-worker-restart 0 -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true
LADDER = $(BIN)/dasd ladder --seeds 0,1,2 --workers 2
ADAPT = $(BIN)/dasd adapt --workers 2
CONDITIONAL = --against "DomainStudio, no losses" --only base --only "base + style words" \
	--only "LoRA + token" --only "DomainStudio, no losses" --only "DomainStudio, mild" --only DomainStudio \
	--only "DomainStudio, L_img" --only "DomainStudio, L_hf" --only "DomainStudio, L_hfmse"
WHOLE = --only "DomainStudio, no losses, whole UNet" --only "DomainStudio, whole UNet"
UNCONDITIONAL = --against "DomainStudio, no losses, unconditional" --only "base, unconditional" \
	--only "DomainStudio, no losses, unconditional" --only "DomainStudio, mild, unconditional"

.PHONY: install course rehearsal study test browser audit hooks notebooks report docs book clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# two notebooks at a time, with a thread each; those of the second line load the run that 04 trains.
# A command started with & ignores Ctrl-C: the trap stops it.
LESSONS = OMP_NUM_THREADS=1 $(BIN)/dasd notebooks --profile tiny --output_dir $(COURSE) --force --only
course: install
	$(LESSONS) 04,12 & trap "kill $$!" INT TERM; $(LESSONS) 00,01,02,03,08,09,10; status=$$?; wait $$! && exit $$status
	$(LESSONS) 05,06,07 & trap "kill $$!" INT TERM; $(LESSONS) 11,solutions; status=$$?; wait $$! && exit $$status

rehearsal: install  # every notebook with sd15 on a narrow random base: minutes on a CPU
	rm -rf data/runs/rehearsal && mkdir -p data/runs/rehearsal
	OMP_NUM_THREADS=1 $(BIN)/python tests/rehearsal.py data/runs/rehearsal

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) $(NAMED) -m "not browser"
	$(PYTEST) --nbval-lax --nbval-current-env --nbval-cell-timeout=1500 notebooks
	$(MAKE) rehearsal

browser: $(VENV)/.browser  # the pages, clicked through in an installed Chromium or Chrome
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet tests/apps/test_browser.py

$(VENV)/.browser: $(VENV)/.installed requirements-browser.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-browser.txt
	touch $@

audit: $(AUDIT)/.installed
	$(AUDIT)/bin/bandit --quiet --recursive --configfile pyproject.toml $(CODE) && echo "bandit: nothing found"
	$(AUDIT)/bin/python tests/audit.py requirements.txt
	$(AUDIT)/bin/python tests/audit.py docs/requirements.txt

$(AUDIT)/.installed: Makefile
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet bandit==1.9.4 pip-audit==2.10.1
	touch $@

hooks: install
	$(BIN)/python -m pip install --quiet pre-commit==4.7.0
	$(BIN)/pre-commit install

study: install  # hours
	$(LADDER) --profile tiny
	$(BIN)/dasd sweep data/configs/alignment_sweep.json --notebook 12 --workers 2
	cp data/runs/ladder/ladder.json data/runs/ladder/calibration_search.json data/results
	cp data/runs/sweep/12_alignment.json data/results/alignment_sweep.json
	$(LADDER) --config data/configs/ten_shots.json $(CONDITIONAL) $(WHOLE)
	$(LADDER) --config data/configs/many_shots.json $(CONDITIONAL)
	$(LADDER) --config data/configs/ten_sketches.json $(UNCONDITIONAL)
	$(LADDER) --config data/configs/ten_xrays.json $(UNCONDITIONAL)
	$(BIN)/dasd front --config data/configs/guidance.json --seeds 0,1,2 --workers 2
	cp data/runs/guidance/front.json data/results/guidance.json
	$(ADAPT) --config data/configs/diffusionclip.json --target toyworld:sketch --seeds 0,1,2,3,4 --num_images 240
	cp data/runs/diffusionclip/adaptation.json data/results
	$(ADAPT) --config data/configs/diffusionclip_published.json --target toyworld:sketch --seeds 0 --num_images 240
	cp data/runs/diffusionclip/adaptation.json data/results/adaptation_published.json
	for name in satellite xray; do \
		$(ADAPT) --config data/configs/diffusionclip_$$name.json --target toyworld:$$name --seeds 0 || exit 1; \
		cp data/runs/diffusionclip/adaptation.json data/results/adaptation_$$name.json || exit 1; done
	$(LADDER) --config data/configs/long_ladder.json --only base --only "base + style words" \
		--only "LoRA + token" --only DASD
	for name in long_ladder ten_shots many_shots ten_sketches ten_xrays; do \
		cp data/runs/$$name/ladder.json data/results/$$name.json || exit 1; done

notebooks: install  # without --all only those that need it
	$(BIN)/python tests/freshness.py --renew --all

report: install
	$(BIN)/python Report/make_numbers.py
	@command -v latexmk >/dev/null || { echo "latexmk is missing: install TeX Live (Debian: latexmk texlive-latex-extra texlive-fonts-recommended)"; exit 1; }
	cd Report && latexmk -pdf -interaction=nonstopmode main.tex

docs book: $(VENV)/.docs
	rm -rf docs/_build
	$(BIN)/python docs/collect.py
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --jobs 2 -c docs -d docs/_build/doctrees \
		docs/_build/source docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html
	@echo "the site is in docs/_build/html/index.html"

$(VENV)/.docs: $(VENV)/.installed docs/requirements.txt
	$(BIN)/python -m pip install --quiet --requirement requirements.txt --requirement docs/requirements.txt
	touch $@

clean:
	rm -rf $(COURSE) data/runs/rehearsal docs/_build  # other runs are the user's
	find data/cache -mindepth 1 -maxdepth 1 ! -name 'pretrain*' ! -name tiny-strict -exec rm -rf {} + 2>/dev/null || true  # hours of work
