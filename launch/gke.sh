#!/usr/bin/env bash
# Trains on a TPU slice of a cluster of Google Kubernetes Engine: makes a node pool, runs a JobSet, deletes both.
#
#   PROJECT=p ZONE=us-west4-a CLUSTER=c BUCKET=gs://b TOPOLOGY=16x16 launch/gke.sh [--dry-run] -- --config=configs/vgg16.py
#
# The cluster must be there, with JobSet 0.8 or later, the Cloud Storage FUSE CSI driver and Workload Identity (docs/launch.md).
# What follows -- goes to vgg_jax.main. Values, written before the command:
#   CLUSTER          the cluster's name; LOCATION, if its location is not the ZONE (of a regional cluster, the region)
#   TOPOLOGY         of the chips: 4x4 to 16x16 for v5e and v6e, 2x2x2 and larger for v5p
#   MACHINE_TYPE     default ct5lp-hightpu-4t (v5e); others: ct6e-standard-4t (v6e), ct5p-hightpu-4t (v5p)
#   SERVICE_ACCOUNT  of Kubernetes, which may read and write BUCKET; default: default
#   IMAGE            default python:3.12

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
rented "STANDARD SPOT" 'CLUSTER the name of the cluster' 'TOPOLOGY the shape of the slice, e.g. 4x8'
need_program kubectl "install it with: gcloud components install kubectl"
MACHINE_TYPE=${MACHINE_TYPE:-ct5lp-hightpu-4t}
case $MACHINE_TYPE in
  ct5lp-*) ACCELERATOR=tpu-v5-lite-podslice ;;
  ct5p-*) ACCELERATOR=tpu-v5p-slice ;;
  ct6e-*) ACCELERATOR=tpu-v6e-slice ;;
  *) fail "MACHINE_TYPE=$MACHINE_TYPE is not known here: ct5lp-hightpu-4t (v5e), ct6e-standard-4t (v6e) or ct5p-hightpu-4t (v5p)." ;;
esac
hosts_of_slice

POOL="vgg-jax-$NAME"
AT=("--project=$PROJECT" "--location=${LOCATION:-$ZONE}")
OPTIONS=()
if ((HOSTS > 1)); then
  TRAIN_FLAGS+=(--distributed)
  OPTIONS+=("--tpu-topology=$TOPOLOGY")
fi
[[ $MODEL != SPOT ]] || OPTIONS+=(--spot)

yaml() { printf "'%s'" "${1//\'/\'\'}"; } # a string as YAML writes it

manifest() {
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(yaml "$POOL")
spec:
  ttlSecondsAfterFinished: 86400
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          completionMode: Indexed
          backoffLimit: 0
          activeDeadlineSeconds: $((MAX_HOURS * 3600))
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
                gke-gcsfuse/ephemeral-storage-limit: 10Gi
            spec:
              serviceAccountName: $(yaml "${SERVICE_ACCOUNT:-default}")
              restartPolicy: Never
              terminationGracePeriodSeconds: 120 # to save in
              nodeSelector:
                cloud.google.com/gke-nodepool: $(yaml "$POOL")
                cloud.google.com/gke-tpu-accelerator: $(yaml "$ACCELERATOR")
                cloud.google.com/gke-tpu-topology: $(yaml "$TOPOLOGY")
              tolerations:
                - {key: google.com/tpu, operator: Exists}
                - {key: cloud.google.com/gke-spot, operator: Exists}
              containers:
                - name: train
                  image: $(yaml "${IMAGE:-python:3.12}")
                  command:
                    - bash
                    - -c
                    - |
                      export MOUNT=/bucket CODE=/scratch/code DATA_DIR=/scratch/data $(node_settings '') WORKER=worker-\$JOB_COMPLETION_INDEX
                      git clone -q -n "\$MOUNT/code/\$COMMIT.bundle" "\$CODE" && git -C "\$CODE" checkout -q --detach "\$COMMIT" &&
                        exec bash "\$CODE/launch/node.sh" all
                  ports:
                    - {containerPort: 8471}
                    - {containerPort: 8482}
                  resources:
                    limits: {google.com/tpu: $CHIPS}
                  volumeMounts:
                    - {name: bucket, mountPath: /bucket}
                    - {name: scratch, mountPath: /scratch}
                    - {name: memory, mountPath: /dev/shm} # by itself 64 MiB, too little for data.processes
              volumes:
                - name: memory
                  emptyDir: {medium: Memory}
                - name: scratch
                  emptyDir: {}
                - name: bucket
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: $(yaml "${BUCKET#gs://}")
                      # Other pods' files are seen at once, and what is synced is in the bucket.
                      mountOptions: "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0,write:enable-streaming-writes:false"
END
}

rent() {
  export KUBECONFIG="$SCRATCH/kubeconfig" # the user's own stays as it is
  run gcloud container clusters get-credentials "$CLUSTER" "${AT[@]}"
  create "the node pool $POOL ($MACHINE_TYPE, $TOPOLOGY)" "$(quoted gcloud container node-pools delete "$POOL" "--cluster=$CLUSTER" "${AT[@]}" --quiet)" \
    gcloud container node-pools create "$POOL" "--cluster=$CLUSTER" "${AT[@]}" "--node-locations=$ZONE" \
    "--machine-type=$MACHINE_TYPE" "--num-nodes=$HOSTS" "--disk-size=$BOOT_DISK_GB" "--max-run-duration=$((MAX_HOURS * 3600))s" \
    --scopes=cloud-platform ${OPTIONS[@]+"${OPTIONS[@]}"}
}

workers() { seq -f worker-%g 0 $((HOSTS - 1)); }

start() {
  local file="$LOGS/jobset.yaml"
  if ((DRY_RUN)); then
    printf "+ cat >%s <<'END'\n%s\nEND\n" "$(quoted "$file")" "$(manifest)" >&3
  else
    manifest >"$file"
  fi
  create "the JobSet $POOL" "$(quoted kubectl delete jobset "$POOL" --ignore-not-found)" kubectl apply "--filename=$file"
}

state() {
  local state
  state=$(state_of kubectl get jobset "$POOL" '--output=jsonpath={.status.terminalState}')
  case $state in
    "") echo RUNNING ;;
    Completed | Failed) echo ENDED ;;
    *) echo "$state" ;;
  esac
}

train_on_machines
