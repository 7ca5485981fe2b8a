.PHONY: test lint types demo bench aot plans clients

test: ## every test
	pytest

lint: ## style and format
	ruff check .
	ruff format --check .

types: ## static types
	mypy

demo: ## chat with the bundled checkpoint
	python -m qwen_jax.demo

bench: ## the numbers in the README
	python -m benchmarks

aot: .venv-aot ## compile for an H200 and for TPU pods with neither
	.venv-aot/bin/python -m benchmarks.aot all

plans: .venv-aot ## compile training steps for the same
	.venv-aot/bin/python -m benchmarks.plans all

clients: .venv-clients ## openai, LangChain and lm-eval against a server of the bundled model
	.venv-clients/bin/pytest -n 0 -v -W default --timeout 900 benchmarks/clients

.venv-aot: # 8 GB: both compilers and NVIDIA's libraries
	python -m venv .venv-aot
	.venv-aot/bin/pip install --editable '.[cuda13,tpu,train]'

.venv-clients:
	python -m venv .venv-clients
	.venv-clients/bin/pip install --editable '.[clients]'
