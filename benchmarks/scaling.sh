#!/usr/bin/env bash
# How training speed moves as work grows: benchmarks/scaling.sh [SIZE], a table of Markdown.
#
# A small ViT beside a small Swin Transformer with windows of 7, in turns, over 49 to 3,136 patches of 4 pixels; the ViT
# over widths and batches, and on a CPU over virtual devices, each beside the first. It takes some minutes on two cores.
# SIZE multiplies widths and batches: 1 unless given; 8 is for a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

size=${1:-1}
python=${PYTHON:-python}
benchmark=("$python" -m vit_jax.benchmark --turns=3 --seconds=1 --json)

# The fields of a ViT, under a prefix, with a width, a batch and a side of images.
vit() {
  echo "--$1=configs/vit.py:Ti/4,digits" "--$1.model.hidden_size=$2" "--$1.model.mlp_dim=$(($2 * 4))" \
    "--$1.model.num_layers=4" "--$1.model.num_heads=2" "--$1.batch_size=$3" "--$1.data.image_size=($4,$4)" \
    "--$1.data.resident=yes"
}

# Those of a Swin Transformer.
swin() {
  echo "--$1=configs/swin.py:T/7,digits" "--$1.model.embed_dim=$2" "--$1.model.depths=(2,2)" \
    "--$1.model.num_heads=(2,4)" "--$1.model.patches.size=(4,4)" "--$1.batch_size=$3" "--$1.data.image_size=($4,$4)" \
    "--$1.data.resident=yes"
}

# Runs a benchmark; prints a row under these two names.
row() {
  local what=$1 first=$2 second=$3
  shift 3
  "${benchmark[@]}" "$@" | "$python" -c '
import json, sys
report = json.load(sys.stdin)["train"]
shown = lambda s: "{median:,.2f} ({low:,.2f} to {high:,.2f})".format(**s)
speeds = [shown(row["images_per_second"]) for row in report["rows"].values()]
ratio = report["ratios"][0] if report["ratios"] else None
allowed = "{:.2f}".format(ratio["by_flops"]) if ratio else ""
print("|", " | ".join([*sys.argv[1:], *speeds, shown(ratio) if ratio else "", allowed]), "|")
' "$what" "$first / $second"
}

echo '| what grows | sides | images/s of the first | of the second | ratio | FLOPs allow |'
echo '| --- | --- | ---: | ---: | ---: | ---: |'
for side in 28 56 112 224; do
  tokens=$((side * side / 16))
  row "$tokens tokens" ViT Swin $(vit config $((64 * size)) $((2 * size)) $side) \
    $(swin against $((32 * size)) $((2 * size)) $side)
done
for factor in 2 4; do
  width=$((64 * size))
  row "width times $factor" "$width" $((width * factor)) $(vit config $width $((8 * size)) 56) \
    $(vit against $((width * factor)) $((8 * size)) 56)
done
for factor in 4 16; do
  batch=$((8 * size))
  row "batch times $factor" "$batch" $((batch * factor)) $(vit config $((64 * size)) $batch 56) \
    $(vit against $((64 * size)) $((batch * factor)) 56)
done
if "$python" -c 'import jax, sys; sys.exit(jax.default_backend() != "cpu")'; then
  for devices in 2 4 8; do
    row "$devices devices" 1 $devices --devices=1,$devices $(vit config $((64 * size)) $((32 * size)) 112)
  done
fi
