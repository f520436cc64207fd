#!/usr/bin/env bash
# Trains on the GPUs of this machine, all in one process, and continues by itself after a crash.
#
#   launch/gpus.sh [--dry-run] -- --config=configs/vgg16.py
#
# Flags of training follow --. Values, written before the command:
#   GPUS    which, as 0,1,2,3; default: all
#   NAME    of the run, which is written to runs/NAME; default: the configuration's. The same NAME continues the run
#   DATA    directory of prepared data; none for the built-in data
#   TRIES   default 5: how often it is begun in all, where it crashes
#   PYTHON  an interpreter that has all that is needed; default: .venv/bin/python, in which the commit is installed
# --dry-run prints every command and runs none. More: docs/launch.md

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
need_program nvidia-smi "there is no driver of NVIDIA, without which a GPU is not seen"
find_commit

if [[ ! ${PYTHON:-} ]]; then
  PYTHON=.venv/bin/python
  if ((DRY_RUN)) || [[ ! -x .venv/bin/pip ]]; then run python3 -m venv .venv; fi
  if ((DRY_RUN)) || [[ $(cat .venv/installed 2>/dev/null) != "$COMMIT" ]]; then
    run .venv/bin/pip install --quiet -c constraints.txt -e '.[gpu]' || fail "the commit could not be installed in .venv; the same command tries again." 1
    ((DRY_RUN)) || printf '%s\n' "$COMMIT" >.venv/installed
  fi
fi
[[ ! ${GPUS:-} ]] || export CUDA_VISIBLE_DEVICES=$GPUS
run "$PYTHON" -c 'import jax; raise SystemExit(jax.default_backend() != "gpu")' ||
  fail "JAX of PYTHON=$PYTHON sees no GPU, so it would train on the CPU; give an interpreter for which '.[gpu]' was installed." 1
[[ ! ${DATA:-} ]] || TRAIN_FLAGS+=("--config.data.dir=$DATA")
((DRY_RUN)) || say "commit $COMMIT on $(nvidia-smi -L | wc -l | tr -d ' ') GPU(s)${GPUS:+, of which $GPUS}"

# shellcheck disable=SC2329 # called by the traps
forward() { [[ -z ${CHILD:-} ]] || kill -TERM "$CHILD" 2>/dev/null || true; } # signals are for training, which saves
trap forward TERM INT HUP

wait_for_training() { # COMMAND...
  printf '+ %s%s\n' "${GPUS:+CUDA_VISIBLE_DEVICES=$(quoted "$GPUS") }" "$(quoted "$@")"
  ((!DRY_RUN)) || return 0
  set -m # its own process group, so that Ctrl-C comes from here and not from the terminal too: a second signal would kill
  "$@" &
  set +m
  CHILD=$!
  for ((STATUS = 0; ; STATUS = 0)); do
    wait "$CHILD" || STATUS=$?
    kill -0 "$CHILD" 2>/dev/null || return "$STATUS"
  done
}

for ((try = 1; try <= TRIES; try++)); do
  status=0
  wait_for_training "$PYTHON" -m vgg_jax.main "${TRAIN_FLAGS[@]}" "--workdir=runs/$NAME" || status=$?
  case $status in 0 | 2 | 130 | 143) exit "$status" ;; esac
  say "training ended with status $status (try $try of $TRIES); it continues from its last checkpoint" >&2
  ((try == TRIES)) || pause "$BACKOFF_SECONDS"
done
fail "gave up after $TRIES tries, the last of which ended with status $status. The same command continues from the last checkpoint." 1
