"""What README, CONTRIBUTING and docs/ name exists. CI runs README's first two commands."""

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, SLOW
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

FILES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
README = PAGES['README.md']
CONFIGS = {path.stem for path in (ROOT / 'configs').glob('*.py')} - {'common', 'datasets'}
COMMANDS = ('train.py', 'vit_jax/*.py', 'vit_jax/*/__main__.py')


def blocks(text, language):
  """Returns the content of a page's code blocks in a language; '' for those without one."""
  return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


def inline_code(text):
  """Returns what stands between backticks outside of code blocks."""
  return re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', text, flags=re.DOTALL))


def commands(text):
  """Returns the commands of a page: lines of sh blocks, and inline code that runs Python."""
  lines = [line for block in blocks(text, 'sh') for line in block.splitlines() if line]
  return lines + [code for code in inline_code(text) if code.startswith('python ')]


def section(page, heading):
  """Returns the part of a page under a heading of the second level."""
  return PAGES[page].split(f'\n## {heading}\n')[1].split('\n## ')[0]


def table(text):
  """Returns the rows of the tables in a text, each a list of cells."""
  return [row.strip('|').split('|') for row in re.findall(r'^\|.*\|$', text, re.MULTILINE)]


def field_names(config, prefix=''):
  """Returns the dotted names of all fields of a config."""
  names = set()
  for name, value in config.items():
    names.add(prefix + name)
    if isinstance(value, ConfigDict):
      names |= field_names(value, f'{prefix}{name}.')
  return names


@pytest.fixture(scope='module')
def all_fields():
  """The names of the fields of all configs."""
  return set().union(
    *(field_names(importlib.import_module(f'configs.{name}').get_config()) for name in CONFIGS)
  )


@pytest.fixture(scope='module')
def all_flags():
  """The names of the flags of all commands; a boolean's with 'no' in front, too."""
  sources = [path.read_text() for pattern in COMMANDS for path in ROOT.glob(pattern)]
  define = r"\b(?:DEFINE_\w+|define_experiment)\(\s*'(\w+)'"
  names = set(re.findall(define, '\n'.join(sources)))
  return names | {f'no{name}' for name in names}


@pytest.mark.parametrize(
  'command', dict.fromkeys(command for text in PAGES.values() for command in commands(text))
)
def test_commands_name_what_exists(command, all_flags):
  command = command.split('&&')[-1]
  if script := re.search(r'\bbenchmarks/\w+\.py', command):
    text = (ROOT / script[0]).read_text()
    assert all(f"'--{flag}'" in text for flag in re.findall(r'--(\w+)', command))
    return
  if script := re.search(r'^python (tests/\w+\.py)', command):
    assert f'python {script[1]}' in (ROOT / script[1]).read_text()
    return
  ours = re.search(r'\btrain\.py|-m vit_jax\.(\w+)', command)
  if not ours:
    assert re.search(r'\bpip3? (install|freeze)|-m pytest|\bruff |^git ', command), command
    return
  assert ours[1] is None or importlib.util.find_spec(f'vit_jax.{ours[1]}')
  assert {*re.findall(r'--(\w+)', command)} <= all_flags
  words = shlex.split(re.sub(r'[][]', '', command))
  given = [w.partition('=') for w in words if re.match(r'--(config|against)=', w)]
  for flag, _, path in given:
    if path in ('...', 'torch'):
      continue
    config = ConfigFileFlagParser(flag).parse(path)
    fields = {*re.findall(rf'{flag}\.([\w.]+)=', command)} - {'FIELD'}
    assert fields <= field_names(config)


def test_the_script_for_accelerators_names_what_exists(all_flags, tmp_path):
  for name in ('mnist', 'cifar10'):
    (tmp_path / name).mkdir()

  def started(*rows):
    script = subprocess.run(
      [ROOT / 'benchmarks' / 'accelerator.sh', '0', *rows],
      env={**os.environ, 'PYTHON': 'true', 'TFDS_DATA_DIR': str(tmp_path)},
      capture_output=True,
      text=True,
    )
    return script.returncode, re.findall(r'^\+ true (.*)$', script.stdout, re.MULTILINE)

  code, found = started()
  assert (code, len(found)) == (0, 16)
  for name in ('mnist', 'cifar10'):  # as digits, and left out
    (tmp_path / name).rmdir()
  found += started()[1]
  assert len(found) == 28
  for command in found:
    test_commands_name_what_exists(f'python {command}', all_flags)
  assert [command.split()[2] for command in started('swin')[1]] == [
    '--config=configs/swin.py:T/7,digits'
  ]
  assert started('swim') == (2, [])


def test_the_script_of_growing_work_names_what_exists(all_flags, tmp_path):
  summary = {'median': 3.0, 'low': 2.0, 'high': 4.0}
  row = {'images_per_second': summary}
  ratio = {'of': 'a', 'to': 'b', 'by_flops': 0.5, **summary}
  report = {'train': {'rows': {'a': row, 'b': row}, 'ratios': [ratio]}}
  fake = tmp_path / 'python'
  fake.write_text(
    f'#!/bin/sh\nif [ "$1" != -m ]; then exec {sys.executable} "$@"; fi\n'
    f'echo "$@" >> {tmp_path}/commands\necho {shlex.quote(json.dumps(report))}\n'
  )
  fake.chmod(0o755)
  script = subprocess.run(
    [ROOT / 'benchmarks' / 'scaling.sh'],
    env={**os.environ, 'PYTHON': str(fake)},
    capture_output=True,
    text=True,
    check=True,
  )
  rows = table(script.stdout)
  assert len(rows) == 2 + 4 + 2 + 2 + 3
  speed = '3.00 (2.00 to 4.00)'
  assert [c.strip() for c in rows[2]] == ['49 tokens', 'ViT / Swin', speed, speed, speed, '0.50']
  for command in (tmp_path / 'commands').read_text().splitlines():
    test_commands_name_what_exists(f'python {command}', all_flags)


