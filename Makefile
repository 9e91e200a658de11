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
# Python keeps what it has compiled, for the hundreds of processes that tests start.
unexport PYTHONDONTWRITEBYTECODE

BIN = $(VENV)/bin
RUN_ENV = tools/scripts/venv.sh $(VENV) --project tools/requirements/runtime.txt tools/requirements/build.txt
DEV_ENV = tools/scripts/venv.sh $(VENV) --project tools/requirements/dev.txt
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
	@$(BIN)/python -m tools.clusterdemo $(ARGS)

dev: ## make the environment for development and nothing else
	@$(DEV_ENV)

servers: # MariaDB and Redis for tests and demo, where they may be installed
	@tools/scripts/packages.sh mariadbd:mariadb-server redis-server:redis-server

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
	@tools/scripts/venv.sh .venv-minimum --project tools/requirements/minimum.txt
	@.venv-minimum/bin/python $(PYTEST) $(ARGS)

test-mysql: dev servers ## run the MySQL store's tests on MySQL, or on a MariaDB of MARIADBD_BIN or DATABASE=mariadb
	@tools/scripts/test_mysql.sh $(if $(MARIADBD_BIN),mariadb,$(DATABASE)) $(BIN)/python $(PYTEST) $(ARGS)

test-pythons: dev servers ## run unit, contract and integration tests on the other Pythons that are at hand
	@tools/scripts/test_pythons.sh $(VENV) $(PYTEST) $(ARGS)

bench: dev ## measure speed and latency
	@tools/scripts/packages.sh cc:gcc wrk:wrk
	@$(BIN)/python -m tools.bench $(ARGS)

bench-peers: dev ## compare with other queues; ARGS="celery bullmq --runs 3", or ARGS=report
	@tools/bench/peers/install.sh
	@$(BIN)/python -m tools.bench.peers $(ARGS)

dist: ## build the wheel and the single executable dist/taskd
	@tools/scripts/dist_venv.sh .venv-dist tools/requirements/dist.txt
	@.venv-dist/bin/python -m hatchling build --target wheel
	@.venv-dist/bin/python -m PyInstaller --log-level ERROR --noconfirm \
		--distpath build/unpacked --workpath build tools/packaging/taskd.spec
	@$(CC) -O2 -static -s -o build/launcher tools/packaging/launcher.c 2>/dev/null \
		|| $(CC) -O2 -s -o build/launcher tools/packaging/launcher.c
	@.venv-dist/bin/python tools/packaging/bundle.py build/launcher build/unpacked/taskd dist/taskd
	@ls -l dist

lock: dev ## resolve the locked requirements anew (ARGS=--upgrade for newer releases)
	@$(LOCK) pyproject.toml --output-file tools/requirements/runtime.txt
	@$(LOCK) --group build --output-file tools/requirements/build.txt
	@$(LOCK) pyproject.toml --extra cluster --group dev --output-file tools/requirements/dev.txt \
		--constraint tools/requirements/runtime.txt --constraint tools/requirements/build.txt
	@$(LOCK) pyproject.toml --extra cluster --group dist --output-file tools/requirements/dist.txt \
		--constraint tools/requirements/runtime.txt --constraint tools/requirements/build.txt
	@$(LOCK) --resolution lowest-direct pyproject.toml --extra cluster \
		--output-file $(VENV)/lowest.txt
	@$(LOCK) pyproject.toml --extra cluster --group dev --output-file tools/requirements/minimum.txt \
		--constraint $(VENV)/lowest.txt
	@$(LOCK) tools/bench/peers/requirements.in --output-file tools/bench/peers/requirements.txt
	@$(LOCK) tools/bench/peers/requirements-arq.in --output-file tools/bench/peers/requirements-arq.txt

clean: ## remove everything that make has made, environments included
	rm -rf .venv .venv-* .bench-peers .servers build dist htmlcov .coverage .coverage.*
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
