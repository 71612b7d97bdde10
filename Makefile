# Python 3.11 or newer, any name of it
PYTHON ?= python3
VENV ?= .venv

.PHONY: help install demo docs check check-protocol test-fast test test-crash test-mutants screenshots animation bench

define HELP
make demo            try it: a local R2, a database, a worker and the admin, with example data
make check           linters, types, imports, migrations, links in the docs; before each commit
make test-fast       the tests that need no store, no browser and no other process; as you write
make test            every check, all tests on PostgreSQL, and on SQLite those about the database
make test-crash      kill everything again and again, and prove that nothing is lost (takes half an hour)
make test-mutants    break one rule after the other, and see that its test fails
make check-protocol  try every order of what workers and people do at once, in a model; needs spin
make bench           how fast it is, beside what others use; an hour and more, or ARGS=--quick
make screenshots     a picture of each page of the admin; ARGS is the folder for them
make animation       record the animation of the README in the real admin
make docs            build the docs as a site in site/; ARGS=serve to read it with search
make install         what each of these does first: install, into this folder, what the lock files name
make help            this text, as bare `make` does

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

# Some images forbid Python to keep what it compiled: then each of hundreds of processes compiles all.
export PYTHONDONTWRITEBYTECODE =

help:
	$(info $(HELP))
	@:

# `exec`, so that a signal that make hands on reaches Python and not a shell.
demo test-mutants screenshots animation: install
	@exec $(VENV)/bin/python -m devtools.$(@:test-%=%) $(ARGS)

test-crash: install
	@exec $(VENV)/bin/python -m tests.crash $(ARGS)

check-protocol: install
	@exec $(VENV)/bin/python -m tests.protocol.check $(ARGS)

bench: install
	@exec $(VENV)/bin/python -m benchmarks $(ARGS)

# Without the news of its makers: a build that finds a problem says only that.
check docs: export NO_MKDOCS_2_WARNING = 1
docs: install
	@exec $(VENV)/bin/mkdocs $(or $(ARGS),build)

# Each process has its own local R2 and database, and takes whole files, so what a file sets up
# once is set up once.
IN_PARALLEL = -n auto --dist loadfile --no-loadscope-reorder

check test-fast: export DATABASE_URL = sqlite:///:memory:
check: export DJANGO_SETTINGS_MODULE = devtools.check_settings
check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mkdocs build
	$(VENV)/bin/python manage.py check --deploy --fail-level WARNING
	$(VENV)/bin/python manage.py makemigrations --check --dry-run

test-fast: install
	@exec $(VENV)/bin/python -m pytest $(IN_PARALLEL) --fast $(ARGS)

test: $(if $(filter -h --help,$(ARGS)),install,check)
	@exec $(VENV)/bin/python -m devtools.test $(IN_PARALLEL) $(ARGS)

# Of two at once, one waits here until all that the other started has ended: it too has the lock. The
# make inside looks only then at what is installed. Without flock, do not install twice at once.
install:
	@exec 9<Makefile; \
	if command -v flock >/dev/null; then flock -n 9 || { echo "Waiting for another make ..."; flock 9; }; fi; \
	exec $(MAKE) -s MADE_BY="$$($(PYTHON) -V 2>&1) $$PWD" $(VENV)/installed devtools/node_modules/installed

# The scripts of a venv name its folder: after a move it is made again, as for another Python.
ifneq ($(MADE_BY),$(shell cat $(VENV)/installed 2>/dev/null))
$(VENV)/installed: FORCE
FORCE:
endif

$(VENV)/installed: requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is needed, and $(PYTHON) is not. Name yours, as in: make test PYTHON=python3.13" >&2; exit 1; }
	[ -z "$$(ls -A $(VENV) 2>/dev/null)" ] || [ -e $(VENV)/pyvenv.cfg ] || \
	{ echo "$(VENV) holds files and is no venv: choose another VENV." >&2; exit 1; }
	echo "Installing $< into $(VENV) ..."
	[ "$$(cat $@ 2>/dev/null)" = "$(MADE_BY)" ] || $(PYTHON) -m venv --clear $(VENV) || \
	{ echo "$(PYTHON) made no venv. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-input -r $< || \
	{ echo "pip failed, for the reason above. If that is the network, check it and the proxy, and run make again." >&2; exit 1; }
	echo "$(MADE_BY)" >$@

devtools/node_modules/installed: devtools/package-lock.json | $(VENV)/installed
	echo "Installing $< ..."
	$(VENV)/bin/npm ci --prefix devtools --ignore-scripts --no-audit --no-fund --no-update-notifier || \
	{ echo "npm failed, for the reason above. If that is the network, check it and the proxy, and run make again." >&2; exit 1; }
	touch $@
