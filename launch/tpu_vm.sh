#!/usr/bin/env bash
# Trains on one TPU machine of Compute Engine, deletes it, and brings the logs back.
#
#   PROJECT=p ZONE=us-west4-a BUCKET=gs://b launch/tpu_vm.sh [--dry-run] -- --config=configs/vgg16.py
#
# Flags of training follow --. Values, written before the command:
#   MACHINE_TYPE    default ct5lp-hightpu-8t (v5e-8); others: ct6e-standard-8t (v6e-8), ct5p-hightpu-4t (v5p-8)

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
rented ct5lp-hightpu-8t
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
