#!/usr/bin/env bash
# Trains on one TPU machine of Compute Engine, deletes it, and brings the logs back.
#
#   PROJECT=p ZONE=us-west4-a BUCKET=gs://b launch/tpu_vm.sh [--dry-run] -- --config=configs/vgg16.py
#
# What follows -- goes to vgg_jax.main. Values, written before the command:
#   MACHINE_TYPE    default ct5lp-hightpu-8t (v5e-8); others: ct6e-standard-8t (v6e-8), ct5p-hightpu-4t (v5p-8)
#   MODEL           also FLEX_START (queued, seven days at most)
#   IAP             1: no public address, ssh through Identity-Aware Proxy

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
rented "STANDARD SPOT FLEX_START"
MACHINE_TYPE=${MACHINE_TYPE:-ct5lp-hightpu-8t}
machine_flags
[[ $MODEL != FLEX_START ]] || MACHINE+=(--request-valid-for-duration=2h)

VM="vgg-jax-$NAME"

rent() {
  create "the machine $VM ($MACHINE_TYPE)" \
    "$(quoted gcloud compute instances delete "$VM" "${AT[@]}" --quiet)" \
    gcloud compute instances create "$VM" "${AT[@]}" "${MACHINE[@]}"
}

workers() { echo "$VM"; }

state() { state_of gcloud compute instances describe "$VM" "${AT[@]}" '--format=value(status)'; }

train_on_machines
