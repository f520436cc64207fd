#!/usr/bin/env bash
# The part of a rented machine: mounts the bucket, checks out the commit, installs it, copies the data, trains.
#
#   BUCKET=gs://b NAME=vgg16 FLAGS=--config=configs/vgg16.py bash launch/node.sh prepare | all
#
# Startup scripts of rented machines, launch/sky.yaml and containers of GKE run it. `prepare` ends before training. Finished
# steps are not repeated when it runs again. In the bucket it writes
#   runs/NAME/                          the run's workdir
#   launches/NAME/LAUNCH/WORKER.log     training's output, every SYNC_SECONDS; WORKER.alive the times of that
#   launches/NAME/LAUNCH/WORKER.status  its exit status, once it has ended

set -euo pipefail

: "${MOUNT:=$HOME/bucket}"      # where the bucket is mounted; a bucket that is mounted there already is used
: "${COMMIT:=}"                 # of BUCKET/code/COMMIT.bundle; empty: the code is here
: "${DATA:=}" "${FLAGS:=}"      # a directory of BUCKET, or /DIRECTORY here; flags of training, as a shell reads them
: "${EXTRA:=tpu}" "${PYTHON:=}" # of pip, tpu or gpu; an interpreter that has all that is needed, empty: install
: "${LAUNCH:=launch}" "${WORKER:=$(hostname -s)}" "${SYNC_SECONDS:=60}" "${GCSFUSE:=3.2.0}"
RELEASES=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download
: "${CODE:=${COMMIT:+$HOME/vgg_jax-$COMMIT}}" "${CODE:=$PWD}"
: "${DATA_DIR:=$HOME/data}" "${LOG:=$HOME/$NAME-$LAUNCH.log}"
REPORT="$MOUNT/launches/$NAME/$LAUNCH/$WORKER"
MEANT=0              # whether an exit status of 2 is meant, and not of some program that failed for a moment
SHOWN="" REPORTER="" # processes that show the log, and report

fail() { # SENTENCE
  printf 'error: %s\n' "$1" >&2
  MEANT=1
  exit 2
}

on_exit() { # STATUS
  [[ ! $REPORTER ]] || kill "$REPORTER" 2>/dev/null || true
  if [[ $SHOWN ]]; then
    [[ -f $REPORT.status ]] || { report && printf '%s\n' "$((MEANT || $1 != 2 ? $1 : 1))" >"$REPORT.status"; } || true
    sleep 0.5 # for the last lines to be shown
    kill "$SHOWN" 2>/dev/null || true
  fi
  ((MEANT || $1 != 2)) || exit 1
}
trap 'on_exit $?' EXIT

packages() { sudo apt-get -q -y -o DPkg::Lock::Timeout=600 "$@" >/dev/null; }

mounted() { [[ -d $MOUNT/code ]] || mountpoint -q "$MOUNT"; }
mount_bucket() {
  ! mounted || return 0
  if ! command -v gcsfuse >/dev/null; then
    packages update
    packages install curl fuse git python3-pip
    curl -fsSL -o /tmp/gcsfuse.deb "$RELEASES/v$GCSFUSE/gcsfuse_${GCSFUSE}_$(dpkg --print-architecture).deb"
    packages install /tmp/gcsfuse.deb
  fi
  # Other machines' files are seen at once (no cached metadata), and a synced file is in the bucket (no streaming writes).
  printf '%s\n' 'implicit-dirs: true' 'metadata-cache: {ttl-secs: 0, negative-ttl-secs: 0}' \
    'write: {enable-streaming-writes: false}' >"$HOME/gcsfuse.yaml"
  mkdir -p "$MOUNT"
  gcsfuse --config-file="$HOME/gcsfuse.yaml" "${BUCKET#gs://}" "$MOUNT"
}

check_out() {
  [[ $COMMIT ]] || return 0
  if [[ ! -d $CODE ]]; then
    rm -rf "$CODE.unfinished"
    git clone -q -n "$MOUNT/code/$COMMIT.bundle" "$CODE.unfinished"
    git -C "$CODE.unfinished" checkout -q --detach "$COMMIT"
    mv "$CODE.unfinished" "$CODE"
  fi
  [[ $(git -C "$CODE" rev-parse HEAD) == "$COMMIT" ]] || fail "$CODE is not at commit $COMMIT."
}

