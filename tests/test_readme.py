"""README's commands name what exists; CI runs the first two literally."""

import importlib.util
import re
import shlex

import pytest
from conftest import ROOT
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```sh\n(.*?)```', README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]
# With placeholders, for people to fill in.
PLACEHOLDERS = ('[', 'DIR', '...')


def field(config, path):
  for name in path.split('.'):
    config = config[name]
  return config


@pytest.mark.parametrize('command', [c for c in COMMANDS if not any(p in c for p in PLACEHOLDERS)])
def test_commands_name_what_exists(command):
  words = shlex.split(command.split('&&')[-1])
  configs = [w.removeprefix('--config=') for w in words if w.startswith('--config=')]
  for given in configs:
    config = ConfigFileFlagParser('config').parse(given)
    for name in re.findall(r'--config\.([\w.]+)=', command):
      field(config, name)
  modules = re.findall(r'-m (vit_jax\.\w+)', command)
  for module in modules:
    assert importlib.util.find_spec(module), module
  assert configs or modules or 'pytest' in command


def test_the_library_example_runs():
  section = README.split('## As a library')[1]
  example = re.search(r'```python\n(.*?)```', section, re.DOTALL)[1]
  names = {}
  exec(example, names)
  assert names['logits'].shape == (8, 10)
  block = names['state']['intermediates']['Transformer']['encoderblock_11']
  weights = block['MultiHeadDotProductAttention_0']['attention_weights'][0]
  assert weights.shape == (8, 3, 65, 65)


def test_the_table_of_configs_is_complete():
  listed = set(re.findall(r'^\| `configs/(\w+)\.py', README, re.MULTILINE))
  runnable = {p.stem for p in (ROOT / 'configs').glob('*.py')} - {'common', 'datasets'}
  assert listed == runnable


@pytest.mark.parametrize('heading', ['Install and train', 'Test'])
def test_what_ci_runs_is_one_line(heading):
  section = README.split(f'\n## {heading}\n')[1]
  command = re.search(r'```sh\n(.*?)```', section, re.DOTALL)[1]
  assert command.count('\n') == 1


def test_files_that_readme_shows_exist():
  for path in re.findall(r'!\[.*?\]\((.*?)\)', README):
    assert (ROOT / path).is_file()


def test_every_picture_of_a_model_is_explained():
  from vit_jax.explain.pictures import PICTURES

  section = README.split('## Looking inside a model')[1].split('\n## ')[0]
  table = ''.join(re.findall(r'^\|.*\n', section, re.MULTILINE))
  listed = {
    name for row in table.splitlines() for name in re.findall(r'`(\w+)`', row.split('|')[1])
  }
  assert listed == {*PICTURES, 'curves'}
  drawn = re.findall(r'--pictures=(\S+) .*--out=docs', section)
  shown = re.findall(r'!\[.*?\]\(docs/(\w+)\.png\)', section)
  assert shown == [name for names in drawn for name in names.split(',')]


def test_every_dependency_is_listed_and_explained():
  names = re.findall(r'^([\w-]+)', (ROOT / 'requirements.txt').read_text(), re.MULTILINE)
  table = README.split('## Dependencies')[1]
  assert [name for name in names if name not in table] == []
