#!/usr/bin/env bash
# Trains on a TPU slice of a cluster of Google Kubernetes Engine: makes a node pool, runs a JobSet, deletes both.
#
#   PROJECT=p ZONE=us-west4-a CLUSTER=c BUCKET=gs://b TOPOLOGY=16x16 launch/gke.sh [--dry-run] -- --config=configs/vgg16.py
#
# The cluster must be there, with JobSet 0.8 or later, the Cloud Storage FUSE CSI driver and Workload Identity (docs/launch.md).
# What follows -- goes to vgg_jax.main. Values, written before the command:
#   PROJECT, ZONE    of Google Cloud, where the slice is
#   CLUSTER          the cluster's name; LOCATION, if its location is not the ZONE (of a regional cluster, the region)
#   BUCKET           with a hierarchical namespace; holds runs/NAME (the workdir), code, launches (logs)
#   TOPOLOGY         of the chips: 4x4 to 16x16 for v5e and v6e, 2x2x2 and larger for v5p
#   NAME             of the run; default: the configuration's. The same NAME continues with the run
#   MACHINE_TYPE     default ct5lp-hightpu-4t (v5e); others: ct6e-standard-4t (v6e), ct5p-hightpu-4t (v5p)
#   MODEL            STANDARD (default) or SPOT (cheaper, may be taken away)
#   SERVICE_ACCOUNT  of Kubernetes, which may read and write BUCKET; default: default
#   DATA             directory of prepared data in BUCKET, copied to each node; none for the built-in data
#   BOOT_DISK_GB     default 300, which holds ImageNet
#   MAX_HOURS        default 24: after these the JobSet ends, and the cloud takes the nodes away itself
#   TRIES            default 5: how often the JobSet is begun again after nodes were taken away
#   CAPACITY_TRIES   default 20: how often the node pool is asked for where there is no capacity
#   IMAGE            default python:3.12
#
# --dry-run prints every command and runs none. More: docs/launch.md

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
need 'PROJECT the project of Google Cloud' 'ZONE where the slice shall be, e.g. us-west4-a' 'CLUSTER the name of the cluster' \
  'BUCKET the bucket for the run, e.g. gs://my-bucket' 'TOPOLOGY the shape of the slice, e.g. 4x8'
need_program gcloud "install the Google Cloud CLI"
need_program kubectl "install it with: gcloud components install kubectl"
MACHINE_TYPE=${MACHINE_TYPE:-ct5lp-hightpu-4t} MODEL=${MODEL:-STANDARD} BOOT_DISK_GB=${BOOT_DISK_GB:-300}
counts BOOT_DISK_GB
case $MACHINE_TYPE in
  ct5lp-*) ACCELERATOR=tpu-v5-lite-podslice ;;
  ct5p-*) ACCELERATOR=tpu-v5p-slice ;;
  ct6e-*) ACCELERATOR=tpu-v6e-slice ;;
  *) fail "MACHINE_TYPE=$MACHINE_TYPE is not known here: ct5lp-hightpu-4t (v5e), ct6e-standard-4t (v6e) or ct5p-hightpu-4t (v5p)." ;;
esac
[[ $MODEL =~ ^(STANDARD|SPOT)$ ]] || fail "MODEL=$MODEL is not a provisioning model here: STANDARD or SPOT (cheaper, may be taken away)."
hosts_of_slice
find_commit
((HOSTS == 1)) || TRAIN_FLAGS+=(--distributed)

