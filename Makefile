# Two commands: `make demo` and `make test`. Both set up all they need.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# A program that stands still on a closed network is no help: nothing here talks to a model hub.
export HF_HUB_OFFLINE := 1
export JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION := 20

STAGE ?= dev
TAG ?= latest
REGISTRY ?= limner
BASE ?= bases/tiny/model

output = $$($(BIN)/aws cloudformation describe-stacks --stack-name limner-$(STAGE) --output text \
	--query "Stacks[0].Outputs[?OutputKey=='$(1)'].OutputValue")

.PHONY: help demo test toolkit lint asl docs bench synth diff deploy images base clean

help: ## What there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Limner needs Python 3.11 or later.")'

# compat: a plain path file; setuptools' import finder costs every start of a program 25 ms.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable '.[local]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo ## Onboard two sample users on a laptop AWS and draw with their models
	$(BIN)/python -m examples.demo

test: lint build/triton/.done ## Lint, types, contracts and all tests
	$(BIN)/pytest -n 3 --dist loadfile

# The real tritonserver, from a wheel; with the stub of our Python, which the wheel keeps apart.
SERVER := build/triton/pytriton/tritonserver
build/triton/.done: tests/triton-requirements.txt | $(BIN)/python
	rm -rf build/triton
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/triton -r $<
	cp $(SERVER)/python_backend_stubs/$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')/* $(SERVER)/backends/python/
	chmod +x $(SERVER)/bin/tritonserver $(SERVER)/backends/python/triton_python_backend_stub
	@touch $@

# It has no wheel: this wants a C compiler and Python's headers.
build/toolkit/.done: | $(BIN)/python
	$(BIN)/python -m venv build/toolkit
	build/toolkit/bin/pip install --quiet --disable-pip-version-check sagemaker-training==5.1.4
	@touch $@

toolkit: build/toolkit/.done $(VENV)/.dev ## Train under AWS's training toolkit, in an environment of its own
	$(BIN)/pytest tests/contract/toolkit_training.py

lint: $(VENV)/.dev ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

asl: $(VENV)/.dev ## Publish the state machines and the laptop's template
	$(BIN)/python -m infra.publish

docs: $(VENV)/.dev ## Write the pages that are made from code
	$(BIN)/python -m docs

bench: $(VENV)/.dev ## Print the figures of the README
	$(BIN)/python -m benchmarks.laptop

synth: $(VENV)/.dev ## Synthesize a stage: make synth STAGE=prod
	LIMNER_STAGE=$(STAGE) $(BIN)/python -m infra.app

diff: $(VENV)/.dev ## What a deployment would change: make diff STAGE=prod
	LIMNER_STAGE=$(STAGE) $(BIN)/python -m infra.cli diff

deploy: $(VENV)/.dev ## Deploy a stage to AWS, after docs/deploy.md: make deploy STAGE=prod
	LIMNER_STAGE=$(STAGE) $(BIN)/python -m infra.cli deploy

images: ## Build both container images: make images REGISTRY=… TAG=… BASE=…
	docker build --platform linux/amd64 -f training/Dockerfile -t $(REGISTRY)/training:$(TAG) .
	docker build --platform linux/amd64 -f inference/Dockerfile --build-arg BASE=$(BASE) -t $(REGISTRY)/inference:$(TAG) .

base: $(VENV)/.dev ## Upload the base of a deployed stage: make base STAGE=prod BASE=…
	$(BIN)/aws s3 sync --delete $(BASE) s3://$(call output,BucketName)/base/$(call output,BaseId)/

clean: ## Remove what was built here, and the laptop's state
	-@test -x $(BIN)/limner && $(BIN)/limner down
	rm -rf $(VENV) .limner demo-out cdk.out build *.egg-info .mypy_cache .ruff_cache .pytest_cache
