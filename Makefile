# The two commands of a new checkout: `make demo` and `make test`. Both work again on a second run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RECIPE := recipes/quickstart

# $(call step,NAME,COMMAND): run a command; when it fails, say which one did and stop with its exit status.
step = @printf '== %s\n' '$(1)'; $(2) || { status=$$?; printf 'error: make: "%s" failed with exit status %s; what it said is above\n' '$(1)' $$status >&2; exit $$status; }

.DEFAULT_GOAL := help
.PHONY: help install demo test lint clean

help: ## Show what can be made.
	@printf 'usage: make TARGET [PYTHON=python3.12]\n\n'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' Makefile

install: $(STAMP) ## Install into .venv, and no more.

demo: $(STAMP) ## Install, then prepare, train, decode, score and audit the quickstart recipe.
	@printf '== smoe run in $(RECIPE)\n'
	@cd $(RECIPE) && '$(CURDIR)/$(BIN)/smoe' run; status=$$?; \
	case $$status in \
	0|1) printf '\nreport: %s\naudit:  %s\n' '$(RECIPE)/exp/scores/report.html' '$(RECIPE)/exp/audit/audit.html';; esac; \
	case $$status in \
	0) ;; \
	1) printf 'error: the audit has findings; the page and the lines above name them\n' >&2; exit 1;; \
	*) printf 'error: make: "smoe run" failed with exit status %s; what it said is above\n' $$status >&2; exit $$status;; esac

test: $(STAMP) ## Install, then run every test.
	$(call step,pytest,$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile)

lint: $(STAMP) ## Install, then check style, import rules and types.
	$(call step,ruff check,$(BIN)/python -m ruff check .)
	$(call step,ruff format --check,$(BIN)/python -m ruff format --check .)
	$(call step,mypy,$(BIN)/python -m mypy)

# The stamp is written last, so that an installation that was cut short is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { printf 'error: no `%s` on PATH\n\nhint: name a Python of 3.11 or newer: make PYTHON=python3.11 ...\n' '$(PYTHON)' >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { printf 'error: %s is %s; smoe needs 3.11 or newer\n\nhint: name another: make PYTHON=python3.11 ...\n' '$(PYTHON)' "$$($(PYTHON) -V 2>&1)" >&2; exit 2; }
	$(call step,create $(VENV),$(PYTHON) -m venv $(VENV))
	$(call step,install smoe into $(VENV) (a few minutes and about 5 GB the first time),$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]')
	@touch $@

clean: ## Remove the environment, builds, caches and the recipes' experiments.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache recipes/*/exp recipes/*/exp-*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
