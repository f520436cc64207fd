#!/usr/bin/env bash
# Steps of D and E in bfloat16 here and in torch (compiled, channels last, automatic mixed precision), dense evaluation from a cold
# start, and the input pipeline, on one GPU. Made for 25 minutes of an H100 or H200, whose peak is 989,000 GFLOP/s; not run on one yet.
#
#     benchmarks/peers_gpu.sh DIR [flags of benchmarks.peers, which win over those below]
#
# Leaves DIR/peers.md, with the hardware on its first line. Real images are found through VGG_JAX_PICTURES. Its small form, which a
# CPU takes in minutes and which measures steps alone:
#
#     SMALL=1 benchmarks/peers_gpu.sh DIR --nogpu --rows=quickstart --rounds=1 --torch=eager
set -euo pipefail
if [[ $# -lt 1 || $1 == -* ]]; then
  echo "usage: benchmarks/peers_gpu.sh DIR [flags of benchmarks.peers]" >&2
  exit 2
fi
mkdir -p "$1"
directory=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
# torch's processes are there at the same time as ours, so that nobody may take all of the memory.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
{
  "$python" -c 'import jax; print(f"{jax.devices()[0].device_kind} x {jax.device_count()}, jax {jax.__version__}\n")'
  "$python" -m benchmarks.peers --gpu --rounds=7 --torch=compiled "$@"
  if [[ -z ${SMALL:-} ]]; then
    printf '\n    '
    "$python" -m benchmarks.evaluation --configuration=D --width=1 --batch=256 | sed '2,$s/^/    /'
    printf '\n'
    "$python" -m benchmarks.input --seconds=3 --rounds=2
  fi
} | tee "$directory/peers.md"
