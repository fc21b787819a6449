#!/usr/bin/env bash
# Measures a GPU or a TPU: benchmarks/accelerator.sh [SECONDS] [ROW...], 520 seconds and all rows unless given.
#
# Rows, in this order: vit_b, vit_l, swin, resnet and mnist beside PyTorch (from timm where it is installed, under
# torch.compile, SDPA), token_learner beside plain attention, batches of vit_b and vit_l, attention: its kernels beside
# XLA's products, digits, and cifar10: accuracy after 50 epochs, one config after the other. Images are digits, enlarged
# to 224 pixels, which stay on the device.
# It needs the packages of requirements.txt. MNIST's images are digits, too, unless TFDS has prepared MNIST in
# $TFDS_DATA_DIR; cifar10 needs it there. What isn't there is left out and told.
# What the time doesn't suffice for is cut short or left out: give the rows that are missing. The run of a config that
# was stopped is kept, and goes on when the script is run again.
set -uo pipefail
cd "$(dirname "$0")/.."

limit=${1:-520}
rows=("${@:2}")
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

# Whether a row is asked for.
wanted() {
  [ ${#rows[@]} -eq 0 ] || [[ " ${rows[*]} " == *" $1 "* ]]
}

# Whether TFDS has prepared a data set.
prepared() {
  [ -d "$data/$1" ]
}

# Whether Python finds a module.
installed() {
  "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"
}

for row in "${rows[@]}"; do
  case $row in
    vit_b | vit_l | swin | resnet | mnist | token_learner | batches | cublas | attention | digits | cifar10) ;;
    *) echo "accelerator.sh: no row $row" >&2; exit 2 ;;
  esac
done
"$python" -c 'import jax; print(jax.__version__, jax.devices())' || exit

photographs=(--config.data.image_size='(224,224)' --config.data.channels=3 --config.data.resident=yes)
against=()
# transformers has no models that average over patches, as classifier=gap does.
if installed torch && { installed timm || installed transformers; }; then
  against=(--against=torch --torch=compile)
  installed timm || against+=(--config.model.classifier=token)
else
  echo "torch, or timm and transformers, aren't installed: PyTorch is left out"
fi
mnist=(--config.data.resident=yes)
plain=(--against.data.resident=yes)
if ! prepared mnist; then
  echo "mnist isn't in $data: its images are digits, enlarged to 28 pixels"
  mnist+=(--config.data.name=digits --config.data.image_size='(28,28)')
  plain+=(--against.data.name=digits --against.data.image_size='(28,28)')
fi

if wanted vit_b; then
  measure "$python" -m vit_jax.benchmark --config=configs/vit.py:B/16,digits "${photographs[@]}" \
    --config.batch_size=256 "${turns[@]}" "${against[@]}"
fi
if wanted vit_l; then
  measure "$python" -m vit_jax.benchmark --config=configs/vit.py:L/16,digits "${photographs[@]}" \
    --config.batch_size=64 "${turns[@]}" "${against[@]}"
fi
if wanted swin; then
  measure "$python" -m vit_jax.benchmark --config=configs/swin.py:T/7,digits "${photographs[@]}" \
    --config.model.patches.size='(4,4)' --config.batch_size=128 "${turns[@]}" "${against[@]}"
fi
if wanted resnet; then
  measure "$python" -m vit_jax.benchmark --config=configs/resnet.py:resnet50,digits "${photographs[@]}" \
    --config.batch_size=256 "${turns[@]}" "${against[@]}"
fi
if wanted mnist; then
  loader=()
  [ ${#against[@]} -eq 0 ] || loader=(--against=torch --torch=eager,compile --torch_loader)
  measure "$python" -m vit_jax.benchmark --config=configs/mnist.py:fixed "${mnist[@]}" "${turns[@]}" "${loader[@]}"
fi
if wanted token_learner; then
  measure "$python" -m vit_jax.benchmark --config=configs/token_learner.py:mnist "${mnist[@]}" \
    --against=configs/token_learner.py:mnist,plain "${plain[@]}" "${turns[@]}"
fi
if wanted batches; then
  for size in 128 512; do
    measure "$python" -m vit_jax.benchmark --config=configs/vit.py:B/16,digits "${photographs[@]}" \
      --config.batch_size=$size "${turns[@]}"
  done
  measure "$python" -m vit_jax.benchmark --config=configs/vit.py:L/16,digits "${photographs[@]}" \
    --config.batch_size=128 "${turns[@]}"
fi
if wanted cublas; then
  (
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_triton_gemm=false"
    echo -e "\nXLA_FLAGS=$XLA_FLAGS"
    measure "$python" -m vit_jax.benchmark --config=configs/vit.py:B/16,digits "${photographs[@]}" \
      --config.batch_size=256 "${turns[@]}"
  )
fi
if wanted attention; then
  measure "$python" -m vit_jax.models.layers.attention_times
fi
if wanted digits; then
  measure "$python" -m vit_jax.benchmark --config=configs/digits.py "${turns[@]}"
fi
if wanted cifar10; then
  if prepared cifar10; then
    for variant in basic pe pe_conv strong; do
      measure "$python" train.py --config=configs/cifar10.py:$variant --workdir=runs/accelerator-$variant
    done
  else
    echo
    echo "cifar10 isn't in $data: left out"
  fi
fi
echo
echo "$SECONDS seconds"
