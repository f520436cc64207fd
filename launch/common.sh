# shellcheck shell=bash
# What the launchers share: the command line, the commit, and the life of a rented machine. To be sourced.
#
# It keeps to what bash 3.2 knows, which is what macOS has.

set -euo pipefail

SELF=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
SCRIPT="launch/${SELF##*/}"
cd "$(dirname "${BASH_SOURCE[0]}")/.." # the repository, on which all paths below rest
DRY_RUN=0
TRAIN_FLAGS=()
# Values that are words, of any launcher.
VALUES=(
  ACCELERATOR_TYPE ACCOUNT BUCKET CLUSTER DATA DATA_DISK GPUS IAP IMAGE IMAGE_FAMILY LAUNCH LOCATION MACHINE_TYPE MODEL NAME
  PARTITION PROJECT PYTHON QOS RUNTIME_VERSION SERVICE_ACCOUNT SHARED TIME TOPOLOGY ZONE
)
exec 3>&1 4>&2 # for what is shown also where output is captured
UNDO=()    # commands that delete what was made, in the order of making
SIGNAL=""  # that stopped the launcher
OUTCOME="" # how a try ended: an exit status of vgg_jax.main, "preempted", "silent" or "late"

# How often, and seconds between; the tests set the seconds to 0.
TRIES=${TRIES:-5}
CAPACITY_TRIES=${CAPACITY_TRIES:-20}
SSH_TRIES=${SSH_TRIES:-5}
POLL_SECONDS=${POLL_SECONDS:-60}
BACKOFF_SECONDS=${BACKOFF_SECONDS:-30}
SILENT_SECONDS=${SILENT_SECONDS:-1200} # nodes report every minute; after so long without, training is taken for dead
MAX_HOURS=${MAX_HOURS:-24}
# shellcheck disable=SC2034 # the launchers read it
SSH_FLAGS=(-- -o ServerAliveInterval=60) # so that ssh notices a machine that is gone

say() { printf '%s\n' "$*"; }

fail() { # SENTENCE [STATUS]
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

# The comment at the head of a launcher is its help; where machines are rented, the table below is its end.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$SELF"
  ! grep -q '^rented ' "$SELF" || sed -n '/^# Values of every/,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

# Values of every launcher that rents machines:
#   PROJECT, ZONE   of Google Cloud, where the machines are
#   BUCKET          with a hierarchical namespace; holds runs/NAME (the workdir), code, launches (logs)
#   NAME            of the run; default: the configuration's. The same NAME continues with the run
#   MODEL           STANDARD (default) or SPOT (cheaper, may be taken away)
#   DATA            directory of prepared data in BUCKET, copied to each machine; none for the built-in data
#   BOOT_DISK_GB    default 300, which holds ImageNet; not of launch/tpu_queue.sh
#   MAX_HOURS       default 24, at most 2880: after these the machines are deleted, whatever has become of the launcher
#   TRIES           default 5: how often they are rented in all, where they are taken away
#   CAPACITY_TRIES  default 20: how often they are asked for where there is no capacity
# --dry-run prints every command and runs none. More: docs/launch.md

parse() { # "$@" of the launcher
  while (($#)); do
    case $1 in
      --help | -h) usage && exit 0 ;;
      --dry-run) DRY_RUN=1 ;;
      --) shift && TRAIN_FLAGS=("$@") && break ;;
      *) fail "'$1' is not a flag of $SCRIPT: flags of training come after --, values as NAME=... before the command; see $SCRIPT --help." ;;
    esac
    shift
  done
  local flag config="" name
  for name in "${VALUES[@]}"; do one_line "$name" "${!name:-}"; done
  for flag in ${TRAIN_FLAGS[@]+"${TRAIN_FLAGS[@]}"}; do
    one_line "the flag ${flag%%=*}" "$flag"
    case $flag in
      --config=*) config=${flag#--config=} ;;
      --workdir | --workdir=*) fail "$flag: the launcher says where the run is written; choose NAME=... in its place." ;;
    esac
  done
  [[ $config ]] || fail "say what to train: $SCRIPT -- --config=configs/vgg16.py, for example; $SCRIPT --help says more."
  [[ -f ${config%%:*} ]] || fail "--config=$config: there is no such file in $PWD; configuration files lie in configs/."
  if [[ -z ${NAME:-} ]]; then # configs/vgg19.py:S=384 -> vgg19-s-384
    NAME=$(basename "${config%%:*}" .py)
    [[ $config == *:* ]] && NAME="$NAME-${config#*:}"
    NAME=$(printf '%s' "$NAME" | tr '[:upper:]_=./' '[:lower:]-----')
  fi
  [[ $NAME =~ ^[a-z]([-a-z0-9]{0,28}[a-z0-9])?$ ]] ||
    fail "NAME=$NAME cannot name a machine: at most 30 small letters, digits and dashes, beginning with a letter."
  counts TRIES CAPACITY_TRIES SSH_TRIES SILENT_SECONDS MAX_HOURS
  ((MAX_HOURS <= 2880)) || fail "MAX_HOURS=$MAX_HOURS is more than 2880, the 120 days that the cloud lets a machine run; give fewer."
  for name in POLL_SECONDS BACKOFF_SECONDS; do
    [[ ${!name} == 0 ]] || counts "$name"
  done
}

