"""python -m vit_jax.convert as a user runs it."""

import shutil

import numpy as np
import pytest
from command_server import command_server
from conftest import ROOT
from small_vits import SQUARE, WIDE, assert_same, random_variables

from vit_jax import models, weights


@pytest.fixture(scope='module')
def convert(tmp_path_factory):
  """Runs the command, where nobody is logged in; returns its exit code, output and errors."""
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv('HF_TOKEN', raising=False)
    patch.setenv('HF_HOME', str(tmp_path_factory.mktemp('home')))
    yield from _convert()


def _convert():
  with command_server('vit_jax.convert', '[SRC]', '[DST]') as run:
    yield run


def test_help_shows_all_flags(convert):
  result = convert('--help')
  assert (result.returncode, result.stderr) == (0, '')
  choices = '--to=augreg|torchvision|timm|scenic|huggingface: Format of DST.'
  for text in ('python -m vit_jax.convert SRC DST', choices, '--class_names: '):
    assert text in result.stdout


def test_a_model_goes_through_three_formats(convert, tmp_path):
  names = ('m.npz', 'folder', 'm.msgpack', 'm.safetensors')
  source, *targets = (tmp_path / name for name in names)
  weights.save(random_variables(WIDE), WIDE, source, format='augreg')
  for target, format in zip(targets, ('huggingface', 'scenic', 'timm'), strict=True):
    result = convert(source, target, f'--to={format}')
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
      f'{target}: ViT, 1 layers of width 8, 2 heads, 4x2 patches, 8x6 images, 3 classes\n'
    )
    source = target
  assert '# folder' in (tmp_path / 'folder' / 'README.md').read_text()
  variables, config = weights.load(source)
  assert config == WIDE
  assert_same(variables, random_variables(WIDE))


def test_options_say_what_a_file_does_not(convert, tmp_path):
  np.savez(tmp_path / 'm.npz', **without_config(tmp_path))
  options = ('--image_size=8,6', '--activation=gelu_exact', '--norm_epsilon=1e-12')
  options += ('--from=augreg', '--classifier=token', '--num_heads=2', '--allow=extra')
  (tmp_path / 'names.txt').write_text('cat\ndög\ncat\n', 'utf-8')
  options += ('--mean=0.4567', '--std=0.3', f'--class_names={tmp_path}/names.txt')
  result = convert(tmp_path / 'm.npz', tmp_path / 'm.msgpack', '--to=scenic', *options)
  assert (result.returncode, result.stderr) == (
    0,
    f'convert.py: {tmp_path}/m.npz: tensors left out, as allowed: 1 (extra); outputs differ from '
    'those of the original\n',
  )
  variables, config = weights.load(tmp_path / 'm.msgpack')
  assert config == WIDE
  assert_same(variables, random_variables(WIDE))


def test_a_resnet_has_a_line_of_its_own(convert, tmp_path):
  config = models.ModelConfig.from_dict(
    {
      'name': 'resnet18',
      'num_filters': 2,
      'num_classes': 3,
      'channels': 1,
      'image_size': (32, 48),
    }
  )
  source, target = tmp_path / 'm.safetensors', tmp_path / 'n.safetensors'
  weights.save(random_variables(config), config, source, format='torchvision')
  result = convert(source, target, '--to=torchvision')
  assert result.returncode == 0, result.stderr
  assert result.stdout == f'{target}: ResNet18, 32x48 images, 3 classes\n'
  assert_same(weights.load(target)[0], weights.load(source)[0])  # metadata comes in any order


def test_what_is_known_by_name_is_a_table(convert):
  result = convert('--list', 'mobilenet_v3_s*')
  assert (result.returncode, result.stderr) == (0, '')
  assert result.stdout.splitlines() == [
    'name                source       opens',
    'mobilenet_v3_small  torchvision  yes',
    'mobilenet_v3_small  vit_jax      yes',
  ]


def test_a_card_that_fails_leaves_no_folder(convert, tmp_path):
  run = shutil.copytree(ROOT / 'tests' / 'kept_runs' / 'resnet', tmp_path / 'run')
  (run / 'results.json').write_text('{')
  result = convert(run, tmp_path / 'new', '--to=huggingface')
  assert result.returncode == 2
  assert 'run/results.json: damaged: not valid JSON' in result.stderr
  assert result.stderr.count('\n') == 1
  assert not (tmp_path / 'new').exists()


def without_config(folder):
  """The tensors of a file, one of them unknown, without what the file says itself."""
  weights.save(random_variables(WIDE), WIDE, folder / 'full.npz', format='augreg')
  return dict(np.load(folder / 'full.npz')) | {'extra': np.zeros(2)}


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (
      ('m.npz', '--to=timm'),
      'DST is missing, as in: python -m vit_jax.convert SRC DST --to=FORMAT',
    ),
    (('m.npz', 'b', 'c', '--to=timm'), "'c' is not a flag"),
    (('--list', 'resnt'), "--list: no name fits 'resnt'"),
    (('--list', 'vit_a', 'vit_b'), "--list: 'vit_b' is a second pattern; stars need quotes"),
    (
      ('m.npz', 'b'),
      '--to: give the format to write: augreg, torchvision, timm, scenic, huggingface',
    ),
    (('m.npz', 'm.npz', '--to=scenic'), 'm.npz: there already; remove it or give another name'),
    (('m.npz', 'b', '--to=scenic', '--image_size=8'), '--image_size: 8 is not HEIGHT,WIDTH'),
    (('m.npz', 'b', '--to=scenic', '--push=a/b'), '--push: is for --to=huggingface'),
    (('m.npz', 'b', '--to=huggingface', '--private'), '--private: is of --push'),
    (('m.npz', 'b', '--to=scenic', '--images'), '--images: is for --to=huggingface'),
    (('m.npz', 'b', '--to=huggingface', '--push=a/b'), '--push: no login to the hub; run `hf auth'),
    (('text.npz', 'b', '--to=scenic'), 'text.npz: cannot be read as an .npz file of arrays'),
  ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(convert, tmp_path, args, message):
  weights.save(random_variables(SQUARE), SQUARE, tmp_path / 'm.npz', format='augreg')
  (tmp_path / 'text.npz').write_text('no archive')
  result = convert(*(arg if arg.startswith('-') else tmp_path / arg for arg in args))
  assert result.returncode == 2
  assert message in result.stderr.replace(f'{tmp_path}/', '')
  assert result.stderr.startswith('convert.py: ')
  assert result.stderr.count('\n') == 1
  assert not (tmp_path / 'b').exists()
