#!/usr/bin/env bash
# Trains on one TPU machine of Compute Engine, deletes it, and brings the logs back.
#
#   PROJECT=p ZONE=us-west4-a BUCKET=gs://b launch/tpu_vm.sh [--dry-run] -- --config=configs/vgg16.py
#
# What follows -- goes to vgg_jax.main. Values, written before the command:
#   PROJECT, ZONE   of Google Cloud, where the machine is
#   BUCKET          with a hierarchical namespace; holds runs/NAME (the workdir), code, launches (logs)
#   NAME            of the run; default: the configuration's. The same NAME continues with the run
#   MACHINE_TYPE    default ct5lp-hightpu-8t (v5e-8); others: ct6e-standard-8t (v6e-8), ct5p-hightpu-4t (v5p-8)
#   MODEL           STANDARD (default), SPOT (cheaper, may be taken away) or FLEX_START (queued)
#   DATA            directory of prepared data in BUCKET, copied to the machine; none for the built-in data
#   BOOT_DISK_GB    default 300, which holds ImageNet
#   MAX_HOURS       default 24: after these the cloud deletes the machine itself
#   TRIES           default 5: how often it is rented again after it was taken away
#   CAPACITY_TRIES  default 20: how often it is asked for where there is none
#   IAP             1: no public address, ssh through Identity-Aware Proxy
#
# --dry-run prints every command and runs none. More: docs/launch.md

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
need 'PROJECT the project of Google Cloud' 'ZONE where the machine shall be, e.g. us-west4-a' 'BUCKET the bucket for the run, e.g. gs://my-bucket'
need_program gcloud "install the Google Cloud CLI"
MACHINE_TYPE=${MACHINE_TYPE:-ct5lp-hightpu-8t}
EXTRA=tpu
machine_flags
[[ $MODEL != FLEX_START ]] || MACHINE+=(--request-valid-for-duration=2h)
find_commit

VM="vgg-jax-$NAME"
AT=("--project=$PROJECT" "--zone=$ZONE")

rent() {
  create "the machine $VM ($MACHINE_TYPE)" \
    "$(quoted gcloud compute instances delete "$VM" "${AT[@]}" --quiet)" \
    gcloud compute instances create "$VM" "${AT[@]}" "${MACHINE[@]}"
}

workers() { echo "$VM"; }

ssh_to() { run gcloud compute ssh "$1" "${AT[@]}" "${SSH[@]}" "--command=$2" "${SSH_FLAGS[@]}"; }

state() { state_of gcloud compute instances describe "$VM" "${AT[@]}" '--format=value(status)'; }

begin
prepare_bucket
train_on_machines