# Nothing may end the line on which it is written: YAML, a job's settings, gcloud's lists.
one_line() { # WHAT VALUE
  local mark shown
  for mark in [[:cntrl:]] $'\xc2\x85' $'\xe2\x80\xa8' $'\xe2\x80\xa9'; do # and the ends of lines of Unicode
    [[ $2 == *$mark* ]] || continue
    printf -v shown '%q' "$2"
    fail "$1 is ${shown:0:80}, with a line's end or another control character in it; write it without."
  done
}

counts() { # NAME...
  local name
  for name; do
    [[ ${!name} =~ ^[1-9][0-9]{0,5}$ ]] || fail "$name=${!name:0:40} is not a whole number from 1 up to 999999, written without leading zeros."
  done
}

need() { # 'NAME what it is, e.g. EXAMPLE'...
  local line name missing="" explained=""
  for line; do
    name=${line%% *}
    [[ -n ${!name:-} ]] && continue
    missing+="${missing:+ and }$name"
    explained+="${explained:+; }$name is ${line#* }"
  done
  [[ -z $missing ]] || fail "$missing must be given: $explained. Write them before the command, as in ${missing%% *}=... $SCRIPT ..."
}

rented() { # MODELS 'NAME what it is, e.g. EXAMPLE'...: what every launcher that rents needs, and these
  local models=$1
  shift
  need 'PROJECT the project of Google Cloud' 'ZONE where the machines shall be, e.g. us-west4-a' 'BUCKET the bucket for the run, e.g. gs://my-bucket' "$@"
  need_program gcloud "install the Google Cloud CLI"
  MODEL=${MODEL:-STANDARD} BOOT_DISK_GB=${BOOT_DISK_GB:-300}
  counts BOOT_DISK_GB
  [[ " $models " == *" $MODEL "* ]] || fail "MODEL=$MODEL is not a provisioning model: ${models// /, } can be given; $SCRIPT --help says more."
  AT=("--project=$PROJECT" "--zone=$ZONE")
}

need_program() { # PROGRAM REMEDY
  ((DRY_RUN)) || command -v "$1" >/dev/null || fail "the program '$1' is not here; $2."
}

# Exactly a commit is launched, so there must be one that says all.
find_commit() {
  local changed
  changed=$(git status --porcelain 2>/dev/null) || fail "$PWD is no git repository; launch from a clone, so that the commit can be named."
  [[ -z $changed ]] || fail "files differ from the commit, $(head -n 1 <<<"${changed:3}") among them: commit or remove them, so that what is launched is a commit."
  COMMIT=$(git rev-parse HEAD)
}

quoted() { # WORD... -> one line that a shell reads as these words
  local word line=""
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  printf '%s' "${line# }"
}

# A child in the background does not keep bash from heeding a signal at once.
attend() { # COMMAND...
  local status=0
  "$@" <"${STDIN:-/dev/null}" &
  CHILD=$!
  wait "$CHILD" || status=$?
  CHILD=""
  return "$status"
}

