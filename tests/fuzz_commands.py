"""Command lines of every command, valid and short, and changes of them."""

import functools
import re

from conftest import TINY as _TINY

from vit_jax.cli import _fields

TINY = _TINY[1:]
_FEW = ('--config.data.train_split=train[:4]', '--config.data.test_split=test[:4]')
_CONFIGS = (
  'digits.py',
  'digits.py',
  'vit.py:Ti/4,digits',
  'token_learner.py:Ti/4,digits',
  'resnet.py:digits',
  'swin.py:T,digits',
  'mae.py:Ti/4,digits',
  'simmim.py:Ti/4,digits',
  'dino.py:Ti/4,digits',
  'segmentation.py:linear,small,MASKS',
  'vivit.py',
  'point_transformer.py',
  'linear_probe.py:Ti/4,digits',
)
_VALUES = (
  *('', ' ', 'x', 'X' * 3000, '-', '=', '*', '(', '[', '{', '[]', '()', '{}', "('a',)", "'"),
  *('0', '1', '-1', '2', '3', '0.5', '-0.5', 'nan', 'inf', '-inf', '1e300', '1e-300', '1e400'),
  *('10000000000', '18446744073709551616', '-9223372036854775809', '9' * 5000, '0x10', '1_0', '٣'),
  *('None', 'none', 'True', 'false', 'auto', 'all', '(1,2)', '(0,0)', '(-1,4)', '(nan,1)'),
  *('(10000000000,10000000000)', '1,2,3', '((1,2),(3,4))', '1,,2', '(4,4,4)', "('x',None)", '[1'),
  *(
    '.',
    '..',
    '/',
    '//',
    'MISSING',
    'MISSING/x',
    'FILE',
    'EMPTY',
    'DEVICE/x',
    'a\nb',
    'a\x1b[31mb',
  ),
  *('é', '\udcff', 'hf:', 'hf:x', 'hf:a/b/c', 'gs://', 'os:getcwd', 'os:', ':', 'no.such:thing'),
  *('(?P<x', '.*', 'vit', 'swin', 'digits', 'yolo', 'segmentation', 'adamw', 'bfloat16'),
)
# Those that the parser takes, by the type of the field.
_OF_TYPE = {
  int: ('0', '1', '-1', '2', '3', '7', '10000000000', '18446744073709551616', '-9' * 9, '9' * 5000),
  float: ('0', '-1', '0.5', '2', 'nan', 'inf', '-inf', '1e300', '1e-300', '1e400', '-1e-9'),
  tuple: ('()', '(1,2)', '(0,0)', '(-1,4)', '(nan,1)', '(0.5,)', '1,2,3', "('x',)", '((1,),2)'),
  bool: ('true', 'false'),
}
_OF_TYPE[tuple] += ('(10000000000,10000000000)', '(None,)', "('.*',)", '(True,)', '(1e300,2.5)')
_CONFIG_SHARE, _TYPE_SHARE = 0.6, 0.7


