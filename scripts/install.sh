#!/usr/bin/env bash
# Sets everything up: the environment, the C++ kernels, and what the programs and plots need.
set -euo pipefail
cd "$(dirname "$0")/.."
make setup
