# The one entrance to everything a developer or CI does. `make help` lists it.
#
#   PYTHON=python3.13   the interpreter to make environments with
#   VENV=.venv-3.13     the environment to use
#   ARGS="..."          more arguments for the command in question
#   DATABASE=mariadb    what `make test-mysql` runs on, instead of mysql
#   JOBS=4              how many tests run at the same time; most of them wait

VENV ?= .venv
JOBS ?= 4
ARGS ?=
DATABASE ?= mysql
export PYTHON

BIN = $(VENV)/bin
RUN_ENV = scripts/venv.sh $(VENV) --project requirements/runtime.txt requirements/build.txt
DEV_ENV = scripts/venv.sh $(VENV) --project requirements/dev.txt
PYTEST = -m pytest -n $(JOBS) --dist worksteal
LOCK = $(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-header --no-annotate $(ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo cluster-demo test check format coverage test-minimum test-mysql test-pythons bench bench-peers dist lock clean dev servers

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

demo: ## watch real tasks being delivered, retried, timed out, cancelled, inspected
	@test -e $(BIN)/pytest || $(RUN_ENV)
	@test ! -e $(BIN)/pytest || $(DEV_ENV)
	@$(BIN)/taskd demo $(ARGS)

cluster-demo: dev servers ## watch three nodes share tasks; a node, NSQ and Redis are lost and replaced
	@$(BIN)/python -m clusterdemo $(ARGS)

dev: ## make the environment for development and nothing else
	@$(DEV_ENV)

servers: # MariaDB and Redis for tests and demo, where they may be installed
	@scripts/packages.sh mariadbd:mariadb-server redis-server:redis-server

test: dev servers ## run all tests (ARGS="-k signing" for some)
	@$(BIN)/python $(PYTEST) $(ARGS)

check: dev ## lint, format, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: dev ## let ruff format the code and mend what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

coverage: dev servers ## run all tests and say which lines and branches none of them reached
	@$(BIN)/coverage erase
	@$(BIN)/coverage run $(PYTEST) $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

test-minimum: servers ## run all tests with the oldest releases that pyproject.toml allows
	@scripts/venv.sh .venv-minimum --project requirements/minimum.txt
	@.venv-minimum/bin/python $(PYTEST) $(ARGS)

test-mysql: dev servers ## run the MySQL store's tests on MySQL, or on a MariaDB of MARIADBD_BIN or DATABASE=mariadb
	@scripts/test_mysql.sh $(if $(MARIADBD_BIN),mariadb,$(DATABASE)) $(BIN)/python $(PYTEST) $(ARGS)

test-pythons: dev servers ## run unit, contract and integration tests on the other Pythons that are at hand
	@scripts/test_pythons.sh $(VENV) $(PYTEST) $(ARGS)

bench: dev ## measure speed and latency
	@scripts/packages.sh cc:gcc wrk:wrk
	@$(BIN)/python -m bench $(ARGS)

bench-peers: dev ## compare with other queues; ARGS="celery bullmq --runs 3", or ARGS=report
	@bench/peers/install.sh
	@$(BIN)/python -m bench.peers $(ARGS)

dist: ## build the wheel and the single executable dist/taskd
	@scripts/venv.sh .venv-dist requirements/dist.txt
	@.venv-dist/bin/python -m hatchling build --target wheel
	@.venv-dist/bin/python -m PyInstaller --log-level ERROR --noconfirm \
		--distpath build/unpacked --workpath build packaging/taskd.spec
	@$(CC) -O2 -static -s -o build/launcher packaging/launcher.c 2>/dev/null \
		|| $(CC) -O2 -s -o build/launcher packaging/launcher.c
	@.venv-dist/bin/python packaging/bundle.py build/launcher build/unpacked/taskd dist/taskd
	@ls -l dist

lock: dev ## resolve the locked requirements anew (ARGS=--upgrade for newer releases)
	@$(LOCK) pyproject.toml --output-file requirements/runtime.txt
	@$(LOCK) --group build --output-file requirements/build.txt
	@$(LOCK) pyproject.toml --extra cluster --group dev --output-file requirements/dev.txt \
		--constraint requirements/runtime.txt --constraint requirements/build.txt
	@$(LOCK) pyproject.toml --extra cluster --group dist --output-file requirements/dist.txt \
		--constraint requirements/runtime.txt --constraint requirements/build.txt
	@$(LOCK) --resolution lowest-direct pyproject.toml --extra cluster \
		--output-file $(VENV)/lowest.txt
	@$(LOCK) pyproject.toml --extra cluster --group dev --output-file requirements/minimum.txt \
		--constraint $(VENV)/lowest.txt
	@$(LOCK) bench/peers/requirements.in --output-file bench/peers/requirements.txt
	@$(LOCK) bench/peers/requirements-arq.in --output-file bench/peers/requirements-arq.txt

clean: ## remove everything that make has made, environments included
	rm -rf .venv .venv-* .bench-peers .servers build dist htmlcov .coverage .coverage.*
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
