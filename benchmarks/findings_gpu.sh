#!/usr/bin/env bash
# The findings at full width and crop 96 on one GPU, made for 25 minutes on an H200; not run on one yet.
#
#     benchmarks/findings_gpu.sh DIR [flags of benchmarks.findings, which win over those below]
#
# Leaves DIR/findings.json and DIR/findings.md, with the hardware on its first line. It stops training after the 25 minutes
# (MINUTES=...) and compares what is finished; the same command goes on. Pictures: imagenette-5k under VGG_JAX_PICTURES.
# Its small form, which a CPU takes in minutes:
#
#     benchmarks/findings_gpu.sh DIR --width=0.0625 --fc_width=32 --crop=32 --epochs=1 --seeds=1 --batch_size=32
set -euo pipefail
if [[ $# -eq 0 || $1 == -* ]]; then
  echo "usage: benchmarks/findings_gpu.sh DIR [flags of benchmarks.findings]" >&2
  exit 2
fi
mkdir -p "$1"
directory=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$directory/compiled}
flags=(
  --workdir="$directory" --groups=recipe,random,jitter --seeds=2 --epochs=30
  --width=1 --fc_width=4096 --dropout_rate=0.5 --crop=96 --batch_size=128 --rate=0.01 --dtype=bfloat16 --threads=14 "$@"
)
# SIGINT saves the run that is under way. 124: the time is over; everything else that is not 0 is an error.
status=0
timeout --signal=INT --kill-after=60 "$((${MINUTES:-25} * 60))" "$python" -m benchmarks.findings "${flags[@]}" || status=$?
if [[ $status -ne 0 && $status -ne 124 ]]; then
  exit "$status"
fi
{
  "$python" -c 'import jax; print(f"{jax.devices()[0].device_kind} x {jax.device_count()}, jax {jax.__version__}\n")'
  "$python" -m benchmarks.findings "${flags[@]}" --notrain
} > "$directory/findings.md"
cat "$directory/findings.md"
