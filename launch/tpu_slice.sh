#!/usr/bin/env bash
# Trains on a TPU slice of several machines (v5p, v6e, TPU7x) of Compute Engine, deletes it, and brings the logs back.
#
#   PROJECT=p ZONE=us-east5-b BUCKET=gs://b TOPOLOGY=16x16 launch/tpu_slice.sh [--dry-run] -- --config=configs/vgg16.py
#
# The slice is a managed instance group with a workload policy, made all at once (bulk mode). For v5e, which these groups do
# not form, there are launch/tpu_queue.sh and launch/gke.sh. What follows -- goes to vgg_jax.main. Values, written before the
# command:
#   PROJECT, ZONE   of Google Cloud, where the slice is
#   BUCKET          with a hierarchical namespace; holds runs/NAME (the workdir), code, launches (logs)
#   TOPOLOGY        of the chips: 2x4 to 16x16 for v6e, 2x2x2 and larger for v5p
#   NAME            of the run; default: the configuration's. The same NAME continues with the run
#   MACHINE_TYPE    default ct6e-standard-4t (v6e); others: ct5p-hightpu-4t, tpu7x-standard-4t (with its IMAGE_FAMILY)
#   MODEL           STANDARD (default), SPOT (cheaper, may be taken away) or FLEX_START (queued)
#   DATA            directory of prepared data in BUCKET, copied to each machine; none for the built-in data
#   BOOT_DISK_GB    default 300, which holds ImageNet
#   MAX_HOURS       default 24: after these the cloud deletes the machines itself
#   TRIES           default 5: how often the slice is rented again after it was taken away
#   CAPACITY_TRIES  default 20: how often one looks whether it is there
#   IAP             1: no public addresses, ssh through Identity-Aware Proxy
#
# --dry-run prints every command and runs none. More: docs/launch.md

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
need 'PROJECT the project of Google Cloud' 'ZONE where the slice shall be, e.g. us-east5-b' 'BUCKET the bucket for the run, e.g. gs://my-bucket' \
  'TOPOLOGY the shape of the slice, e.g. 4x8'
need_program gcloud "install the Google Cloud CLI"
MACHINE_TYPE=${MACHINE_TYPE:-ct6e-standard-4t}
[[ $MACHINE_TYPE != ct5lp-* ]] || fail "MACHINE_TYPE=$MACHINE_TYPE is v5e, of which managed instance groups form no slices; use launch/tpu_queue.sh or launch/gke.sh."
hosts_of_slice
((HOSTS > 1)) || fail "TOPOLOGY=$TOPOLOGY is one machine of $MACHINE_TYPE; use launch/tpu_vm.sh."
EXTRA=tpu
machine_flags
find_commit
TRAIN_FLAGS+=(--distributed)

SLICE="vgg-jax-$NAME"
REGION=${ZONE%-*}
WHAT="the slice $SLICE ($MACHINE_TYPE, $TOPOLOGY)"
AT=("--project=$PROJECT" "--zone=$ZONE")

rent() {
  create "the policy $SLICE" \
    "$(quoted gcloud compute resource-policies delete "$SLICE" "--project=$PROJECT" "--region=$REGION" --quiet)" \
    gcloud compute resource-policies create workload-policy "$SLICE" "--project=$PROJECT" "--region=$REGION" \
    --type=HIGH_THROUGHPUT "--accelerator-topology=$TOPOLOGY" --accelerator-topology-mode=AUTO_CONNECT
  create "the template $SLICE" \
    "$(quoted gcloud compute instance-templates delete "$SLICE" "--project=$PROJECT" "--region=$REGION" --quiet)" \
    gcloud compute instance-templates create "$SLICE" "--project=$PROJECT" "--instance-template-region=$REGION" "${MACHINE[@]}"
  request
  await "$WHAT"
}

request() {
  create "$WHAT" \
    "$(quoted gcloud compute instance-groups managed delete "$SLICE" "${AT[@]}" --quiet)" \
    gcloud compute instance-groups managed create "$SLICE" "${AT[@]}" "--size=$HOSTS" --target-size-policy-mode=bulk \
    "--template=projects/$PROJECT/regions/$REGION/instanceTemplates/$SLICE" \
    "--workload-policy=projects/$PROJECT/regions/$REGION/resourcePolicies/$SLICE" --default-action-on-vm-failure=do-nothing
}

workers() {
  # Of their names, which the cloud gives, a dry run shows two.
  ask "$SLICE-WORKER0"$'\n'"$SLICE-WORKER1" \
    gcloud compute instance-groups managed list-instances "$SLICE" "${AT[@]}" '--format=value(instance.basename())'
}

ssh_to() { run gcloud compute ssh "$1" "${AT[@]}" "${SSH[@]}" "--command=$2" "${SSH_FLAGS[@]}"; }

state() {
  local states
  states=$(state_of gcloud compute instance-groups managed list-instances "$SLICE" "${AT[@]}" '--format=value(instanceStatus)')
  ((DRY_RUN)) && echo RUNNING && return
  [[ $states == UNKNOWN ]] && echo UNKNOWN && return
  if [[ $(grep -c '^RUNNING$' <<<"$states") == "$HOSTS" ]]; then echo RUNNING; else echo WAITING; fi
}

trouble() {
  ask "" gcloud compute instance-groups managed list-errors "$SLICE" "${AT[@]}" '--format=value(error.code,error.message)' | tail -n 1
}

begin
prepare_bucket
train_on_machines
