# shellcheck shell=bash
# Sourced by the launchers: the command line, the commit, the life of a rented machine. For bash 3.2, which macOS has.

set -euo pipefail

SELF=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
SCRIPT="launch/${SELF##*/}"
cd "$(dirname "${BASH_SOURCE[0]}")/.." # all paths below are relative to the repository
DRY_RUN=0
TRAIN_FLAGS=()
VALUES="ACCOUNT BUCKET DATA GPUS IAP IMAGE_FAMILY LAUNCH MACHINE_TYPE MODEL NAME PARTITION PROJECT PYTHON QOS SHARED TIME
  TOPOLOGY ZONE" # that are words, of any launcher
exec 3>&1 4>&2 # for output that is shown even where stdout is captured
UNDO=()        # commands that delete what was made, in the order of making
SIGNAL=""      # the signal that stopped the launcher
OUTCOME=""     # of a try: an exit status of training, "preempted", "silent" or "late"

# Numbers of tries, and seconds between them; the tests set the seconds to 0. Nodes report every minute.
: "${TRIES:=5}" "${CAPACITY_TRIES:=20}" "${POLL_SECONDS:=60}" "${BACKOFF_SECONDS:=30}"
: "${SILENT_SECONDS:=1200}" "${MAX_HOURS:=24}"

say() { printf '%s\n' "$*"; }
fail() { # SENTENCE [STATUS]
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

# Prints the comment at the head of a launcher; where machines are rented, the table below follows.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$SELF"
  ! grep -q '^rented ' "$SELF" || sed -n '/^# Values of every/,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

# Values of every launcher that rents machines:
#   PROJECT, ZONE   of Google Cloud, where the machines are
#   BUCKET          with a hierarchical namespace; holds runs/NAME (the workdir), code, launches (logs)
#   NAME            of the run; default: the configuration's. The same NAME continues the run
#   MODEL           STANDARD (default), SPOT (cheaper, may be preempted) or FLEX_START (queued, at most seven days)
#   DATA            directory of prepared data in BUCKET, copied to each machine; none for the built-in data
#   IAP             1: no public addresses; packages are then installed through Cloud NAT
#   BOOT_DISK_GB    default 300, which holds ImageNet
#   MAX_HOURS       default 24, at most 2880: then the cloud deletes the machines, even where the launcher was killed
#   TRIES           default 5: how often machines are rented in all, where they are preempted
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
  for name in $VALUES; do one_line "$name" "${!name:-}"; done
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
  counts TRIES CAPACITY_TRIES SILENT_SECONDS MAX_HOURS
  ((MAX_HOURS <= 2880)) || fail "MAX_HOURS=$MAX_HOURS is more than 2880, the 120 days that the cloud lets a machine run; give fewer."
  for name in POLL_SECONDS BACKOFF_SECONDS; do [[ ${!name} == 0 ]] || counts "$name"; done
}

one_line() { # WHAT VALUE: refuses a value that would end its line in YAML, a job's settings or gcloud's lists
  local mark shown
  for mark in [[:cntrl:]] $'\xc2\x85' $'\xe2\x80\xa8' $'\xe2\x80\xa9'; do # the last three end lines in Unicode
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
  local line missing="" explained=""
  for line; do
    local name=${line%% *}
    [[ -z ${!name:-} ]] || continue
    missing+="${missing:+ and }$name" explained+="${explained:+; }$name is ${line#* }"
  done
  [[ -z $missing ]] || fail "$missing must be given: $explained. Write them before the command, as in ${missing%% *}=... $SCRIPT ..."
}

need_program() { # PROGRAM REMEDY
  ((DRY_RUN)) || command -v "$1" >/dev/null || fail "the program '$1' is not here; $2."
}

rented() { # DEFAULT_MACHINE_TYPE 'NAME what it is, e.g. EXAMPLE'...: checks values; sets AT and MACHINE, flags of gcloud
  need 'PROJECT the project of Google Cloud' 'ZONE where the machines shall be, e.g. us-west4-a' 'BUCKET the bucket for the run, e.g. gs://my-bucket' "${@:2}"
  need_program gcloud "install the Google Cloud CLI"
  : "${MACHINE_TYPE:=$1}" "${MODEL:=STANDARD}" "${BOOT_DISK_GB:=300}" "${IMAGE_FAMILY:=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e}"
  counts BOOT_DISK_GB
  [[ $MODEL =~ ^(STANDARD|SPOT|FLEX_START)$ ]] ||
    fail "MODEL=$MODEL is not a provisioning model: STANDARD, SPOT, FLEX_START can be given; $SCRIPT --help says more."
  # shellcheck disable=SC2034 # the launchers read it
  AT=("--project=$PROJECT" "--zone=$ZONE")
  # After --max-run-duration the cloud itself deletes a machine, even where the launcher was killed.
  MACHINE=(
    "" # the startup script of a try
    "--machine-type=$MACHINE_TYPE" --image-project=ubuntu-os-accelerator-images "--image-family=$IMAGE_FAMILY"
    "--boot-disk-size=${BOOT_DISK_GB}GB" --maintenance-policy=TERMINATE "--provisioning-model=$MODEL"
    "--max-run-duration=${MAX_HOURS}h" --instance-termination-action=DELETE --scopes=cloud-platform
  )
  [[ ! ${IAP:-} ]] || MACHINE+=(--no-address)
}

