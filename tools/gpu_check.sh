#!/usr/bin/env bash
# Checks and times everything on one GPU, in under 9 minutes. Usage: tools/gpu_check.sh OUT [--tiny] [--only PART]...
# --tiny tries the same code on a machine without a GPU. Results: the table printed, OUT/gpu.json, OUT/PART.log.
#
# It expects Python 3.11 or newer (python3, or $PYTHON) with torch for CUDA, timm, transformers, tokenizers, safetensors,
# click, PyYAML, numpy and pytest; a part whose package is missing is skipped, and says so. What the machine lacks and
# cannot fetch is carried there in wheels/ (git ignores it), for its Python, as
#   pip download --only-binary :all: --python-version 3.12 --platform manylinux_2_28_x86_64 --no-deps -d wheels PACKAGE...
#   nvidia-dali-cuda130 nvidia-nvimgcodec-cu13 nvidia-libnvcomp-cu13 nvidia-nvjpeg2k-cu13 nvidia-nvtiff-cu13 nvtx astunparse gast
#   makefun libcst optree deepspeed hjson msgpack py-cpuinfo ninja einops simplejpeg opencv-python-headless zstandard
#   universal-pathlib pathlib-abc pydicom python-gdcm tensorboard matplotlib rich
# and whatever else is reported as missing. A file that is too large to carry may be cut: split -b 48M W.whl W.whl.part-
set -euo pipefail

out=$(realpath -m "${1:?usage: tools/gpu_check.sh OUT [--tiny] [--only PART]...}")
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
packages=$PWD/.venv-gpu

if [ -d wheels ] && [ ! -d "$packages" ]; then
  for first in wheels/*.whl.part-aa; do
    [ -e "$first" ] || continue
    cat "${first%aa}"* > "${first%.part-aa}"
  done
  # Into a folder of its own, not an environment: one made by an environment's Python would not see its packages.
  rm -rf "$packages.tmp"
  "$python" -m pip install --quiet --no-index --no-deps --target "$packages.tmp" wheels/*.whl
  mv "$packages.tmp" "$packages"
fi

export PYTHONPATH="$PWD:$packages${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m mrm_stream.cli bench gpu --out "$out" "$@"
