"""timm's vision transformers against this project's: every architecture, or those of some patterns.

    python tests/timm_models.py [PATTERN...]

makes each architecture small (two blocks, a width of 96), gives all its parameters random values,
saves it as timm does, opens that folder, compares the logits, writes it as timm has it, and loads
that strictly. It prints how many published weights (tags) are equal, refused or differ, by class,
and exits 1 where one differs. It needs timm; a part of it is a test.
"""

import collections
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import torchvision_operators  # noqa: E402, F401, I001  before timm
import timm  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from small_vits import logits, random_tensor  # noqa: E402
from timm.models import _hub  # noqa: E402

from vit_jax import weights  # noqa: E402
from vit_jax.errors import UsageError  # noqa: E402
from vit_jax.weights import architectures  # noqa: E402

TOLERANCE = 1e-4
_DEPTH, _WIDTH, _HEADS = 2, 96, 2  # fused gates of all ratios have an even width


def small_arguments(name, metadata):
  """Returns arguments for timm.create_model that make an architecture small.

  Args:
    name: of the architecture.
    metadata: of published weights, whose images leave so many pixels beside the patches.
  """
  architecture = architectures.find(name)
  given = architecture.arguments
  if 'embed_layer' in given and given['embed_layer']['name'] == 'HybridEmbed':
    return hybrid_arguments(given)
  changes = {'embed_dim': _WIDTH, 'depth': _DEPTH, 'num_heads': _HEADS}
  if isinstance(given.get('num_kv_heads'), list):
    changes['num_kv_heads'] = (_HEADS, _HEADS // 2)
  if 'global_attn_indexes' in given:
    changes |= {'global_attn_indexes': (1,), 'window_size': 3}
  if architecture.cls == 'NaFlexVit':
    patch = given['patch_size']
    return changes | {'pos_embed_grid_size': (4, 4), 'img_size': (5 * patch, 3 * patch)}
  patch, side = given['patch_size'], metadata['input_size'][1]
  rest = side % patch
  return changes | {'img_size': (4 * patch + rest, 5 * patch + rest)}


def hybrid_arguments(given):
  """Returns those of a hybrid, whose convolutional network has a size of its own."""
  side = 64 if given['embed_layer']['backbone']['name'] == 'ResNetV2' else 48
  changes = {'depth': _DEPTH, 'img_size': side}
  if given['embed_layer'].get('proj', True):
    changes |= {'embed_dim': _WIDTH, 'num_heads': _HEADS}
  return changes


def randomised(model):
  """Returns the model with random values in all its parameters and statistics."""
  state = model.state_dict()
  values = {n: torch.from_numpy(random_tensor(n, tuple(t.shape))) for n, t in state.items()
            if t.is_floating_point()}  # fmt: skip
  model.load_state_dict({**state, **values})
  return model.eval()


def small_model(name, metadata, **changes):
  """Returns timm's model of an architecture, small and random, and the arguments that made it."""
  given = small_arguments(name, metadata) | {'num_classes': 5} | changes
  return randomised(timm.create_model(name, **given)), given


def theirs(model, images):
  """Returns timm's logits of images [B, H, W, C]."""
  with torch.no_grad():
    return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def compare(name, metadata, folder, **changes):
  """Returns the relative error of logits that are this project's; checks the way back.

  Raises:
    UsageError: the model is refused.
    AssertionError: what is written isn't what was read.
  """
  model, given = small_model(name, metadata, **changes)
  _hub.save_for_hf(model, folder, model_args=given, safe_serialization=True)
  variables, config = weights.load(folder)
  size = given['img_size']
  size = (size, size) if isinstance(size, int) else size
  images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
  expected = theirs(model, images)
  found = logits(variables, config, images)
  assert found.shape == expected.shape, (found.shape, expected.shape)
  assert np.abs(expected).std() > 1e-3
  error = float(np.abs(found - expected).max() / np.abs(expected).max())
  if error <= TOLERANCE:
    check_back(model, variables, config, Path(folder), images, expected)
  return error


def check_back(model, variables, config, folder, images, expected):
  """Asserts that timm reads what is written, a file and a folder, as it was."""
  weights.save(variables, config, folder / 'back.safetensors', format='timm')
  state = {n: torch.from_numpy(a) for n, a in _tensors(folder / 'back.safetensors').items()}
  their_state = model.state_dict()
  assert state.keys() == their_state.keys(), sorted(state.keys() ^ their_state.keys())
  for name, tensor in their_state.items():
    assert torch.equal(state[name], tensor), name
  weights.save(variables, config, folder / 'back', format='timm')
  again = timm.create_model(f'local-dir:{folder / "back"}', pretrained=True).eval()
  error = np.abs(theirs(again, images) - expected).max()
  assert error <= 1e-6 * np.abs(expected).max(), error


def _tensors(path):
  from vit_jax.weights import files

  return {
    name: array.copy() for name, array in files.parse_safetensors(path.read_bytes())[0].items()
  }


def outcomes(*patterns):
  """Yields (class, tag, outcome) of published weights; of architectures without any, too."""
  import fnmatch

  facts = architectures._facts()
  for name, given in facts['architectures'].items():
    if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
      continue
    tags = facts['tags'].get(name, {})
    known = {}
    for tag, stated in (tags or {'': {}}).items():
      metadata = {**facts['metadata'], **stated}
      rest = metadata['input_size'][1] % (given.get('patch_size') or 16)
      key = (metadata['num_classes'] == 0, rest)
      if key not in known:
        known[key] = outcome(name, metadata, {'num_classes': 0} if key[0] else {})
        print(f'{name}.{tag}', known[key], flush=True)
      yield given['class'], f'{name}.{tag}' if tag else name, known[key]


def outcome(name, metadata, changes):
  """Returns 'equal', or why a model isn't."""
  with tempfile.TemporaryDirectory() as folder:
    try:
      error = compare(name, metadata, folder, **changes)
    except UsageError as e:
      return f'refused: {str(e).splitlines()[0].replace(folder, "")[:200]}'
    except Exception as e:
      traceback.print_exc(limit=-2)
      return f'DIFFERS: {type(e).__name__} {str(e)[:150]}'
    return 'equal' if error <= TOLERANCE else f'DIFFERS: {error:.1e}'


def main(*patterns):
  """Prints the table; returns how many differ."""
  counts, reasons = collections.Counter(), collections.Counter()
  names = collections.defaultdict(set)
  for cls, tag, result in outcomes(*(patterns or '*')):
    kind = result.partition(':')[0]
    weight = '.' in tag
    counts[cls, kind] += weight
    names[kind].add(tag.partition('.')[0])
    if kind != 'equal':
      reasons[cls, result] += weight
  for (cls, kind), count in sorted(counts.items()):
    print(f'{cls:28} {kind:10} {count} tags')
  for (cls, reason), count in sorted(reasons.items()):
    print(f'{count:4} {cls}: {reason}')
  for kind in sorted(names):
    total = sum(count for (_, k), count in counts.items() if k == kind)
    print(f'{kind}: {total} tags, {len(names[kind])} architectures')
  return len(names['DIFFERS'])


if __name__ == '__main__':
  sys.exit(bool(main(*sys.argv[1:])))
