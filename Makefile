# Two commands: `make run` and `make test`. Both set up what is missing first (scripts/setup.sh).

PROMPT ?= What is the capital of France, and what is it known for? Answer in two sentences.
# Into the environment, so that quotes and dollar signs in it survive.
override export PROMPT := $(value PROMPT)

BIN := .venv/bin

.PHONY: help run test setup format clean

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1	/p' Makefile

run: setup ## answer a prompt with the default model: make run PROMPT="..."
	@$(BIN)/vkllm run smollm2 "$$PROMPT" </dev/null

test: ## linters, types and all tests
	@scripts/setup.sh --dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@$(BIN)/python -c 'from vkllm.store import find_model; print("default model:", find_model("smollm2"))'
	@# mypy takes one core for half a minute, beside the tests no time of its own
	$(BIN)/mypy & types=$$!; \
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$types && exit $$tests

setup: ## system packages, .venv, Kompute, the Vulkan layer, vkllm
	@scripts/setup.sh

format: ## put the code into the project's format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean: ## remove .venv and everything that was built
	rm -rf .venv build dist vkllm/gpu/layer/*.so
