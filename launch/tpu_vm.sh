#!/usr/bin/env bash
# Create a Cloud TPU, install this project on all of its hosts, train, and resume after a preemption.
#
#   export TPU=mine ZONE=europe-west4-b TYPE=v5litepod-16
#   bash launch/tpu_vm.sh train --config=configs/gpt_small.py --workdir=/mnt/shared/runs/small --config.mesh.fsdp=-1 --config.mesh.data=1
#   bash launch/tpu_vm.sh create|install|run ARGUMENTS|delete      the steps of `train` alone
#
# Arguments are those of lm.main. --workdir lies on a file system that all hosts mount (Filestore, a bucket through gcsfuse).
# Variables: VERSION, the software version (v2-alpha-tpuv5-lite); SPOT=1, a TPU that may be preempted; RESTARTS (50), how
# often to start again; MOUNT, a shell command that mounts the shared file system on a fresh host.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${TPU:?name the TPU: TPU=mine}" "${ZONE:?name its zone: ZONE=europe-west4-b}"
where=("$TPU" "--zone=$ZONE")

create() {
  gcloud compute tpus tpu-vm create "${where[@]}" --accelerator-type="${TYPE:?name its type: TYPE=v5litepod-16}" \
    --version="${VERSION:-v2-alpha-tpuv5-lite}" ${SPOT:+--spot}
}

hosts() { # a shell command on every host at once
  gcloud compute tpus tpu-vm ssh "${where[@]}" --worker=all --command="$1"
}

install() {
  tar --exclude=.git --exclude=.venv --exclude=runs -czf "/tmp/lm-$TPU.tgz" .
  gcloud compute tpus tpu-vm scp "/tmp/lm-$TPU.tgz" "$TPU:/tmp/lm.tgz" "--zone=$ZONE" --worker=all
  hosts "${MOUNT:-true} && mkdir -p lm && tar -xzf /tmp/lm.tgz -C lm && cd lm && source launch/venv.sh && prepare_venv requirements.txt requirements-tpu.txt"
}

run() {
  hosts "cd lm && .venv/bin/python -m lm.main --distributed=auto --stop_status=75$(printf ' %q' "$@")"
}

state() { # READY, PREEMPTED, ...; nothing where there is no such TPU
  gcloud compute tpus tpu-vm describe "${where[@]}" --format='value(state)' 2>/dev/null || true
}

train() {
  local restart status
  for restart in $(seq 0 "${RESTARTS:-50}"); do
    if [ "$(state)" != READY ]; then
      [ -z "$(state)" ] || gcloud compute tpus tpu-vm delete "${where[@]}" --quiet # a preempted one is never started again
      create && install || { sleep "${PAUSE:-60}" && continue; } # no capacity now
    fi
    run "$@" && return 0 || status=$?
    # 75: a process died, or saved ahead of a maintenance. A preempted TPU breaks the connection, whatever the status; any other error would come again.
    if [ "$status" -ne 75 ] && [ "$(state)" = READY ]; then
      return "$status"
    fi
    echo "tpu_vm.sh: the run ended with status $status; starting again from its last save (restart $((restart + 1)))" >&2
  done
  return 75
}

case ${1:-} in
  create | install | run | train) "$@" ;;
  delete) gcloud compute tpus tpu-vm delete "${where[@]}" --quiet ;;
  *) echo "usage: bash launch/tpu_vm.sh create|install|run|train|delete [ARGUMENTS OF lm.main]" >&2 && exit 2 ;;
esac
