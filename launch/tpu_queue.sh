#!/usr/bin/env bash
# Trains on a TPU slice got through a queued resource of the Cloud TPU API, deletes it, and brings the logs back.
#
#   PROJECT=p ZONE=us-west4-b BUCKET=gs://b ACCELERATOR_TYPE=v5litepod-256 launch/tpu_queue.sh [--dry-run] -- --config=configs/vgg16.py
#
# The older form, and the one for slices of v5e (and v4). What follows -- goes to vgg_jax.main. Values, written before the command:
#   ACCELERATOR_TYPE  v5litepod-256, v4-32, v5p-64, v6e-64, ...
#   RUNTIME_VERSION   default: that of the type (v5litepod: v2-alpha-tpuv5-lite, v4: tpu-ubuntu2204-base, ...)
#   DATA              in BUCKET, copied to each machine (they have 100 GB disks), or on DATA_DISK
#   DATA_DISK         a disk with the data, projects/PROJECT/zones/ZONE/disks/DISK, attached to all machines read-only

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
rented "STANDARD SPOT" 'ACCELERATOR_TYPE the kind and size of the slice, e.g. v5litepod-256'
case $ACCELERATOR_TYPE in
  v5litepod-*) RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite} ;;
  v5p-*) RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv5} ;;
  v6e-*) RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv6e} ;;
  v[234]-*) RUNTIME_VERSION=${RUNTIME_VERSION:-tpu-ubuntu2204-base} ;;
  *) need "RUNTIME_VERSION the software for ACCELERATOR_TYPE=$ACCELERATOR_TYPE, which is not known here" ;;
esac
TRAIN_FLAGS+=(--distributed)

SLICE="vgg-jax-$NAME"
WHAT="the slice $SLICE ($ACCELERATOR_TYPE)"
OPTIONS=(--scopes=https://www.googleapis.com/auth/cloud-platform)
[[ $MODEL != SPOT ]] || OPTIONS+=(--spot)
if [[ ${DATA_DISK:-} ]]; then
  OPTIONS+=("--data-disk=source=$DATA_DISK,mode=read-only")
  DATA_DISK=/dev/sdb # as which the machines see it
fi
DELETE=$(quoted gcloud compute tpus queued-resources delete "$SLICE" "${AT[@]}" --force --quiet)
# This API has no longest time of its own, so the machines keep one from their first minute on.
OPTIONS+=("--metadata=startup-script=(sleep $((MAX_HOURS * 3600)); $DELETE) &")

rent() {
  request
  await "$WHAT"
}

request() {
  create "$WHAT" "$DELETE" \
    gcloud compute tpus queued-resources create "$SLICE" "${AT[@]}" "--node-id=$SLICE" "--accelerator-type=$ACCELERATOR_TYPE" \
    "--runtime-version=$RUNTIME_VERSION" "--valid-until-duration=${MAX_HOURS}h" "${OPTIONS[@]}" --async
}

workers() {
  local count
  count=$(ask 2 gcloud compute tpus tpu-vm describe "$SLICE" "${AT[@]}" '--format=value(networkEndpoints.len())') # a dry run shows two
  seq -f worker-%g 0 $((count - 1))
}

ssh_to() { run gcloud compute tpus tpu-vm ssh "$SLICE" "${AT[@]}" --quiet "--worker=${1#worker-}" "--command=$2" "${SSH_FLAGS[@]}"; }

state() {
  local state
  state=$(state_of gcloud compute tpus queued-resources describe "$SLICE" "${AT[@]}" '--format=value(state.state)')
  case $state in
    ACTIVE) echo RUNNING ;;
    SUSPEND*) echo GONE ;;
    *) echo "$state" ;;
  esac
}

trouble() {
  [[ $(state) == FAILED ]] || return 0
  ask "" gcloud compute tpus queued-resources describe "$SLICE" "${AT[@]}" '--format=value(state)'
}

train_on_machines
