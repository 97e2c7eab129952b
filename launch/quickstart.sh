#!/usr/bin/env bash
# From a fresh machine to a trained model and its samples: .venv, requirements, gpt_nano. Run it again to go on
# where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/venv.sh

run=runs/quickstart
steps=${1:-200} # bash launch/quickstart.sh 1500 is the whole training of configs/gpt_nano.py
say() { printf '\n== %s\n' "$*"; }

say "1/3 Python environment"
prepare_venv requirements.txt

say "2/3 training gpt_nano for $steps steps in $run (a minute or two on two CPU cores)"
"$python" -m lm.main --config=configs/gpt_nano.py:steps=$steps --config.every.sample=0 --workdir=$run

say "3/3 samples"
# gpt_nano reads the documentation of Python itself.
"$python" -m lm.generate --workdir=$run --prompt="Return the" --prompt="The file" --prompt="A string" \
  --strategy=sample --temperature=0.8 --max_new_tokens=120 --seed=0

say "done; where to look next"
cat <<TEXT
  $run/metrics.jsonl   one line a logged step; $run/tensorboard/ holds the same
  $run/loss.png        the loss curve; drawn at the end, or any time by .venv/bin/python -m lm.plots --workdir=...
  README.md                       every objective, model and command

The whole training, 1,500 steps, to 1.59 bits per byte:
  .venv/bin/python -m lm.main --config=configs/gpt_nano.py

Your own text:
  .venv/bin/python -m lm.main --config=configs/gpt_nano.py:text=PATH --workdir=runs/mine
  .venv/bin/python -m lm.generate --workdir=runs/mine --prompt="..."
TEXT
