#!/usr/bin/env bash
# Submits training on GPUs to SLURM: one process a GPU, on the commit that is checked out here, from its own directory.
#
#   SHARED=/shared/me NODES=4 GPUS=8 TIME=2-00:00:00 launch/slurm.sh [--dry-run] -- --config=configs/vgg16.py
#
# Flags of training follow --. Values, written before the command:
#   SHARED        a directory that all nodes see; holds runs/NAME (the workdir), code, logs
#   NODES, GPUS   nodes, and GPUs of each
#   TIME          the longest time, as SLURM writes it; two minutes before its end the run saves itself and is queued again
#   NAME          of the run; default: the configuration's. The same NAME continues the run
#   DATA          directory of prepared data that all nodes see; none for the built-in data
#   TRIES         default 5: how often the job runs in all, where its time, a preemption or a crash ends it
#   CPUS          cores of each process; default 8
#   PARTITION, ACCOUNT, QOS  of SLURM, where it asks for them
#   PYTHON        an interpreter that has all that is needed; default: one is installed in SHARED/code/COMMIT
# --dry-run prints every command and runs none. More: docs/launch.md

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
need 'SHARED a directory that all nodes see' 'NODES how many nodes' 'GPUS how many GPUs of each' 'TIME the longest time, e.g. 2-00:00:00'
CPUS=${CPUS:-8}
counts NODES GPUS CPUS
[[ $TIME =~ ^([0-9]{1,4}-)?[0-9]{1,6}(:[0-9]{1,2}){0,2}$ ]] || fail "TIME=$TIME is no time that SLURM reads; write days-hours:minutes:seconds, as 2-00:00:00."
[[ $SHARED == /* ]] || fail "SHARED=$SHARED: give the whole path, which is the same on all nodes."
need_program sbatch "this is no machine from which SLURM takes jobs"
find_commit

CODE="$SHARED/code/$COMMIT"
export NAME SHARED CODE TRIES DATA="${DATA:-}" PYTHON="${PYTHON:-$CODE/.venv/bin/python}" # for launch/slurm_job.sh

((DRY_RUN)) || mkdir -p "$SHARED"/{code,runs,logs} || fail "SHARED=$SHARED cannot be written; choose another."
if ((DRY_RUN)) || [[ ! -d $CODE ]]; then
  run rm -rf "$CODE.unfinished"
  run git clone --quiet --no-checkout . "$CODE.unfinished"
  run git -C "$CODE.unfinished" checkout --quiet --detach "$COMMIT"
  run mv "$CODE.unfinished" "$CODE"
fi
if [[ $PYTHON == "$CODE/.venv/bin/python" ]] && { ((DRY_RUN)) || [[ ! -f $CODE/.venv/complete ]]; }; then
  run python3 -m venv --clear "$CODE/.venv"
  run "$CODE/.venv/bin/pip" install --quiet -c "$CODE/constraints.txt" -e "${CODE}[gpu]" || fail "the commit could not be installed in $CODE/.venv; the same command tries again." 1
  run touch "$CODE/.venv/complete"
fi

# shellcheck disable=SC2153 # not CPUS misspelt
OPTIONS=(
  --parsable "--job-name=vgg-jax-$NAME" "--nodes=$NODES" "--ntasks-per-node=$GPUS" "--gpus-per-node=$GPUS" "--cpus-per-task=$CPUS"
  "--time=$TIME" --signal=TERM@120 --requeue --open-mode=append "--output=$SHARED/logs/$NAME-%j.log" "--chdir=$CODE" --export=ALL
)
OPTIONS+=(${PARTITION:+"--partition=$PARTITION"} ${ACCOUNT:+"--account=$ACCOUNT"} ${QOS:+"--qos=$QOS"})
printf '+ %s\n' "$(quoted sbatch "${OPTIONS[@]}" "$CODE/launch/slurm_job.sh" "${TRAIN_FLAGS[@]}")"
((DRY_RUN)) && exit
ANSWER=$(sbatch "${OPTIONS[@]}" "$CODE/launch/slurm_job.sh" "${TRAIN_FLAGS[@]}" 2>&1) ||
  fail "SLURM did not take the job: ${ANSWER##*$'\n'}" 1
JOB=$(grep -oE '^[0-9]+' <<<"$ANSWER" | tail -n 1) || JOB="of an unknown number"
say "submitted as job $JOB; log: $SHARED/logs/$NAME-$JOB.log; run: $SHARED/runs/$NAME. To stop it: scontrol update JobId=$JOB Requeue=0 && scancel --signal=TERM $JOB (it saves, and is not queued again)"
