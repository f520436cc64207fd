#!/usr/bin/env bash
# Trains on a TPU slice of several machines (v5p, v6e, TPU7x) of Compute Engine, deletes it, and brings the logs back.
#
#   PROJECT=p ZONE=us-east5-b BUCKET=gs://b TOPOLOGY=16x16 launch/tpu_slice.sh [--dry-run] -- --config=configs/vgg16.py
#
# The slice is a managed instance group with a workload policy, made all at once (bulk mode). These groups do not form slices of
# v5e; launch/sky.yaml does. Flags of training follow --. Values, written before the command:
#   TOPOLOGY        of the chips: 2x4 to 16x16 for v6e, 2x2x2 and larger for v5p
#   MACHINE_TYPE    default ct6e-standard-4t (v6e); others: ct5p-hightpu-4t, tpu7x-standard-4t (with its IMAGE_FAMILY)

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
rented ct6e-standard-4t 'TOPOLOGY the shape of the slice, e.g. 4x8'
[[ $MACHINE_TYPE != ct5lp-* ]] || fail "MACHINE_TYPE=$MACHINE_TYPE is v5e, of which managed instance groups form no slices; use launch/sky.yaml."
[[ $TOPOLOGY =~ ^[1-9][0-9]{0,3}x[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})?$ ]] || fail "TOPOLOGY=$TOPOLOGY is no topology; write 4x8, or 4x4x8 for v5p."
[[ $MACHINE_TYPE =~ -([1-9][0-9]?)t$ ]] || fail "MACHINE_TYPE=$MACHINE_TYPE is no TPU machine; ct6e-standard-4t is one."
HOSTS=$((${TOPOLOGY//x/*} / BASH_REMATCH[1]))
((HOSTS * BASH_REMATCH[1] == ${TOPOLOGY//x/*})) || fail "TOPOLOGY=$TOPOLOGY has $((${TOPOLOGY//x/*})) chips, which machines of ${BASH_REMATCH[1]} ($MACHINE_TYPE) do not divide."
((HOSTS > 1)) || fail "TOPOLOGY=$TOPOLOGY is one machine of $MACHINE_TYPE; use launch/tpu_vm.sh."
TRAIN_FLAGS=(--distributed --join_timeout=7200 "${TRAIN_FLAGS[@]}") # machines copy their data before they join
SLICE="vgg-jax-$NAME" REGION=${ZONE%-*}
WHAT="the slice $SLICE ($MACHINE_TYPE, $TOPOLOGY)"
GROUP=(gcloud compute instance-groups managed)

rent() {
  local attempt message now
  create "the policy $SLICE" "$(quoted gcloud compute resource-policies delete "$SLICE" "--project=$PROJECT" "--region=$REGION" --quiet)" \
    gcloud compute resource-policies create workload-policy "$SLICE" "--project=$PROJECT" "--region=$REGION" \
    --type=HIGH_THROUGHPUT "--accelerator-topology=$TOPOLOGY" --accelerator-topology-mode=AUTO_CONNECT
  create "the template $SLICE" "$(quoted gcloud compute instance-templates delete "$SLICE" "--project=$PROJECT" "--region=$REGION" --quiet)" \
    gcloud compute instance-templates create "$SLICE" "--project=$PROJECT" "--instance-template-region=$REGION" "${MACHINE[@]}"
  create "$WHAT" "$(quoted "${GROUP[@]}" delete "$SLICE" "${AT[@]}" --quiet)" \
    "${GROUP[@]}" create "$SLICE" "${AT[@]}" "--size=$HOSTS" --target-size-policy-mode=bulk \
    "--template=projects/$PROJECT/regions/$REGION/instanceTemplates/$SLICE" \
    "--workload-policy=projects/$PROJECT/regions/$REGION/resourcePolicies/$SLICE" --default-action-on-vm-failure=do-nothing
  for ((attempt = 1; ; attempt++)); do # machines come later, and so do complaints
    now=$(state)
    [[ $now != RUNNING ]] || return 0
    message=$(ask "" "${GROUP[@]}" list-errors "$SLICE" "${AT[@]}" '--format=value(error.code,error.message)' | tail -n 1) || message=""
    [[ -z $message ]] || refused "$WHAT" "$message" "$attempt"
    ((attempt < CAPACITY_TRIES)) || no_capacity "$WHAT"
    back_off "$attempt" "$WHAT is not there yet ($now); looking again"
  done
}

workers() { # a dry run shows two names, which the cloud chooses
  ask "$SLICE-WORKER0"$'\n'"$SLICE-WORKER1" "${GROUP[@]}" list-instances "$SLICE" "${AT[@]}" '--format=value(instance.basename())'
}

state() {
  local states
  states=$(state_of "${GROUP[@]}" list-instances "$SLICE" "${AT[@]}" '--format=value(instanceStatus)')
  if ((DRY_RUN)) || [[ $states == UNKNOWN ]]; then
    echo "$states"
  elif [[ $(grep -c '^RUNNING$' <<<"$states") == "$HOSTS" ]]; then echo RUNNING; else echo WAITING; fi
}

train_on_machines