run() { # COMMAND...: shows it, and does it unless this is a dry run
  printf '+ %s%s\n' "$(quoted "$@")" "${STDIN:+ <$STDIN}" >&3
  ((DRY_RUN)) || attend "$@"
}

ask() { # ANSWER COMMAND...: what the command prints; ANSWER in a dry run, where the command is shown
  local answer=$1
  shift
  if ((DRY_RUN)); then
    printf '+ %s\n' "$(quoted "$@")" >&3
    printf '%s\n' "$answer"
  else
    "$@" 2>"$SCRATCH/answers"
  fi
}

pause() { ((DRY_RUN)) || attend sleep "$1"; }

# --- machines that cost money ---

create() { # WHAT UNDO COMMAND...: makes something paid for; whatever comes, UNDO is run before the launcher ends
  local what=$1 undo=$2 attempt wait=$BACKOFF_SECONDS
  shift 2
  for ((attempt = 1; ; attempt++)); do
    UNDO+=("$undo")
    run "$@" 2>"$SCRATCH/stderr" && return
    cat "$SCRATCH/stderr" >&2
    refused "$what" "$(<"$SCRATCH/stderr")" "$attempt"
    say "no capacity for $what in $ZONE now; trying again in $wait s ($attempt of $CAPACITY_TRIES)"
    undo_down_to $((${#UNDO[@]} - 1))
    pause "$wait"
    wait=$((wait < 600 ? wait * 2 : wait))
  done
}

# INTERNAL_ERROR is how some zones say that they have none left.
refused() { # WHAT MESSAGE ATTEMPT: ends the launcher unless it is worth another attempt
  if grep -qiE 'already exists|alreadyExists' <<<"$2"; then
    local undo=${UNDO[${#UNDO[@]} - 1]}
    unset "UNDO[$((${#UNDO[@]} - 1))]" # it is not ours
    fail "$1 exists already: another launch of NAME=$NAME is under way, or was left behind. Choose another NAME, or delete it with: $undo"
  elif grep -qiE 'quota' <<<"$2"; then
    fail "the quota of project $PROJECT does not allow $1 in $ZONE; ask for more under IAM & Admin, Quotas, or choose another ZONE. It was not tried again." 1
  elif ! grep -qiE 'ZONE_RESOURCE_POOL_EXHAUSTED|stock-?out|INTERNAL_ERROR|(not enough|does not have enough|insufficient|no more|no available) (resources|capacity)|no capacity' <<<"$2"; then
    fail "$1 could not be made: $(grep -v '^ *$' <<<"$2" | tail -n 1)" 1
  elif (($3 >= CAPACITY_TRIES)); then
    fail "$ZONE had no capacity for $1 in $CAPACITY_TRIES tries; try another ZONE, or later." 1
  fi
}

# Once begun it goes through, and a signal that comes meanwhile counts when it is done: it would leave a machine behind. What the cloud is still making it may refuse to
# delete until it is made, which takes longer than other trouble.
undo_down_to() { # NUMBER of things that stay
  local i attempt tries left="" gone
  ((BASH_SUBSHELL)) || note_signals # in `on_exit` they are not heeded any more
  for ((i = ${#UNDO[@]} - 1; i >= $1; i--)); do
    printf '+ %s\n' "${UNDO[i]}" >&3 || true # nobody may read any more
    gone=$DRY_RUN tries=5
    for ((attempt = 1; attempt <= tries && !gone; attempt++)); do
      if (trap '' INT TERM HUP && eval "${UNDO[i]}") </dev/null >/dev/null 2>"$SCRATCH/undo" || grep -qiE 'not.?found|does not exist' "$SCRATCH/undo"; then
        gone=1
      else
        ! grep -qiE 'incompatible operation|try again once it is done|wait and try again' "$SCRATCH/undo" || tries=60
        (trap '' INT TERM HUP && sleep "$BACKOFF_SECONDS")
      fi
    done
    ((gone)) || left+=" ${UNDO[i]};"
    unset "UNDO[i]"
  done
  ((BASH_SUBSHELL)) || heed_signals
  [[ -z $left ]] || fail "something that costs money could not be deleted ($(tail -n 1 "$SCRATCH/undo")). Delete it by hand:$left otherwise it runs until MAX_HOURS=$MAX_HOURS are over." 1
  [[ -z $SIGNAL ]] || ((BASH_SUBSHELL)) || exit "$SIGNAL_STATUS"
}

cleanup() { undo_down_to 0; }

note_signals() {
  trap 'SIGNAL=SIGINT SIGNAL_STATUS=130' INT
  trap 'SIGNAL=SIGTERM SIGNAL_STATUS=143' TERM
  trap 'SIGNAL=SIGHUP SIGNAL_STATUS=129' HUP
}

# The first signal is the last: a terminal that closes sends several.
heed_signals() {
  trap 'trap "" INT TERM HUP; SIGNAL=SIGINT; exit 130' INT
  trap 'trap "" INT TERM HUP; SIGNAL=SIGTERM; exit 143' TERM
  trap 'trap "" INT TERM HUP; SIGNAL=SIGHUP; exit 129' HUP
}

on_exit() { # STATUS
  trap '' INT TERM HUP
  trap - EXIT
  exec 1>&3 2>&4 # a signal may have come where output was captured
  local child
  for child in $(jobs -p); do kill "$child" 2>/dev/null || true; done
  local any=${#UNDO[@]}
  (cleanup) || exit 1
  rm -rf "$SCRATCH"
  set +e # nobody may read any more
  if [[ $SIGNAL ]]; then
    ((any)) && say "stopped by $SIGNAL; all that was made has been deleted. The same command continues from the last checkpoint." >&2
    ((any)) || say "stopped by $SIGNAL; nothing was running." >&2
  elif (($1)) && ((any)); then
    say "all that was made has been deleted." >&2
  fi
  exit "$1"
}

begin() { # what every launcher that rents does first
  SCRATCH=$(mktemp -d)
  trap 'on_exit $?' EXIT
  trap '' PIPE # where output goes may end first, as tee does at Ctrl-C
  heed_signals
  LAUNCH=${LAUNCH:-$(date -u +%Y%m%dt%H%M%S)}
  DEADLINE=$(($(date +%s) + MAX_HOURS * 3600))
}

# For what is asked for now and comes later. The launcher defines `request`, `state` and `trouble`, which prints what the
# cloud complains of.
await() { # WHAT
  local attempt wait=$BACKOFF_SECONDS now message
  for ((attempt = 1; ; attempt++)); do
    now=$(state)
    [[ $now == RUNNING ]] && return
    message=$(trouble) || message="" # ignore a single failed poll
    [[ -z $message ]] || refused "$1" "$message" "$attempt"
    ((attempt < CAPACITY_TRIES)) || fail "$ZONE had no capacity for $1 in $CAPACITY_TRIES tries; try another ZONE, or later." 1
    say "$1 is not there yet ($now); looking again in $wait s ($attempt of $CAPACITY_TRIES)"
    pause "$wait"
    wait=$((wait < 600 ? wait * 2 : wait))
    if [[ $now == FAILED || $now == GONE ]]; then
      undo_down_to $((${#UNDO[@]} - 1))
      request
    fi
  done
}

state_of() { # COMMAND...: what it prints; GONE where there is no such thing, UNKNOWN where it cannot be said
  ask RUNNING "$@" && return
  if grep -qiE 'not.?found|does not exist' "$SCRATCH/answers"; then echo GONE; else echo UNKNOWN; fi
}

# Flags of a machine of Compute Engine; after MAX_HOURS the cloud itself deletes it, whatever has become of the launcher.
machine_flags() {
  MACHINE=(
    "--machine-type=$MACHINE_TYPE" --image-project=ubuntu-os-accelerator-images
    "--image-family=${IMAGE_FAMILY:-ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e}" "--boot-disk-size=${BOOT_DISK_GB}GB"
    --maintenance-policy=TERMINATE "--provisioning-model=$MODEL" "--max-run-duration=${MAX_HOURS}h"
    --instance-termination-action=DELETE --scopes=cloud-platform
  )
  SSH=(--quiet)
  if [[ ${IAP:-} ]]; then
    MACHINE+=(--no-address)
    SSH+=(--tunnel-through-iap)
  fi
  # shellcheck disable=SC2329 # `on_worker` calls it
  ssh_to() { run gcloud compute ssh "$1" "${AT[@]}" "${SSH[@]}" "--command=$2" "${SSH_FLAGS[@]}"; }
}

hosts_of_slice() { # sets HOSTS from TOPOLOGY, as 4x8, and MACHINE_TYPE, as ct6e-standard-4t
  local chips
  [[ $TOPOLOGY =~ ^[1-9][0-9]{0,3}x[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})?$ ]] || fail "TOPOLOGY=$TOPOLOGY is no topology; write 4x8, or 4x4x8 for v5p."
  [[ $MACHINE_TYPE =~ -([1-9][0-9]?)t$ ]] || fail "MACHINE_TYPE=$MACHINE_TYPE is no TPU machine; ct6e-standard-4t is one."
  CHIPS=${BASH_REMATCH[1]}
  chips=$((${TOPOLOGY//x/*}))
  ((chips % CHIPS == 0 && chips > 0)) || fail "TOPOLOGY=$TOPOLOGY has $chips chips, which machines of $CHIPS ($MACHINE_TYPE) do not divide."
  # shellcheck disable=SC2034 # the launchers read it
  HOSTS=$((chips / CHIPS))
}

# --- the bucket ---

prepare_bucket() {
  [[ $BUCKET =~ ^gs://[a-z0-9][-_.a-z0-9]*$ ]] || fail "BUCKET=$BUCKET is not a bucket: write gs://name, without a directory."
  [[ ${DATA:-} != gs://* && ${DATA:-} != /* ]] || fail "DATA=$DATA: name the directory inside $BUCKET, as in DATA=datasets."
  local namespace
  namespace=$(ask True gcloud storage buckets describe "$BUCKET" --project="$PROJECT" '--format=value(hierarchical_namespace.enabled)') ||
    fail "$BUCKET cannot be read: $(tail -n 1 "$SCRATCH/answers")"
  # A checkpoint is published by renaming its directory, which is one step only there.
  [[ $namespace == True ]] || fail "$BUCKET has no hierarchical namespace, so checkpoints could become visible half-written. Make one that has: gcloud storage buckets create gs://NAME --location=${ZONE%-*} --uniform-bucket-level-access --enable-hierarchical-namespace"
  ((DRY_RUN)) || mkdir -p runs/launches
  run git bundle create --quiet "runs/launches/$COMMIT.bundle" HEAD
  run gcloud storage cp --no-clobber "runs/launches/$COMMIT.bundle" "$BUCKET/code/$COMMIT.bundle"
}

node_settings() { # WORKER: NAME=value words for launch/node.sh
  local flags=""
  flags=$(quoted ${TRAIN_FLAGS[@]+"${TRAIN_FLAGS[@]}"})
  quoted "BUCKET=$BUCKET" "NAME=$NAME" "COMMIT=$COMMIT" "LAUNCH=$LAUNCH-$try" "WORKER=$1" EXTRA=tpu \
    "DATA=${DATA:-}" "DATA_DISK=${DATA_DISK:-}" "FLAGS=$flags"
}

# --- training ---

# A launcher that rents machines defines:
#   rent     makes them and waits until they are there
#   workers  prints their names
#   state    prints RUNNING while they are all there, ENDED where training is known to have ended
#   ssh_to WORKER COMMAND, or, where they are not reached by ssh,
#   start    sets them up and begins training
train_on_machines() {
  local try wait=$BACKOFF_SECONDS
  find_commit
  begin
  prepare_bucket
  for ((try = 1; try <= TRIES; try++)); do
    OUTCOME=""
    LOGS="runs/launches/$NAME/$LAUNCH-$try"
    ((DRY_RUN)) || mkdir -p "$LOGS"
    rent
    find_workers
    if declare -F start >/dev/null; then start; else start_over_ssh; fi
    [[ $OUTCOME ]] || watch
    cleanup
    if ((DRY_RUN)); then
      say "a dry run: nothing was made, nothing was run."
      return
    fi
    case $OUTCOME in
      0)
        say "finished: the run is in $BUCKET/runs/$NAME, logs in $LOGS; all that was made has been deleted."
        return
        ;;
      2) fail "training was refused: $(refusal "$LOGS"/*.log) (logs in $LOGS); all that was made has been deleted." ;;
      late) ;;
      silent) say "training is taken for dead (try $try of $TRIES; logs in $LOGS); the run continues from its last checkpoint" ;;
      preempted) say "the machines were taken away (try $try of $TRIES); the run continues from its last checkpoint" ;;
      *) say "training ended with status $OUTCOME (try $try of $TRIES; logs in $LOGS); it continues from its last checkpoint" ;;
    esac
    (($(date +%s) < DEADLINE)) || fail "MAX_HOURS=$MAX_HOURS are over; the same command continues from the last checkpoint." 1
    ((try == TRIES)) || pause "$wait"
    wait=$((wait < 600 ? wait * 2 : wait))
  done
  fail "gave up after $TRIES tries, the last of which ended with: $OUTCOME; logs in $LOGS. The same command continues from the last checkpoint." 1
}

refusal() { # FILE...: the last sentence that says why, else the last line
  local sentence
  sentence=$(grep -h '^error: ' "$@" 2>/dev/null | tail -n 1) || sentence=$(cat "$@" 2>/dev/null | tail -n 1)
  printf '%s' "${sentence#error: }"
}

find_workers() {
  local name attempt
  for ((attempt = 1; attempt <= 5; attempt++)); do
    WORKERS=()
    while IFS= read -r name; do WORKERS+=("$name"); done < <(workers)
    ((${#WORKERS[@]} == 0)) || break
    pause "$BACKOFF_SECONDS"
  done
  ((${#WORKERS[@]})) || fail "the cloud names no machine of $NAME: $(tail -n 1 "$SCRATCH/answers")" 1
}

start_over_ssh() {
  # Training begins when all are ready: processes wait for each other for minutes only, and data may take longer.
  on_all_workers prepare
  [[ $OUTCOME ]] || on_all_workers start
}

on_all_workers() { # prepare | start
  local name pids=() failed="" i
  for name in "${WORKERS[@]}"; do
    if ((DRY_RUN)); then
      on_worker "$name" "$1"
    else
      on_worker "$name" "$1" >>"$LOGS/$name.start" 2>&1 3>&1 &
      pids+=($!)
    fi
  done
  if ((DRY_RUN && ${#WORKERS[@]} > 1)); then say "# and so for every other machine"; fi
  attend_workers ${pids[@]+"${pids[@]}"}
  [[ -z $OUTCOME ]] || return 0
  for ((i = 0; i < ${#pids[@]}; i++)); do
    ((STATUSES[i] == 0)) || failed+="${failed:+, }${WORKERS[i]}"
  done
  [[ $failed ]] || return 0
  if [[ $(state) == RUNNING ]]; then
    fail "worker $failed could not be set up over ssh in $SSH_TRIES tries; its output is in $LOGS." 1
  fi
  OUTCOME=preempted
}

# Sets STATUSES. Data may be copied for hours, in which machines can be taken away without ssh's noticing.
attend_workers() { # PID of each worker
  local pids=("$@") looked=$SECONDS every=$((POLL_SECONDS > 5 ? POLL_SECONDS : 5)) now i run
  STATUSES=()
  while :; do
    run=0
    for ((i = 0; i < $#; i++)); do
      [[ ! ${STATUSES[i]:-} ]] || continue
      if kill -0 "${pids[i]}" 2>/dev/null; then
        run=1
        continue
      fi
      STATUSES[i]=0
      wait "${pids[i]}" || STATUSES[i]=$?
      ((STATUSES[i] != 2)) || fail "${WORKERS[i]}: $(refusal "$LOGS/${WORKERS[i]}.start")"
    done
    ((run)) || return 0
    attend sleep 0.2
    ((SECONDS - looked >= every)) || continue
    looked=$SECONDS
    now=$(state)
    [[ $now == RUNNING || $now == UNKNOWN ]] || OUTCOME=preempted
    (($(date +%s) < DEADLINE)) || OUTCOME=late
    [[ $OUTCOME ]] || continue
    kill "$@" 2>/dev/null || true
    wait "$@" 2>/dev/null || true
    return 0
  done
}

on_worker() { # WORKER, prepare | start
  local attempt status command
  ((DRY_RUN)) || trap 'kill $(jobs -p) 2>/dev/null; exit 143' TERM INT HUP
  command="cat >vgg_jax_node.sh && env $(node_settings "$1") bash vgg_jax_node.sh $2"
  for ((attempt = 1; attempt <= SSH_TRIES; attempt++)); do
    status=0
    STDIN=launch/node.sh ssh_to "$1" "$command" || status=$?
    ((status != 0 && status != 2)) || return "$status"
    say "ssh to $1 ended with status $status ($attempt of $SSH_TRIES)"
    sleep "$BACKOFF_SECONDS"
  done
  return 1
}

bring() { # FROM TO: what nodes have reported, as far as it is there
  if ((DRY_RUN)); then run gcloud storage rsync --recursive "$1" "$2"; else
    attend gcloud storage rsync --recursive "$1" "$2" >/dev/null 2>"$SCRATCH/answers" ||
      grep -qiE 'not.?f(ou|i)nd|matched no' "$SCRATCH/answers" # nothing is there yet
  fi
}

BLIND=0 # looks in a row that told nothing
blind() { # STATUS: of the last look; says so where looking fails again and again
  BLIND=$(($1 ? BLIND + 1 : 0))
  ((BLIND % 30 != 3)) || say "nothing is to be seen of the run for $BLIND looks; it continues as it is: $(tail -n 1 "$SCRATCH/answers")"
}

watch() { # until training has ended everywhere, or the machines are gone
  local shown=0 now worst lines log="$LOGS/${WORKERS[0]}.log" seen i alive heard=() heard_at=()
  ((DRY_RUN)) || say "training runs on ${#WORKERS[@]} machine(s); Ctrl-C deletes them, the run stays in $BUCKET/runs/$NAME"
  while :; do
    pause "$POLL_SECONDS"
    now=$(state)
    seen=0
    bring "$BUCKET/launches/$NAME/$LAUNCH-$try" "$LOGS" || seen=$?
    if ((DRY_RUN)); then return; fi
    blind "$seen"
    if [[ -f $log ]]; then
      lines=$(wc -l <"$log" | tr -d ' ') # whole ones
      ((lines <= shown)) || sed -n "$((shown + 1)),${lines}p" "$log"
      shown=$lines
    fi
    # 2 is the user's to mend and outweighs what the others say, who were only taken down with it.
    worst=$(cat "$LOGS"/*.status 2>/dev/null | sort -n | tail -n 1) || true
    if grep -qsx 2 "$LOGS"/*.status; then OUTCOME=2; elif [[ $worst && $worst != 0 ]]; then OUTCOME=$worst; fi
    [[ $worst == 0 && $(cat "$LOGS"/*.status | wc -l) -ge ${#WORKERS[@]} ]] && OUTCOME=0
    # Nodes that are being taken away stop training first, with 143.
    [[ $now != RUNNING && $now != UNKNOWN && $OUTCOME != 0 && $OUTCOME != 2 && ! ($now == ENDED && $OUTCOME) ]] && OUTCOME=preempted
    [[ $OUTCOME ]] && return
    for ((i = 0; i < ${#WORKERS[@]}; i++)); do
      [[ ! -f $LOGS/${WORKERS[i]}.status ]] || continue
      alive=$(tail -n 1 "$LOGS/${WORKERS[i]}.alive" 2>/dev/null) || true
      # Who cannot look knows nothing of silence.
      if ((seen)) || [[ ! ${heard_at[i]:-} || $alive != "${heard[i]}" ]]; then
        heard[i]=$alive heard_at[i]=$SECONDS
      elif ((SECONDS - heard_at[i] >= SILENT_SECONDS)); then
        say "nothing was heard from ${WORKERS[i]} for $SILENT_SECONDS s"
        OUTCOME=silent && return
      fi
    done
    if (($(date +%s) >= DEADLINE)); then OUTCOME=late && return; fi
  done
}
