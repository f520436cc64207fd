#!/usr/bin/env bash
# What every rented machine does: mount the bucket, check out the commit, install it, copy the data, train.
#
#   bash node.sh prepare | start | all
#
# The launchers run it; its settings are environment variables, written by `node_settings` in launch/common.sh. `prepare` ends
# when the machine is ready, `start` leaves training running, `all` waits for it. It may be run again at any time: what is done
# is not done twice. In the bucket it writes
#   runs/NAME/                          the run's workdir
#   launches/NAME/LAUNCH/WORKER.log     what training printed, every SYNC_SECONDS; WORKER.alive the times of that
#   launches/NAME/LAUNCH/WORKER.status  its exit status, once it has ended

set -euo pipefail

MOUNT=${MOUNT:-$HOME/bucket}         # where the bucket lies; one that is there already is taken as it is
CODE=${CODE:-$HOME/vgg_jax-$COMMIT}  # where the commit is checked out
DATA_DIR=${DATA_DIR:-$HOME/data}     # where the data are copied
PYTHON=${PYTHON:-}                   # an interpreter that has all that is needed; empty: install
SYNC_SECONDS=${SYNC_SECONDS:-60}
GCSFUSE=${GCSFUSE:-3.2.0}
REPORT="$MOUNT/launches/$NAME/$LAUNCH/$WORKER"
LOG=${LOG:-$HOME/$NAME-$LAUNCH.log}
MEANT=0 # whether an exit status of 2 is meant, and not of some program that failed for a moment
SHOWN="" REPORTER="" # processes that run beside: what shows the log, what reports

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

mount_bucket() {
  [[ -d $MOUNT/code ]] && return
  if ! command -v gcsfuse >/dev/null; then
    packages update
    packages install curl fuse git python3-pip
    local deb
    deb="gcsfuse_${GCSFUSE}_$(dpkg --print-architecture).deb"
    curl -fsSL -o "/tmp/$deb" "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$GCSFUSE/$deb"
    packages install "/tmp/$deb"
  fi
  # Other machines' files are seen at once (no cached metadata), and what is synced is in the bucket (no streaming writes).
  cat >"$HOME/gcsfuse.yaml" <<END
implicit-dirs: true
metadata-cache: {ttl-secs: 0, negative-ttl-secs: 0}
write: {enable-streaming-writes: false}
END
  mkdir -p "$MOUNT"
  gcsfuse --config-file="$HOME/gcsfuse.yaml" "${BUCKET#gs://}" "$MOUNT" 9>&- # the lock is not the mount's
}

check_out() {
  if [[ ! -d $CODE ]]; then
    rm -rf "$CODE.unfinished"
    git clone -q -n "$MOUNT/code/$COMMIT.bundle" "$CODE.unfinished"
    git -C "$CODE.unfinished" checkout -q --detach "$COMMIT"
    mv "$CODE.unfinished" "$CODE"
  fi
  [[ $(git -C "$CODE" rev-parse HEAD) == "$COMMIT" ]] || fail "$CODE is not at commit $COMMIT."
}

install() {
  if [[ $PYTHON ]]; then return; fi
  PYTHON="$CODE/.venv/bin/python"
  [[ -f $CODE/.venv/complete ]] && return
  # The machines' own Python may be older than 3.11.
  python3 -m pip install -q --user uv || python3 -m pip install -q --user --break-system-packages uv
  local uv="$HOME/.local/bin/uv"
  "$uv" venv -q --clear --python 3.12 "$CODE/.venv"
  (cd "$CODE" && "$uv" pip install -q --python "$PYTHON" -c constraints.txt -e ".[$EXTRA]")
  touch "$CODE/.venv/complete"
}