def _lines(originals, folder):
  """The valid command lines: (module, arguments and flags, names of its other flags)."""
  weights, image = originals / 'weights', originals / 'images' / 'colour.png'
  run, model = weights / 'run_run', weights / 'vit.npz'
  reads = ('from', 'allow', 'architecture', 'num_heads', 'image_size', 'num_frames', 'classifier')
  reads += ('activation', 'norm_epsilon', 'class_names', 'mean', 'std', 'crop', 'crop_fraction')
  reads += ('interpolation', 'rounding', 'frame_stride', 'temporal_views', 'spatial_crops')
  train = ('workdir', 'mode', 'predictions', 'step', 'compile', 'coordinator', 'num_processes')
  predict = ('top', 'threshold', 'json', 'csv', 'class_embeddings', 'batch_size', 'dtype')
  explain = ('out', 'pictures', 'num_images', 'layer', 'head_fusion', 'discard_ratio', 'class')
  compare = ('over_seeds', 'weights', 'dataset', 'split', 'data_dir', 'num_images', 'json')
  return (
    *[('train', [f'--workdir={folder}/workdir'], train)] * 8,
    ('vit_jax.predict', [f'--workdir={run}', image], predict + reads),
    ('vit_jax.predict', [f'--weights={model}', image], predict + reads),
    ('vit_jax.convert', [model, folder / 'm.msgpack', '--to=scenic'], ('push', 'license', *reads)),
    ('vit_jax.convert', [run, folder / 'hf', '--to=huggingface'], ('private', 'images', *reads)),
    ('vit_jax.convert', ['--list', 'vit_b*'], ('to', *reads)),
    ('vit_jax.explain', [f'--workdir={run}', '--pictures=filters', f'--out={folder}/o'], explain),
    ('vit_jax.features', [run, image, folder / 'f.npz'], ('pooling', 'layer', 'split', 'k', 'map')),
    ('vit_jax.export', [model, folder / 'm.stablehlo', '--platforms=cpu'], ('dtype', 'normalize')),
    ('vit_jax.compare', ['--runs', weights / 'run_resnet'], compare),
    ('vit_jax.benchmark', ['--turns=1', '--seconds=0.01'], ('what', 'devices', 'against', 'json')),
  )


@functools.cache
def _config_fields(config):
  """The fields of a config: dotted name -> value."""
  import importlib

  name, _, arg = config.partition(':')
  module = importlib.import_module(f'configs.{name.removesuffix(".py")}')
  return _fields(module.get_config(arg) if arg else module.get_config(), 'config')


def mutated(rng, originals, folder):
  """Returns (module, arguments, what was changed) of a random command line."""
  (folder / 'EMPTY').mkdir()
  (folder / 'FILE').write_text('words\n')
  (folder / 'DEVICE').symlink_to('/dev/full')
  module, args, others = rng.choice(_lines(originals, folder))
  args, names, fields, done = list(args), list(others), {}, []
  if module in ('train', 'vit_jax.benchmark'):
    config = rng.choice(_CONFIGS).replace('MASKS', str(originals / 'folders' / 'masks'))
    fields = _config_fields(config)
    tiny = [flag for flag in TINY if flag.partition('=')[0].removeprefix('--') in fields]
    if config.startswith('vivit'):  # whose patches have frames
      tiny = [flag for flag in tiny if 'patches' not in flag]
    args += [f'--config=configs/{config}', *tiny, '--config.num_steps=2', *_FEW]
    if module == 'train':
      # What may be a long run is only described.
      args.append(f'--mode={rng.choice(("describe", "describe", "preview", "train", "eval"))}')
    names += fields
  for _ in range(rng.choice((1, 1, 1, 2, 3))):
    what = rng.random()
    if what < 0.65 or not args:
      name = rng.choice(list(fields) if fields and rng.random() < _CONFIG_SHARE else names)
      fitting = _OF_TYPE.get(type(fields.get(name)), _VALUES)
      done.append(f'--{name}={rng.choice(fitting if rng.random() < _TYPE_SHARE else _VALUES)}')
      args.append(done[-1])
    elif what < 0.75:
      done.append(f'without {args.pop(rng.randrange(len(args)))}')
    elif what < 0.85:
      i = rng.randrange(len(args))
      args[i] = re.sub('(?s)=.*', f'={rng.choice(_VALUES)}', str(args[i]))
      done.append(f'changed to {args[i]}')
    elif what < 0.95:
      done.append(f'more: {rng.choice(_VALUES)}')
      args.insert(rng.randrange(len(args) + 1), done[-1].removeprefix('more: '))
    else:
      done.append(f'--{rng.choice(names)}')
      args.append(done[-1])
  if re.search(r'--config.(num_steps|num_epochs|batch_size|eval_batch_size)', ' '.join(done)):
    args = [*args, '--mode=describe'] if module == 'train' else args
  elif module == 'train' and not any(str(arg).startswith('--mode') for arg in args):
    args.append('--mode=describe')
  return module, [str(arg).replace('\0', '') for arg in args], '; '.join(done)
