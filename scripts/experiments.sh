#!/usr/bin/env bash
# The two sets of runs of the MT-APC study, and their reports.
#
#   scripts/experiments.sh [FOLDER]                              on servers of the demo model
#   SIMULATE="h200 llama-3-8b" scripts/experiments.sh [FOLDER]   in simulated time
#
# SCALE=small makes them short, MODEL=/models/mine serves another model. A run that was stopped goes
# on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
FOLDER=${1:-results}
PYTHON=${PYTHON:-.venv/bin/python}
ALL=(--scale "${SCALE:-full}")
if [ -n "${SIMULATE:-}" ]; then
  read -r DEVICE GEOMETRY <<<"$SIMULATE"
  ALL+=(--simulate "$DEVICE" "$GEOMETRY")
fi
if [ -n "${MODEL:-}" ]; then
  ALL+=(--model "$MODEL")
fi

"$PYTHON" -m benchmarks.runner "${ALL[@]}" --result-dir "$FOLDER/standard" --num-trials 5 \
  --benchmarks generative_agents guessing_game multiturn_long multiturn_short sharegpt
"$PYTHON" -m benchmarks.report "$FOLDER/standard"

"$PYTHON" -m benchmarks.runner "${ALL[@]}" --result-dir "$FOLDER/multi_agent" --num-trials 3 \
  --benchmarks gptswarm_mmlu guessing_game_e2e guessing_game_e2e_cot \
  --servers no-apc apc mt-apc mt-apc-no-sched
"$PYTHON" -m benchmarks.report "$FOLDER/multi_agent"
