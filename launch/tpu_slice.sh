#!/usr/bin/env bash
# Trains on a TPU slice of several machines (v5p, v6e, TPU7x) of Compute Engine, deletes it, and brings the logs back.
#
#   PROJECT=p ZONE=us-east5-b BUCKET=gs://b TOPOLOGY=16x16 launch/tpu_slice.sh [--dry-run] -- --config=configs/vgg16.py
#
# The slice is a managed instance group with a workload policy, made all at once (bulk mode). For v5e, which these groups do
# not form, there are launch/tpu_queue.sh and launch/gke.sh. What follows -- goes to vgg_jax.main. Values, written before the
# command:
#   TOPOLOGY        of the chips: 2x4 to 16x16 for v6e, 2x2x2 and larger for v5p
#   MACHINE_TYPE    default ct6e-standard-4t (v6e); others: ct5p-hightpu-4t, tpu7x-standard-4t (with its IMAGE_FAMILY)
#   MODEL           also FLEX_START (queued, seven days at most)
#   IAP             1: no public addresses, ssh through Identity-Aware Proxy

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
rented "STANDARD SPOT FLEX_START" 'TOPOLOGY the shape of the slice, e.g. 4x8'
MACHINE_TYPE=${MACHINE_TYPE:-ct6e-standard-4t}
[[ $MACHINE_TYPE != ct5lp-* ]] || fail "MACHINE_TYPE=$MACHINE_TYPE is v5e, of which managed instance groups form no slices; use launch/tpu_queue.sh or launch/gke.sh."
hosts_of_slice
((HOSTS > 1)) || fail "TOPOLOGY=$TOPOLOGY is one machine of $MACHINE_TYPE; use launch/tpu_vm.sh."
machine_flags
TRAIN_FLAGS+=(--distributed)

SLICE="vgg-jax-$NAME"
REGION=${ZONE%-*}
WHAT="the slice $SLICE ($MACHINE_TYPE, $TOPOLOGY)"

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

train_on_machines
