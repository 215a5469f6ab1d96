#!/usr/bin/env bash
# All runs of this study, real and simulated apart. About 20 minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${1:-results/mtapc}

# Simulated: every program, the study's eight servers, one seed; then the sweep of sizes.
"$PYTHON" -m benchmarks.runner --simulate h200 llama-3-8b --num-trials 1 --result-dir "$OUT/simulated"
"$PYTHON" -m benchmarks.report "$OUT/simulated"
"$PYTHON" -m experiments.mtapc.sweep --trials 2

# Real servers of the demo model. "everything" holds all on its device: what no cache can beat.
APC="--enable-prefix-caching --num-gpu-blocks-override 512"
"$PYTHON" -m benchmarks.runner --num-trials 2 --result-dir "$OUT/real" \
  --benchmarks guessing_game multiturn_long multiturn_short \
  --servers no-apc apc mt-apc mt-apc-only-mt mt-apc-no-prefetch mt-apc-no-sched \
  "mt-apc-host=$APC --enable-multi-tier-prefix-caching --num-cpu-blocks-override 4000 \
   --enable-async-swapping --enable-prefix-aware-scheduling --enable-async-prefetching" \
  "everything=--enable-prefix-caching --num-gpu-blocks-override 8000"
"$PYTHON" -m benchmarks.report "$OUT/real"