POOL="vgg-jax-$NAME"
WHAT="the node pool $POOL ($MACHINE_TYPE, $TOPOLOGY)"
AT=("--project=$PROJECT" "--location=${LOCATION:-$ZONE}")
OPTIONS=()
((HOSTS == 1)) || OPTIONS+=("--tpu-topology=$TOPOLOGY")
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
  failurePolicy:
    maxRestarts: $((TRIES - 1))
    rules:
      # Exit status 2: a mistake that only the user can mend.
      - name: refused
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
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
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {containerName: train, operator: In, values: [2]}
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
                      export LAUNCH=$LAUNCH-\$ATTEMPT WORKER=worker-\$JOB_COMPLETION_INDEX
                      git clone -q -n "\$MOUNT/code/\$COMMIT.bundle" "\$CODE" && git -C "\$CODE" checkout -q --detach "\$COMMIT" &&
                        exec bash "\$CODE/launch/node.sh" all
                  env:
                    - {name: ATTEMPT, valueFrom: {fieldRef: {fieldPath: "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"}}}
                    - {name: MOUNT, value: /bucket}
                    - {name: CODE, value: /scratch/code}
                    - {name: DATA_DIR, value: /scratch/data}
                    - {name: BUCKET, value: $(yaml "$BUCKET")}
                    - {name: NAME, value: $(yaml "$NAME")}
                    - {name: COMMIT, value: $(yaml "$COMMIT")}
                    - {name: DATA, value: $(yaml "${DATA:-}")}
                    - {name: DATA_DISK, value: ""}
                    - {name: EXTRA, value: tpu}
                    - {name: FLAGS, value: $(yaml "$(quoted "${TRAIN_FLAGS[@]}")")}
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
  run gcloud container clusters get-credentials "$CLUSTER" "${AT[@]}"
  create "$WHAT" "$(quoted gcloud container node-pools delete "$POOL" "--cluster=$CLUSTER" "${AT[@]}" --quiet)" \
    gcloud container node-pools create "$POOL" "--cluster=$CLUSTER" "${AT[@]}" "--node-locations=$ZONE" \
    "--machine-type=$MACHINE_TYPE" "--num-nodes=$HOSTS" "--disk-size=$BOOT_DISK_GB" "--max-run-duration=$((MAX_HOURS * 3600))s" \
    --scopes=cloud-platform ${OPTIONS[@]+"${OPTIONS[@]}"}
  LOGS="runs/launches/$NAME/$LAUNCH"
  local file="$LOGS/jobset.yaml"
  if ((DRY_RUN)); then
    printf "+ cat >%s <<'END'\n%s\nEND\n" "$(quoted "$file")" "$(manifest)" >&3
  else
    mkdir -p "$LOGS"
    manifest >"$file"
  fi
  create "the JobSet $POOL" "$(quoted kubectl delete jobset "$POOL" --ignore-not-found)" kubectl apply "--filename=$file"
}

watch_jobset() {
  local now seen
  ((DRY_RUN)) || say "training runs on $HOSTS node(s); Ctrl-C deletes them, the run stays in $BUCKET/runs/$NAME"
  while [[ -z $OUTCOME ]]; do
    pause "$POLL_SECONDS"
    seen=0
    now=$(ask Completed kubectl get jobset "$POOL" '--output=jsonpath={.status.terminalState}') || { now="" seen=1; }
    ((DRY_RUN)) || blind "$seen"
    bring "$BUCKET/launches/$NAME" "runs/launches/$NAME" || true
    tail -q -n 1 "$LOGS"-*/worker-0.log 2>/dev/null | tail -n 1 || true
    if [[ $now ]]; then
      OUTCOME=$now
    elif (($(date +%s) >= DEADLINE)); then
      OUTCOME=late
    fi
  done
}

begin
export KUBECONFIG="$SCRATCH/kubeconfig" # the user's own stays as it is
prepare_bucket
rent
watch_jobset
cleanup
((DRY_RUN)) && say "a dry run: nothing was made, nothing was run." && exit
case $OUTCOME in
  Completed) say "finished: the run is in $BUCKET/runs/$NAME, logs in $LOGS-*; all that was made has been deleted." ;;
  late) fail "MAX_HOURS=$MAX_HOURS are over; logs in $LOGS-*. The same command continues from the last checkpoint." 1 ;;
  *)
    ! grep -qsx 2 "$LOGS"-*/*.status || fail "training was refused: $(refusal "$LOGS"-*/*.log) (logs in $LOGS-*); all that was made has been deleted."
    fail "the JobSet ended as $OUTCOME after at most $TRIES tries; logs in $LOGS-*. The same command continues from the last checkpoint." 1
    ;;
esac
