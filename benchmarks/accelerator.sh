#!/usr/bin/env bash
# Measures a GPU or a TPU: benchmarks/accelerator.sh [SECONDS], 520 unless given.
#
# Speed and its share of the device's peak for ViT-B/16, ViT-L/16, digits, MNIST and TokenLearner; then
# accuracy on CIFAR-10 after 50 epochs, one config after the other. It needs the packages of requirements.txt,
# and MNIST and CIFAR-10 as TFDS prepares them in $TFDS_DATA_DIR; what isn't there is left out and told.
# What the time doesn't suffice for is cut short: the run of a config that was stopped is kept, and goes on
# when the script is run again.
set -uo pipefail
cd "$(dirname "$0")/.."

limit=${1:-520}
python=${PYTHON:-python}
turns=(--turns=3 --seconds=2)
data=${TFDS_DATA_DIR:-$HOME/tensorflow_datasets}

# Runs a command in what is left of the time, after a line that names it.
measure() {
  local left=$((limit - SECONDS))
  echo
  echo "+ $*"
  if [ "$left" -lt 5 ]; then
    echo "no time is left"
  else
    timeout --signal=INT --kill-after=20 "$left" "$@" 2>&1 | grep -v -e '^ *$' -e ' left$'
  fi
}

# Whether TFDS has prepared a data set.
prepared() {
  [ -d "$data/$1" ] || { echo; echo "$1 isn't in $data: left out"; return 1; }
}

"$python" -c 'import jax; print(jax.__version__, jax.devices())'

# Digits, enlarged to the size of photographs; they stay on the device.
photographs=(--config.data.image_size='(224,224)' --config.data.channels=3 --config.data.resident=yes)
measure "$python" -m vit_jax.benchmark --config=configs/vit.py:B/16,digits "${photographs[@]}" \
  --config.batch_size=256 "${turns[@]}"
measure "$python" -m vit_jax.benchmark --config=configs/vit.py:L/16,digits "${photographs[@]}" \
  --config.batch_size=128 "${turns[@]}"
measure "$python" -m vit_jax.benchmark --config=configs/digits.py "${turns[@]}"
if prepared mnist; then
  measure "$python" -m vit_jax.benchmark --config=configs/mnist.py:fixed "${turns[@]}"
  measure "$python" -m vit_jax.benchmark --config=configs/token_learner.py:mnist \
    --against=configs/token_learner.py:mnist,plain "${turns[@]}"
fi
if prepared cifar10; then
  for variant in basic pe pe_conv strong; do
    measure "$python" train.py --config=configs/cifar10.py:$variant --workdir=runs/accelerator-$variant
  done
fi
echo
echo "$SECONDS seconds"