install() {
  [[ ! $PYTHON ]] || return 0
  PYTHON="$CODE/.venv/bin/python"
  [[ ! -f $CODE/.venv/complete ]] || return 0
  # The machines' own Python may be older than 3.11.
  python3 -m pip install -q --user uv || python3 -m pip install -q --user --break-system-packages uv
  "$HOME/.local/bin/uv" venv -q --clear --python 3.12 "$CODE/.venv"
  (cd "$CODE" && "$HOME/.local/bin/uv" pip install -q --python "$PYTHON" -c constraints.txt -e ".[$EXTRA]")
  touch "$CODE/.venv/complete"
}

# Copied, not read through the mount: records are read in random order, and each would be a request that takes time and money.
copy_data() {
  [[ $DATA != /* ]] || DATA_DIR=$DATA
  [[ $DATA && $DATA != /* && ! -f $DATA_DIR/.complete ]] || return 0
  [[ -d $MOUNT/$DATA ]] || fail "there is no directory $DATA in $BUCKET; prepare the data there, or name another DATA."
  mkdir -p "$DATA_DIR"
  local needed there
  needed=$(du -s --apparent-size -B 1000000 "$MOUNT/$DATA" | cut -f 1)
  there=$(($(du -s --apparent-size -B 1000000 "$DATA_DIR" | cut -f 1) + $(df -B 1000000 --output=avail "$DATA_DIR" | tail -n 1)))
  ((needed < there)) || fail "the data in $BUCKET/$DATA are $needed MB and there are $there MB for them on the disk of $WORKER; give a larger disk (BOOT_DISK_GB, or --disk-size of SkyPilot)."
  # shellcheck disable=SC2016 # expanded by the inner shell
  (cd "$MOUNT/$DATA" && find . -type f -print0) | xargs -0 -P 16 -I FILE bash -c '
    [[ -f $2/$3 && $(stat -c %s "$1/$3") == $(stat -c %s "$2/$3") ]] && exit
    mkdir -p "$(dirname "$2/$3")" && cp "$1/$3" "$2/$3.unfinished" && mv "$2/$3.unfinished" "$2/$3"
  ' copy "$MOUNT/$DATA" "$DATA_DIR" FILE
  touch "$DATA_DIR/.complete"
}

# Runs every minute, so that a failure of the bucket is made good the next time. WORKER.alive grows, so a copy by size sees it.
report() {
  mounted && mkdir -p "$(dirname "$REPORT")" && cp "$LOG" "$REPORT.log" && date +%s >>"$REPORT.alive" || return
  # A file in the mount is in the bucket only once it has been synced, and these stay open for as long as the run.
  find "$MOUNT/runs/$NAME" -maxdepth 2 \( -name metrics.jsonl -o -name 'events.*' \) -exec sync {} + 2>/dev/null || true
}

train() {
  local flags=() status child ended
  [[ $DATA ]] && flags+=("--config.data.dir=$DATA_DIR")
  eval "flags+=($FLAGS)" # quoted by the launcher
  cd "$CODE"
  "$PYTHON" -m vgg_jax.main "--workdir=$MOUNT/runs/$NAME" "${flags[@]}" >>"$LOG" 2>&1 &
  child=$!
  trap 'kill -TERM $child 2>/dev/null || true' TERM INT
  # A signal ends `wait`; training then saves, and is waited for.
  for ((status = 0; ; status = 0)); do
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  kill "$REPORTER" 2>/dev/null || true
  ended=$SECONDS
  until report && printf '%s\n' "$status" >"$REPORT.status"; do
    ((SECONDS < ended + 600)) || break # the launcher takes silence for a crash
    sleep "$SYNC_SECONDS"
  done
  MEANT=1
  return "$status"
}

prepare() {
  mount_bucket
  check_out
  install
  copy_data
}

case ${1:-} in
  prepare) prepare ;;
  all)
    : >>"$LOG"
    tail -n +1 -F "$LOG" 2>/dev/null &
    SHOWN=$!
    (while sleep "$SYNC_SECONDS"; do report || true; done) >/dev/null 2>&1 & # from now on, because the data may take long
    REPORTER=$!
    prepare >>"$LOG" 2>&1
    train
    ;;
  *) fail "say what to do: prepare or all." ;;
esac