# Copied, not read through the mount: records are read in random order, each would be a request that is waited for and paid for.
copy_data() {
  [[ $DATA ]] || return 0
  if [[ $DATA_DISK ]]; then
    mountpoint -q /mnt/vgg_jax_data || { sudo mkdir -p /mnt/vgg_jax_data && sudo mount -o ro,noload "$DATA_DISK" /mnt/vgg_jax_data; }
    DATA_DIR="/mnt/vgg_jax_data/$DATA"
    [[ -d $DATA_DIR ]] || fail "there is no directory $DATA on the disk of DATA_DISK."
    return
  fi
  [[ -d $MOUNT/$DATA ]] || fail "there is no directory $DATA in $BUCKET; prepare the data there, or name another DATA."
  [[ -f $DATA_DIR/.complete ]] && return
  mkdir -p "$DATA_DIR"
  local needed there
  needed=$(du -s --apparent-size -B 1000000 "$MOUNT/$DATA" | cut -f 1)
  there=$(($(du -s --apparent-size -B 1000000 "$DATA_DIR" | cut -f 1) + $(df -B 1000000 --output=avail "$DATA_DIR" | tail -n 1)))
  ((needed < there)) || fail "the data in $BUCKET/$DATA are $needed MB and there are $there MB for them on the disk of $WORKER; give a larger disk, BOOT_DISK_GB or DATA_DISK."
  # shellcheck disable=SC2016 # expanded by the inner shell
  (cd "$MOUNT/$DATA" && find . -type f -print0) | xargs -0 -P 16 -I FILE bash -c '
    [[ -f $2/$3 && $(stat -c %s "$1/$3") == $(stat -c %s "$2/$3") ]] && exit
    mkdir -p "$(dirname "$2/$3")" && cp "$1/$3" "$2/$3.unfinished" && mv "$2/$3.unfinished" "$2/$3"
  ' copy "$MOUNT/$DATA" "$DATA_DIR" FILE
  touch "$DATA_DIR/.complete"
}

# Every minute; what goes wrong with the bucket once goes well the next time.
report() {
  mkdir -p "$(dirname "$REPORT")" && cp "$LOG" "$REPORT.log" && date +%s >>"$REPORT.alive" || return # it grows, so that a copy by size sees it
  # A file in the mount is in the bucket only once it has been synced, and these stay open for as long as the run.
  find "$MOUNT/runs/$NAME" -maxdepth 2 \( -name metrics.jsonl -o -name 'events.*' \) -exec sync {} + 2>/dev/null || true
}

report_regularly() {
  (while sleep "$SYNC_SECONDS"; do report || true; done) &
  REPORTER=$!
}

train() {
  local flags=() status=0 child
  [[ $DATA ]] && flags+=("--config.data.dir=$DATA_DIR")
  eval "flags+=(${FLAGS:-})" # quoted by the launcher
  cd "$CODE"
  "$PYTHON" -m vgg_jax.main "--workdir=$MOUNT/runs/$NAME" "${flags[@]}" >>"$LOG" 2>&1 &
  child=$!
  trap 'kill -TERM $child 2>/dev/null || true' TERM INT
  [[ $REPORTER ]] || report_regularly
  # A signal ends `wait`; training then saves, and is waited for.
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
  done
  kill "$REPORTER" 2>/dev/null || true
  local ended=$SECONDS
  until report && printf '%s\n' "$status" >"$REPORT.status"; do
    ((SECONDS < ended + 600)) || break # the launcher takes silence for a crash
    sleep "$SYNC_SECONDS"
  done
  MEANT=1
  return "$status"
}

prepare() {
  # After a lost connection a second one may come while the first still works.
  exec 9>"$HOME/.vgg_jax.lock"
  flock 9
  mount_bucket
  check_out
  install
  copy_data
  exec 9>&-
  export PYTHON DATA_DIR LOG MOUNT CODE
}

case ${1:-} in
  prepare) prepare ;;
  start) # in a session of its own, which outlives ssh
    prepare
    if (set -C && : >"$LOG") 2>/dev/null; then # of two at once one makes it
      nohup setsid bash "$0" train </dev/null >"$LOG.launcher" 2>&1 &
      echo "training has begun"
    else
      echo "training has begun already"
    fi
    ;;
  train) train ;;
  all) # in the foreground, for a container
    : >>"$LOG"
    tail -n +1 -F "$LOG" 2>/dev/null &
    SHOWN=$!
    report_regularly # from now on, because the data may take long
    prepare >>"$LOG" 2>&1
    train
    ;;
  *) fail "say what to do: prepare, start or all." ;;
esac
