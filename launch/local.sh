#!/usr/bin/env bash
# Starts PROCESSES processes of `python -m vgg_jax.main ARGUMENTS` on this machine, which train together.
#
#   launch/local.sh -n PROCESSES [--devices-per-process D] [--module M] [--dry-run] -- ARGUMENTS...
#   launch/local.sh -n 4 --devices-per-process 2 -- --config=configs/quickstart.py
#
#   -n PROCESSES               number of processes
#   --devices-per-process D    GPUs of each, or virtual devices of the CPU; default 1
#   --module M                 another module in place of vgg_jax.main, with its first words: "vgg_jax evaluate"
#   --dry-run                  prints the commands and starts nothing
#
# Process 0 prints as usual; lines of the others begin with their number. Ctrl-C and SIGTERM reach every process once: they
# save after one common step, and the same launch continues. When a process ends with an error or is killed, the others have
# 10 seconds to end by themselves, and are killed then. The exit status is that of the first that failed.
#
# PYTHON names the interpreter (default: python), PORT the coordinator's port (default: a free one).

set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

python=${PYTHON:-python}
processes='' devices=1 module=vgg_jax.main dry_run=''
while (($#)); do
  case $1 in
    -n | --devices-per-process | --module)
      (($# > 1)) || fail "$1 needs a value; --help says more."
      [[ $1 == --module || $2 =~ ^[1-9][0-9]{0,2}$ || $2 =~ ^10([01][0-9]|2[0-4])$ ]] ||
        fail "$1 is '${2:0:40}'; it must be a whole number of at least 1 and at most 1024."
      case $1 in -n) processes=$2 ;; --module) module=$2 ;; *) devices=$2 ;; esac
      shift
      ;;
    --dry-run) dry_run=yes ;;
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    --) shift && break ;;
    *) fail "'$1' is not known; arguments of $module come after --, as in: launch/local.sh -n 2 -- --config=..." ;;
  esac
  shift
done
[[ -n $processes ]] || fail "say how many processes: -n 2, for example; --help says more."
(($#)) || fail "say after -- what to run, as in: launch/local.sh -n $processes -- --config=configs/quickstart.py"
command -v "$python" >/dev/null || fail "there is no '$python' here; name an interpreter with PYTHON=..."
read -ra words <<<"$module" && arguments=("$@")
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}

command_of() { # NUMBER of a process; sets `command`
  local ids
  ids=$(seq -s, $(($1 * devices)) $((($1 + 1) * devices - 1)))
  command=(env "JAX_NUM_CPU_DEVICES=$devices" "JAX_LOCAL_DEVICE_IDS=$ids" "$python" -m "${words[@]}"
    "--coordinator_address=localhost:$port" "--num_processes=$processes" "--process_id=$1" "${arguments[@]}")
}

if [[ -n $dry_run ]]; then
  for ((i = 0; i < processes; i++)); do
    command_of "$i"
    echo "${command[*]@Q}"
  done
  exit 0
fi

pids=()
stopping=''
# shellcheck disable=SC2329 # the traps call it
forward() { # SIGNAL: to the processes alone, not to their helpers, which end with them
  stopping=yes
  kill "-$1" "${pids[@]}" 2>/dev/null || true
}
# shellcheck disable=SC2064 # the name of now
for name in INT TERM HUP; do trap "forward $name" "$name"; done
trap 'kill -KILL "${pids[@]}" 2>/dev/null || true' EXIT

# With job control each process has its own group, so that Ctrl-C comes from here and not from the terminal too.
set -m
for ((i = 0; i < processes; i++)); do
  command_of "$i"
  if ((i == 0)); then
    "${command[@]}" &
  else
    "${command[@]}" > >(exec sed -u "s/^/[$i] /") 2> >(exec sed -u "s/^/[$i] /" >&2) &
  fi
  pids+=($!)
done

status=0 give_up_at=''
running=("${!pids[@]}")
while ((${#running[@]})); do
  for i in "${running[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then
      [[ -z $give_up_at ]] || ((SECONDS < give_up_at)) || kill -KILL "${pids[i]}" 2>/dev/null || true
      continue
    fi
    ended=0
    wait "${pids[i]}" || ended=$?
    unset "running[i]"
    ((ended && !status)) || continue
    status=$ended
    [[ -z $stopping ]] || continue
    echo "process $i of $processes has ended with status $ended; the others end too" >&2
    give_up_at=$((SECONDS + 10))
  done
  ((${#running[@]} == 0)) || sleep 0.2 || true
done
trap - EXIT
exit "$status"
