# Every target is idempotent and quick the second time. `make help` lists them.
#
#   CSV=path        what `make run` plays (default: the bundled sample)
#   DATA=dir        where `make run` and `make services` keep everything (default: data)
#   PORT_BASE=n     ports counted from n instead of the default ones; PORT_API=n and so on for a single one
#   SEEDS=n         how many random histories `make simulate` plays
#   OVERLAY=name    which of deploy/kustomize/overlays `make deploy` applies (default: dev)
#   REGISTRY=path   where `make push` pushes to
#   ARGS="..."      more arguments for pytest or a benchmark

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The first Python of at least 3.11; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

CSV ?= producers/sample/dcgm_sample.csv
DATA ?= data
ARGS ?=
SEEDS ?= 100

PACKAGES := telemetry zmqbroker producers consumers clickhouse api loadtest
OVERLAYS := dev staging prod
# gpu-node is in prod, and in no namespace with the base.
COMPONENTS := $(filter-out gpu-node,$(notdir $(wildcard deploy/kustomize/components/*)))
OVERLAY ?= dev
REGISTRY ?=
YES ?=
IMAGE := gpu-telemetry:$(shell sed -n 's/^version = //p' setup.cfg)
# Tools whose own requirements do not go together with ours.
TOOLS := build/tools

need = @command -v $(1) >/dev/null || { echo "make: $(1) is not here: $(2)" >&2; exit 2; }
need_cluster = @$(BIN)/kubectl version --request-timeout=5s >/dev/null 2>&1 || \
	{ echo "make: kubectl reaches no cluster: choose one with KUBECONFIG or \`kubectl config use-context\`" >&2; exit 2; }

##@ Start here

help:  ## list every target in a line
	@awk -F':.*## ' '/^##@ /{printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' \
		$(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## make .venv and install everything into it
	@:

$(STAMP): setup.cfg pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "make: no Python 3.11 or newer found; install one or say PYTHON=path" >&2; exit 2; }
	@[ -x $(BIN)/python ] && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[embedded,dev]'
	@touch $@

run: $(STAMP)  ## run the whole pipeline in the foreground, fed by CSV (Ctrl-C ends it)
	@exec $(BIN)/python deploy/local/run.py run --data "$(DATA)" --csv "$(CSV)"

services: $(STAMP)  ## the same without the streamer
	@exec $(BIN)/python deploy/local/run.py services --data "$(DATA)"

stop: $(STAMP)  ## end a pipeline that runs on DATA in another terminal
	@$(BIN)/python deploy/local/run.py stop --data "$(DATA)"

##@ Tests and checks

test: $(STAMP)  ## every test
	$(PYTEST) $(ARGS)

test-unit: $(STAMP)  ## tests of parts alone (unit, contract)
	$(PYTEST) tests/unit tests/contract $(ARGS)

test-integration: $(STAMP)  ## tests of parts with real neighbours (integration, simulation)
	$(PYTEST) tests/integration tests/simulation $(ARGS)

test-e2e: $(STAMP)  ## tests of the whole pipeline, started as a user would
	$(PYTEST) tests/e2e $(ARGS)

simulate: $(STAMP)  ## random histories of the real core, log and clients, with and without a broker (SEEDS=n of each)
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)
	$(BIN)/python -m tests.simulation --direct --seeds $(SEEDS) $(ARGS)

chaos: $(STAMP)  ## kill, stop and restart every process while rows stream, then account for every row (SEED= FAULTS= ROWS=)
	$(BIN)/python -m tests.chaos

coverage: $(STAMP)  ## every test, with the lines they reach (htmlcov/index.html); fails below 85 %
	$(PYTEST) --cov --cov-report=term --cov-report=html $(ARGS)

lint: $(STAMP)  ## ruff, import rules, types, bandit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile bandit.yaml --recursive $(PACKAGES) deploy

audit: $(STAMP) $(TOOLS)/.installed  ## bandit over the code, pip-audit over the image's packages (asks an advisory service on the net)
	$(BIN)/bandit --quiet --configfile bandit.yaml --recursive $(PACKAGES) deploy
	@$(TOOLS)/bin/pip-audit --strict --progress-spinner off --disable-pip --require-hashes \
		-r deploy/docker/requirements.txt || { echo "make: pip-audit found something, or its advisory service" \
		"cannot be reached from here: its last line tells which" >&2; exit 1; }

##@ Images and clusters

images:  ## build gpu-telemetry:VERSION and :VERSION-embedded (needs docker)
	$(call need,docker,images are built by it)
	docker build -f deploy/docker/Dockerfile --target runtime -t $(IMAGE) .
	docker build -f deploy/docker/Dockerfile --target embedded -t $(IMAGE)-embedded .

push:  ## tag the images for REGISTRY=host/path and push them (needs docker)
	@[ -n "$(REGISTRY)" ] || { echo "make: say where to: make push REGISTRY=registry.example.org/telemetry" >&2; exit 2; }
	$(call need,docker,images are pushed by it)
	for image in $(IMAGE) $(IMAGE)-embedded; do \
		docker tag $$image $(REGISTRY)/$$image; docker push $(REGISTRY)/$$image; done

manifests: $(STAMP)  ## kustomize build of each overlay, and of the base with each component, into build/rendered/
	@rm -rf build/rendered build/component && mkdir -p build/rendered build/component
	for o in $(OVERLAYS); do $(BIN)/kubectl kustomize deploy/kustomize/overlays/$$o > build/rendered/$$o.yaml; done
	for c in $(COMPONENTS); do \
		printf 'namespace: telemetry\nresources: [../../deploy/kustomize/base]\ncomponents: [%s]\n' \
			../../deploy/kustomize/components/$$c > build/component/kustomization.yaml; \
		$(BIN)/kubectl kustomize build/component > build/rendered/component-$$c.yaml; done

validate: checkov  ## schemas of Kubernetes, CRDs and compose; yamllint, hadolint, systemd, rules; checkov
	$(PYTEST) tests/contract/deploy $(ARGS)

checkov: manifests $(TOOLS)/.installed  ## checkov over the rendered manifests and the Dockerfile
	$(TOOLS)/bin/checkov --config-file deploy/kustomize/checkov.yaml --directory build/rendered
	$(TOOLS)/bin/checkov --config-file deploy/kustomize/checkov.yaml --file deploy/docker/Dockerfile

deploy: $(STAMP)  ## apply OVERLAY=dev to kubectl's present cluster, and wait until it is there
	$(call need_cluster)
	$(BIN)/kubectl apply -k deploy/kustomize/overlays/$(OVERLAY)
	$(BIN)/kubectl wait --for=condition=Ready pod --all-namespaces --timeout=300s \
		-l app.kubernetes.io/part-of=gpu-telemetry,app.kubernetes.io/component!=migrations

undeploy: $(STAMP)  ## remove OVERLAY=dev from kubectl's present cluster, namespace and volumes too (others: YES=1)
	@[ "$(OVERLAY)$(YES)" = dev ] || [ "$(YES)" = 1 ] || { echo "make: this removes the namespace and its volumes;" \
		"if you mean it: make undeploy OVERLAY=$(OVERLAY) YES=1" >&2; exit 2; }
	$(call need_cluster)
	$(BIN)/kubectl delete --ignore-not-found -k deploy/kustomize/overlays/$(OVERLAY)

$(TOOLS)/.installed:
	$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/pip install --disable-pip-version-check --quiet 'checkov~=3.3' 'pip-audit~=2.10'
	@touch $@

##@ Measuring and documents

bench: $(STAMP)  ## every benchmark; results in loadtest/results/ and docs/performance.md
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[embedded,dev,bench]'
	$(BIN)/python -m loadtest.bench all $(ARGS)
	$(BIN)/python -m loadtest.bench.report

load: $(STAMP)  ## Locust against a running API (HOST=url), judged by loadtest/thresholds.json
	LOAD_THRESHOLDS=1 $(BIN)/python -m locust -f loadtest/locustfile.py DashboardUser ScriptUser ExporterUser WriterUser \
		--headless --only-summary --host $(or $(HOST),http://127.0.0.1:8080) -u 50 -r 10 -t 60s $(ARGS)

openapi: $(STAMP)  ## write docs/openapi.json from the API's code
	$(BIN)/python -m api.openapi > docs/openapi.json

lock: $(STAMP)  ## write the image's hash-pinned requirements from setup.cfg
	$(BIN)/python deploy/docker/lock.py

docs: $(STAMP)  ## write the pages that are made from code and results
	$(BIN)/python -m telemetry.metrics_page > docs/metrics.md
	$(BIN)/python -m telemetry.configuration_page > docs/configuration.md
	$(BIN)/python deploy/prometheus/make_rules.py
	$(BIN)/python -m loadtest.bench.report

clean:  ## remove caches and build results; data and .venv stay
	rm -rf build dist *.egg-info htmlcov artifacts .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	rm -f .coverage .coverage.*
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf

.PHONY: help setup run services stop test test-unit test-integration test-e2e simulate chaos coverage lint audit images push \
	manifests validate checkov deploy undeploy bench load openapi lock docs clean
