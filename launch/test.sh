#!/usr/bin/env bash
# From a fresh machine to the test suite: .venv, requirements, ruff, pytest, all on the CPU.
# Arguments go to pytest:  bash launch/test.sh -m slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

prepare_venv requirements.txt requirements-test.txt
export JAX_PLATFORMS=cpu
export HF_HUB_OFFLINE=1 # a test that would download fails at once instead of waiting for a network

echo "ruff check ."
"$python" -m ruff check .
# A file's tests stay in one process, as they share compiled programs. Two processes are as many as 16 GB bear.
echo "pytest -n 2 --dist loadfile${*:+ $*}"
exec "$python" -m pytest -n 2 --dist loadfile --durations=100 --durations-min=4 "$@"
