#!/usr/bin/env bash
# The job that launch/slurm.sh submits: trains, and queues itself again where training was cut off.

set -euo pipefail

flags=(--distributed "--workdir=$SHARED/runs/$NAME")
[[ ! $DATA ]] || flags+=("--config.data.dir=$DATA")
attempt=$((${SLURM_RESTART_COUNT:-0} + 1))
echo "try $attempt of $TRIES on $SLURM_JOB_NODELIST"

# SIGTERM from SLURM (time nearly over, preemption) is for training, which saves; this script outlives it to decide what comes.
trap : TERM
# A process that ends takes the others down itself, and says why; were they killed, their status would hide its own.
srun --kill-on-bad-exit=0 "$PYTHON" -m vgg_jax.main "$@" "${flags[@]}" &
for ((status = 0; ; status = 0)); do
  wait $! || status=$?
  kill -0 $! 2>/dev/null || break
done

case $status in
  0) echo "finished: the run is in $SHARED/runs/$NAME" ;;
  2) echo "error: training was refused, see above; the job is not queued again." >&2 ;;
  *)
    if ((attempt < TRIES)); then
      echo "training ended with status $status; the job is queued again and continues from the last checkpoint"
      scontrol requeue "$SLURM_JOB_ID" ||
        echo "error: SLURM does not queue the job again; submit again to continue from the last checkpoint." >&2
    else
      echo "error: gave up after $TRIES tries, the last of which ended with status $status; submit again to continue from the last checkpoint." >&2
    fi
    ;;
esac
exit "$status"
