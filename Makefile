# The commands of the project. Each is a script in scripts/ that says at its top what it does.
.DEFAULT_GOAL := help
.PHONY: help setup run test check bench load plots clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## install what is missing (make run and make test do it by themselves)
	@scripts/setup.sh $(ARGS)

run: ## start the whole service with a demo sale; Ctrl-C ends it
	@scripts/run.sh

test: ## run every test, on real servers; one: make test ARGS="--test it fence"
	@scripts/test.sh $(ARGS)

check: ## format, lints, documentation, licences, scripts
	@scripts/check.sh

bench: ## the numbers of docs/benchmarks.md, measured here
	@scripts/bench.sh $(ARGS)

load: ## the whole service under load, measured (minutes): make load ARGS="headline half"
	@scripts/load.sh $(ARGS)

plots: ## draw docs/img/ from the reports of make bench and make load
	@scripts/plot.py

clean: ## remove what was built and the data of make run
	@scripts/clean.sh
