# Python 3.11 or newer, any name of it
PYTHON ?= python3

.PHONY: help demo test

help:
	@echo 'make demo   try it: a local R2, a database, a worker and the admin, with example data'
	@echo 'make test   every check; ARGS="-k name" goes to pytest'

# `exec`, so that a signal that make hands on reaches Python and not a shell.
demo test:
	@$(PYTHON) -m devtools.install
	@exec .venv/bin/python -m devtools.$@ $(ARGS)
