#!/usr/bin/env bash
# Degradation by the paper's whole recipe (He et al. 2015, §4.2: 64,000 iterations of 128 images) on one GPU: plain and residual
# networks of 20 and 56 layers. Made for 25 minutes of an H100 or H200; not run on one yet.
#
#     benchmarks/degradation_gpu.sh DIR CIFAR [flags of benchmarks.comparators, which win over those below]
#
# CIFAR is a folder of the images, train/<class>/<image> and test/<class>/<image>. Leaves DIR/degradation.md, with the hardware on
# its first line. It stops training after the 25 minutes (MINUTES=...) and compares what is finished; the same command goes on.
# Its small form, which a CPU takes in minutes:
#
#     benchmarks/degradation_gpu.sh DIR CIFAR --share=1 --epochs=3 --processes=0
set -euo pipefail
if [[ $# -lt 2 || $1 == -* || $2 == -* ]]; then
  echo "usage: benchmarks/degradation_gpu.sh DIR CIFAR [flags of benchmarks.comparators]" >&2
  exit 2
fi
mkdir -p "$1"
directory=$(cd "$1" && pwd)
cifar=$(cd "$2" && pwd)
shift 2
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$directory/compiled}
flags=(
  --workdir="$directory" --cifar="$cifar" --groups=degradation --seeds=1 --share=100 --epochs=163.84 --processes=12 "$@"
)
# SIGINT saves the run that is under way. 124: the time is over; everything else that is not 0 is an error.
status=0
timeout --signal=INT --kill-after=60 "$((${MINUTES:-25} * 60))" "$python" -m benchmarks.comparators "${flags[@]}" || status=$?
if [[ $status -ne 0 && $status -ne 124 ]]; then
  exit "$status"
fi
{
  "$python" -c 'import jax; print(f"{jax.devices()[0].device_kind} x {jax.device_count()}, jax {jax.__version__}\n")'
  "$python" -m benchmarks.comparators "${flags[@]}" --notrain
} > "$directory/degradation.md"
cat "$directory/degradation.md"
