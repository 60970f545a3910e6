#!/usr/bin/env bash
# The whole way on synthetic data, on the CPU: some minutes on two cores. Usage: tools/demo.sh DIR
set -euo pipefail

out=${1:?usage: tools/demo.sh DIR}
configs=$(cd "$(dirname "$0")/../configs" && pwd)
if [ -e "$out" ]; then
  echo "$out is there already: \`make clean\` removes demo/, or give another directory" >&2
  exit 1
fi

say() { printf '\n== %s\n' "$*"; }

say "1/4 synthetic radiographs with reports, laid out as MIMIC-CXR-JPG"
mrm-stream phantom --out "$out/phantom" -n 1200 --size 384

say "2/4 packed into shards"
mrm-stream shard --src mimic --root "$out/phantom" --out "$out/shards" --short-side 384

say "3/4 masked record pre-training on two CPU ranks"
mrm-stream train --config "$configs/demo.yaml" --shards "$out/shards" --out "$out/run" --ranks 2

say "4/4 reconstructed radiographs and reports, of patients that training never saw"
mrm-stream reconstruct --run "$out/run" --split validate --out "$out/reconstructed.png"

say "done"
cat <<EOF
The picture:   $out/reconstructed.png  (and its curves: $out/reconstructed-curves.png)
The encoder:   $out/run/encoder.safetensors  (loads into timm by name)
The run:       $out/run  (metrics.jsonl, tensorboard/, checkpoints/, config.yaml)
Next:          source .venv/bin/activate: the commands are then at hand
               your own radiographs: see "From MIMIC-CXR to an encoder" in README.md
EOF