find_commit() { # sets COMMIT; refuses a tree that differs from it, because exactly a commit is launched
  local changed
  changed=$(git status --porcelain 2>/dev/null) || fail "$PWD is no git repository; launch from a clone, so that the commit can be named."
  [[ -z $changed ]] || fail "files differ from the commit, $(head -n 1 <<<"${changed:3}") among them: commit or remove them, so that what is launched is a commit."
  COMMIT=$(git rev-parse HEAD)
}

quoted() { # WORD... -> one line that a shell reads as these words
  local word line=""
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then line+=" $word"; else line+=" '${word//\'/\'\\\'\'}'"; fi
  done
  printf '%s' "${line# }"
}

attend() { # COMMAND...: runs it in the background, so that bash heeds a signal at once
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

ask() { # ANSWER COMMAND...: prints the command's output; in a dry run shows the command and prints ANSWER
  if ((DRY_RUN)); then
    printf '+ %s\n' "$(quoted "${@:2}")" >&3
    printf '%s\n' "$1"
  else "${@:2}" 2>"$SCRATCH/answers"; fi
}

pause() { ((DRY_RUN)) || attend sleep "$1"; }
back_off() { # ATTEMPT [MESSAGE]: pauses, twice as long after every attempt, up to 16 minutes
  local seconds=$((BACKOFF_SECONDS << ($1 < 6 ? $1 - 1 : 5)))
  [[ ! ${2:-} ]] || say "$2 in $seconds s ($1 of $CAPACITY_TRIES)"
  pause "$seconds"
}

# --- machines that cost money ---

create() { # WHAT UNDO COMMAND...: makes something paid for; UNDO is run before the launcher ends, however it ends
  local what=$1 undo=$2 attempt
  shift 2
  for ((attempt = 1; ; attempt++)); do
    UNDO+=("$undo")
    run "$@" 2>"$SCRATCH/stderr" && return
    cat "$SCRATCH/stderr" >&2
    refused "$what" "$(<"$SCRATCH/stderr")" "$attempt"
    undo_down_to $((${#UNDO[@]} - 1))
    back_off "$attempt" "no capacity for $what in $ZONE now; trying again"
  done
}

# INTERNAL_ERROR is how some zones say that they have none left.
refused() { # WHAT MESSAGE ATTEMPT: ends the launcher unless another attempt may succeed
  local last=$((${#UNDO[@]} - 1))
  if grep -qiE 'already exists|alreadyExists' <<<"$2"; then
    local undo=${UNDO[last]}
    unset "UNDO[last]" # it belongs to another launch
    fail "$1 exists already: another launch of NAME=$NAME is under way, or was left behind. Choose another NAME, or delete it with: $undo"
  elif grep -qiE 'quota' <<<"$2"; then
    fail "the quota of project $PROJECT does not allow $1 in $ZONE; ask for more under IAM & Admin, Quotas, or choose another ZONE. It was not tried again." 1
  elif ! grep -qiE 'ZONE_RESOURCE_POOL_EXHAUSTED|stock-?out|INTERNAL_ERROR|(not enough|does not have enough|insufficient|no more|no available) (resources|capacity)|no capacity' <<<"$2"; then
    fail "$1 could not be made: $(grep -v '^ *$' <<<"$2" | tail -n 1)" 1
  fi
  (($3 < CAPACITY_TRIES)) || no_capacity "$1"
}

no_capacity() { fail "$ZONE had no capacity for $1 in $CAPACITY_TRIES tries; try another ZONE, or later." 1; } # WHAT

# No signal stops a deletion. What the cloud is still making it may refuse to delete until it is made, which takes longer.
undo_down_to() { # NUMBER of things that stay
  local i attempt tries left="" gone
  for ((i = ${#UNDO[@]} - 1; i >= $1; i--)); do
    printf '+ %s\n' "${UNDO[i]}" >&3 || true # the reader may have ended
    gone=$DRY_RUN tries=5
    for ((attempt = 1; attempt <= tries && !gone; attempt++)); do
      if (trap '' INT TERM HUP && eval "${UNDO[i]}") </dev/null >/dev/null 2>"$SCRATCH/undo" || absent "$SCRATCH/undo"; then
        gone=1
      else
        ! grep -qiE 'incompatible operation|try again once it is done|wait and try again' "$SCRATCH/undo" || tries=60
        (trap '' INT TERM HUP && sleep "$BACKOFF_SECONDS")
      fi
    done
    ((gone)) || left+=" ${UNDO[i]};"
    unset "UNDO[i]"
  done
  [[ -z $left ]] || fail "something that costs money could not be deleted ($(tail -n 1 "$SCRATCH/undo")). Delete it by hand:$left otherwise it runs until MAX_HOURS=$MAX_HOURS are over." 1
}

stop() { # SIGNAL STATUS; only the first signal counts: a terminal that closes sends several
  trap '' INT TERM HUP
  SIGNAL=$1
  exit "$2"
}

on_exit() { # STATUS
  trap '' INT TERM HUP
  trap - EXIT
  exec 1>&3 2>&4 # a signal may have come where output was captured
  local child made=${#UNDO[@]} stopped="${SIGNAL:+stopped by $SIGNAL; }"
  for child in $(jobs -p); do kill "$child" 2>/dev/null || true; done
  (undo_down_to 0) || exit 1
  rm -rf "$SCRATCH"
  set +e # the reader may have ended
  if ((made && $1)); then
    say "${stopped}all that was made has been deleted.${SIGNAL:+ The same command continues from the last checkpoint.}" >&2
  elif [[ $SIGNAL ]]; then say "${stopped}nothing was running." >&2; fi
  exit "$1"
}

absent() { grep -qiE 'not.?found|does not exist' "$1"; } # FILE: whether the cloud's answer says so
state_of() { # COMMAND...: prints its output; GONE where there is no such thing, UNKNOWN where it cannot be said
  ask RUNNING "$@" && return
  if absent "$SCRATCH/answers"; then echo GONE; else echo UNKNOWN; fi
}

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

write_startup_script() { # FILE: launch/node.sh with its settings, which every machine runs when it starts
  local settings
  settings=$(quoted HOME=/root "BUCKET=$BUCKET" "NAME=$NAME" "COMMIT=$COMMIT" "LAUNCH=$LAUNCH-$try" "DATA=${DATA:-}" \
    "FLAGS=$(quoted "${TRAIN_FLAGS[@]}")")
  printf '+ (echo %s; echo %s; echo "set -- all"; cat launch/node.sh) >%s\n' "'#!/bin/bash'" "$(quoted "export $settings")" "$1" >&3
  ((!DRY_RUN)) || return 0
  mkdir -p "$LOGS"
  (echo '#!/bin/bash' && echo "export $settings" && echo "set -- all" && cat launch/node.sh) >"$1"
}

# A launcher that rents machines defines `rent`, which makes them and waits until they are there; `workers`, which prints
# their names; and `state`, which prints RUNNING while they are all there.
train_on_machines() {
  local try
  find_commit
  SCRATCH=$(mktemp -d)
  trap 'on_exit $?' EXIT
  trap '' PIPE # the reader of the output may end first, as tee does at Ctrl-C
  trap 'stop SIGINT 130' INT
  trap 'stop SIGTERM 143' TERM
  trap 'stop SIGHUP 129' HUP
  LAUNCH=${LAUNCH:-$(date -u +%Y%m%dt%H%M%S)} DEADLINE=$(($(date +%s) + MAX_HOURS * 3600))
  prepare_bucket
  for ((try = 1; try <= TRIES; try++)); do
    OUTCOME="" LOGS="runs/launches/$NAME/$LAUNCH-$try"
    write_startup_script "$LOGS/startup.sh"
    MACHINE[0]="--metadata-from-file=startup-script=$LOGS/startup.sh"
    rent
    find_workers
    watch
    undo_down_to 0
    case $OUTCOME in
      dry) say "a dry run: nothing was made, nothing was run." && return ;;
      0) say "finished: the run is in $BUCKET/runs/$NAME, logs in $LOGS; all that was made has been deleted." && return ;;
      2) fail "training was refused: $(refusal "$LOGS"/*.log) (logs in $LOGS); all that was made has been deleted." ;;
      late) ;;
      silent) say "training is taken for dead (try $try of $TRIES; logs in $LOGS); the run continues from its last checkpoint" ;;
      preempted) say "the machines were taken away (try $try of $TRIES); the run continues from its last checkpoint" ;;
      *) say "training ended with status $OUTCOME (try $try of $TRIES; logs in $LOGS); it continues from its last checkpoint" ;;
    esac
    (($(date +%s) < DEADLINE)) || fail "MAX_HOURS=$MAX_HOURS are over; the same command continues from the last checkpoint." 1
    ((try == TRIES)) || back_off "$try"
  done
  fail "gave up after $TRIES tries, the last of which ended with: $OUTCOME; logs in $LOGS. The same command continues from the last checkpoint." 1
}

refusal() { { grep -h '^error: ' "$@" || cat "$@"; } 2>/dev/null | tail -n 1 | sed 's/^error: //'; } # FILE...: why

find_workers() { # sets WORKERS; the first look may fail
  local attempt
  for attempt in 1 2 3 4 5; do
    read -r -d '' -a WORKERS < <(workers) || true
    ((${#WORKERS[@]} == 0)) || return 0
    pause "$BACKOFF_SECONDS"
  done
  fail "the cloud names no machine of $NAME: $(tail -n 1 "$SCRATCH/answers")" 1
}

watch() { # until training has ended everywhere, or the machines are gone
  local bring=(gcloud storage rsync --recursive "$BUCKET/launches/$NAME/$LAUNCH-$try" "$LOGS")
  local shown=0 now worst lines log="$LOGS/${WORKERS[0]}.log" unseen blind=0 i alive heard=() heard_at=()
  ((DRY_RUN)) || say "training runs on ${#WORKERS[@]} machine(s); Ctrl-C deletes them, the run stays in $BUCKET/runs/$NAME"
  while :; do
    pause "$POLL_SECONDS"
    now=$(state) unseen=0
    if ((DRY_RUN)); then run "${bring[@]}" && OUTCOME=dry && return; fi
    attend "${bring[@]}" >/dev/null 2>"$SCRATCH/answers" ||
      grep -qiE 'not.?f(ou|i)nd|matched no' "$SCRATCH/answers" || unseen=1 # where nothing is there yet, the look succeeded
    blind=$((unseen ? blind + 1 : 0)) # looks in a row that told nothing
    ((blind % 30 != 3)) || say "nothing is to be seen of the run for $blind looks; it continues as it is: $(tail -n 1 "$SCRATCH/answers")"
    if [[ -f $log ]]; then
      lines=$(wc -l <"$log" | tr -d ' ') # whole ones
      ((lines <= shown)) || sed -n "$((shown + 1)),${lines}p" "$log"
      shown=$lines
    fi
    # 2 is the user's to mend and outweighs the other statuses: a refusal takes the other processes down.
    worst=$(cat "$LOGS"/*.status 2>/dev/null | sort -n | tail -n 1) || true
    if grep -qsx 2 "$LOGS"/*.status; then OUTCOME=2; elif [[ $worst && $worst != 0 ]]; then OUTCOME=$worst; fi
    [[ $worst == 0 && $(cat "$LOGS"/*.status | wc -l) -ge ${#WORKERS[@]} ]] && OUTCOME=0
    # On a machine that is being taken away training ends first, with 143.
    [[ $now != RUNNING && $now != UNKNOWN && $OUTCOME != 0 && $OUTCOME != 2 ]] && OUTCOME=preempted
    for ((i = 0; i < ${#WORKERS[@]}; i++)); do
      [[ ! $OUTCOME && ! -f $LOGS/${WORKERS[i]}.status ]] || continue
      alive=$(tail -n 1 "$LOGS/${WORKERS[i]}.alive" 2>/dev/null) || true
      # A look that failed tells nothing of silence.
      if ((unseen)) || [[ ! ${heard_at[i]:-} || $alive != "${heard[i]}" ]]; then
        heard[i]=$alive heard_at[i]=$SECONDS
      elif ((SECONDS - heard_at[i] >= SILENT_SECONDS)); then
        say "nothing was heard from ${WORKERS[i]} for $SILENT_SECONDS s"
        attend gcloud compute instances get-serial-port-output "${WORKERS[i]}" "${AT[@]}" >"$LOGS/${WORKERS[i]}.serial" 2>&1 || true
        OUTCOME=silent
      fi
    done
    [[ $OUTCOME ]] || (($(date +%s) < DEADLINE)) || OUTCOME=late
    [[ ! $OUTCOME ]] || return 0
  done
}