@pytest.mark.parametrize('page', PAGES)
def test_flags_and_fields_in_the_text_exist(page, all_flags, all_fields):
  foreign = r'python3? |git |XLA_FLAGS='
  code = [code for code in inline_code(PAGES[page]) if not re.match(foreign, code)]
  flags = {flag for c in code for flag in re.findall(r'(?<![\w-])--(\w+)', c)}
  fields = {field for c in code for field in re.findall(r'--config\.([\w.]+)', c)}
  assert flags <= all_flags
  assert fields <= all_fields


@pytest.mark.parametrize('page', PAGES)
def test_files_in_the_text_exist(page):
  code = ' '.join([*inline_code(PAGES[page]), *commands(PAGES[page])])
  paths = re.findall(r'\b(?:vit_jax|configs|docs|tests|notebooks)/[\w./*]*\w', code)
  paths = [path for path in paths if 'NAME' not in path]
  assert [path for path in paths if not list(ROOT.glob(path))] == []


@pytest.mark.parametrize('page', PAGES)
def test_links_and_pictures_lead_somewhere(page):
  links = re.findall(r'\]\((?!https://)([^)#]*)(?:#([^)]*))?\)', PAGES[page])
  for path, anchor in links:
    target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    assert target.is_file(), path
    if anchor:
      headings = re.findall(r'^#+ (.*)$', target.read_text(), re.MULTILINE)
      assert anchor in [re.sub(r'[^\w -]', '', h).lower().replace(' ', '-') for h in headings]


@pytest.mark.parametrize('page', PAGES)
def test_examples_import_what_exists(page):
  for block in blocks(PAGES[page], 'python'):
    for node in ast.walk(ast.parse(block)):
      if isinstance(node, ast.ImportFrom):
        module = importlib.import_module(node.module)
        for name in node.names:
          assert hasattr(module, name.name) or importlib.import_module(f'{node.module}.{name.name}')


def test_the_library_example_runs():
  names = {}
  exec(blocks(section('README.md', 'As a library'), 'python')[0], names)
  assert names['logits'].shape == (8, 10)
  block = names['state']['intermediates']['Transformer']['encoderblock_11']
  weights = block['MultiHeadDotProductAttention_0']['attention_weights'][0]
  assert weights.shape == (8, 3, 65, 65)


def test_readme_is_short():
  assert README.count('\n') < 200


@pytest.mark.parametrize('heading', ['Install and train', 'Test'])
def test_what_ci_runs_is_one_line(heading):
  assert blocks(section('README.md', heading), 'sh')[0].count('\n') == 1


def test_every_page_is_linked_from_readme():
  assert [page for page in PAGES if page != 'README.md' and f']({page})' not in README] == []


def test_readme_names_the_scripts_that_are_installed():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  assert {*re.findall(r'`(vit-jax-\w+)`', README)} == {*project['scripts']}


def test_the_table_of_models_is_complete():
  from vit_jax.models import BACKBONES

  rows = ' '.join(map(str, table(section('README.md', 'Models'))))
  assert {*re.findall(r'configs/(\w+)\.py', rows)} == {module for module, _ in BACKBONES.values()}


def test_the_table_of_configs_is_complete():
  rows = table(section('docs/configuration.md', 'Configs'))
  listed = {name for row in rows for name in re.findall(r'configs/(\w+)\.py', row[0] or row[1])}
  assert listed == CONFIGS


def test_every_picture_of_a_model_is_explained():
  from vit_jax.explain.pictures import PICTURES

  page = PAGES['docs/explaining.md']
  listed = {name for row in table(page) for name in re.findall(r'`(\w+)`', row[0] or row[1])}
  assert listed == {*PICTURES, 'curves', 'data', 'classes'}
  drawn = re.findall(r'--pictures=(\S+) .*--out=docs', page)
  shown = re.findall(r'!\[.*?\]\((\w+)\.png\)', page)
  assert shown == [name for names in drawn for name in names.split(',')]


def test_every_dependency_is_explained():
  names = re.findall(r'^([\w-]+)', (ROOT / 'requirements.txt').read_text(), re.MULTILINE)
  listed = section('docs/architecture.md', 'Dependencies')
  assert [name for name in names if name not in listed] == []


def test_the_map_of_the_repository_is_complete():
  """Every file and folder on it exists, and every folder of the package is on it."""
  (drawing,) = blocks(section('docs/architecture.md', 'Where things are'), '')
  drawn, parents = set(), {}
  for line in drawing.splitlines():
    indent = len(line) - len(line.lstrip())
    for word in re.split(r'\s{2,}', line.strip()):
      if not re.fullmatch(r'[\w.]+(/|\.py)', word):
        break
      path = parents.get(indent - 2, Path()) / word
      drawn.add(path)
      parents[indent] = path
  assert [str(path) for path in drawn if not (ROOT / path).exists()] == []
  folders = {path.parent.relative_to(ROOT) for path in (ROOT / 'vit_jax').rglob('*.py')}
  assert folders <= drawn


def test_what_the_quick_tests_leave_out_exists():
  assert [path for path in SLOW if not (ROOT / 'tests' / path).exists()] == []
