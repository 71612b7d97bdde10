# Python 3.11 or newer, any name of it
PYTHON ?= python3
VENV ?= .venv

.PHONY: help demo check test-fast test test-crash test-mutants screenshots bench

define HELP
make demo          try it: a local R2, a database, a worker and the admin, with example data
make check         linters, types, imports, migrations; before each commit
make test-fast     the tests that need no store, no browser and no other process; as you write
make test          every check, all tests on PostgreSQL, and on SQLite those about the database
make test-crash    kill everything again and again, and prove that nothing is lost (takes half an hour)
make test-mutants  break one rule after the other, and see that its test fails
make bench         how fast it is, beside what others use; an hour and more, or ARGS=--quick
make screenshots   a picture of each page of the admin; ARGS is the folder for them
make help          this text, as bare `make` does

Each installs first what it needs and does not find, into this folder.

variables:
  PYTHON    the Python to work with, 3.11 or newer (default: python3)
  VENV      the folder of its packages, one for each Python (default: .venv)
  ARGS      arguments of the target; ARGS=--help shows which there are

examples:
  make demo ARGS=--once
  make test ARGS="-k lease"
  make test PYTHON=python3.13 VENV=.venv-3.13

Next: README.md, and CONTRIBUTING.md if you want to change something.
endef

help:
	$(info $(HELP))
	@:

# `exec`, so that a signal that make hands on reaches Python and not a shell.
demo test test-mutants screenshots:
	@$(PYTHON) -m devtools.install $(VENV)
	@exec $(VENV)/bin/python -m devtools.$(@:test-%=%) $(ARGS)

check test-fast:
	@$(PYTHON) -m devtools.install $(VENV)
	@exec $(VENV)/bin/python -m devtools.test --only $(@:test-%=%) $(ARGS)

test-crash:
	@$(PYTHON) -m devtools.install $(VENV)
	@exec $(VENV)/bin/python -m tests.crash $(ARGS)

bench:
	@$(PYTHON) -m devtools.install $(VENV)
	@exec $(VENV)/bin/python -m benchmarks $(ARGS)
