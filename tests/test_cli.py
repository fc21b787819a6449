"""Flags of experiments: which fields a config has once a model and a task are named."""

import json
import logging
import sys

import pytest
import yolo_folders
from conftest import TINY

from vit_jax import cli
from vit_jax.cli import _ExperimentParser
from vit_jax.errors import FieldError, UsageError, UsageWarning
from vit_jax.models.vit import ViT

# Options of the task.
CLASSIFICATION = {'name', 'label_smoothing', 'class_weights', 'threshold'}


@pytest.fixture
def parse(monkeypatch):
  """Parses a config as a command with these flags does."""

  def run(path, *args):
    monkeypatch.setattr(sys, 'argv', ['train.py', f'--config={path}', *args])
    return _ExperimentParser('config').parse(path)

  return run


def test_without_flags_it_is_the_file_s_and_locked(parse):
  config = parse('configs/digits.py')
  assert config.is_locked
  assert set(config.loss) == CLASSIFICATION
  assert 'head' not in config.model
  assert config.model.hidden_size == 64


@pytest.mark.parametrize('flag', [['--config.task=localization'], ['-config.task', 'localization']])
def test_a_task_brings_its_options_and_its_head(parse, flag):
  config = parse('configs/mnist.py:faithful', *flag, '--config.model.head.box_sigmoid=False')
  assert config.task == 'localization'
  assert config.loss.to_dict() == {
    'name': 'softmax_twice',  # the file's
    'label_smoothing': 0.0,
    'class_weights': (),
    'threshold': None,
    'box': 'mse',
    'class_divisor': 1.0,
  }
  assert config.model.head.to_dict() == {
    'name': 'localization',
    'hidden_size': 512,
    'dropout_rate': 0.2,
    'box_sigmoid': True,  # until the flag itself is parsed
  }
  assert config.model.hidden_size == 32


def test_another_task_takes_them_away(parse):
  config = parse('configs/asl_letters.py:vit', '--config.task=classification')
  assert set(config.loss) == CLASSIFICATION
  assert 'head' not in config.model
  same = parse('configs/asl_letters.py:vit', '--config.task=localization')
  assert same.loss.class_divisor == 100.0
  assert not same.model.head.box_sigmoid


def test_a_model_brings_its_fields_and_keeps_what_the_file_changed(parse):
  config = parse('configs/digits.py', '--config.model.name=token_learner')
  assert (config.model.name, config.model.hidden_size) == ('token_learner', 64)
  assert config.model.tokenizer.num_tokens == 8
  assert config.model.posemb_init_stddev == 0.5
  config = parse('configs/asl_letters.py:vit', '--config.model.name=resnet18')
  assert set(config.model) == {'name', 'num_filters', 'head'}
  assert not config.model.head.box_sigmoid


def test_of_several_flags_the_last_counts(parse):
  flags = ('--config.model.name=resnet34', '--config.model.name=vit')
  assert parse('configs/digits.py', *flags).model == parse('configs/digits.py').model


def test_a_model_that_is_left_open_keeps_the_fields_of_all(parse):
  config = parse('configs/finetune.py:digits', '--config.model.name=vit')
  assert config.model.name is None  # until the flag itself is parsed
  assert {'num_filters', 'tokenizer', *ViT.CONFIG_DEFAULTS} <= set(config.model)
  config = parse('configs/finetune.py:digits', '--config.task=localization')
  assert config.model.head.hidden_size == 512


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('task=localisation', r"^config\.task: 'localisation' .* did you mean 'localization'"),
    ('model.name=resnet', r"^config\.model\.name: 'resnet' .* did you mean 'resnet"),
  ],
)
def test_unknown_names(parse, flag, message):
  with pytest.raises(UsageError, match=message):
    parse('configs/digits.py', f'--config.{flag}')


def test_a_run_with_flags_of_a_task_that_the_file_does_not_have(train, tmp_path):
  folder = yolo_folders.write(tmp_path / 'set', {'train': 16, 'test': 8})
  result = train(
    *TINY,
    '--config.task=localization',
    '--config.loss.box=l1',
    '--config.model.head.hidden_size=8',
    '--config.optimizer.no_decay=',
    '--config.data.name=yolo',
    f'--config.data.dir={folder}',
    '--config.batch_size=8',
    '--config.num_steps=2',
    f'--workdir={tmp_path}/run',
    tiny=False,
  )
  assert result.returncode == 0, result.stderr
  config = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert config['loss'] == {
    'name': 'softmax',
    'label_smoothing': 0.0,
    'class_weights': [],
    'threshold': None,
    'box': 'l1',
    'class_divisor': 1.0,
  }
  assert config['optimizer']['no_decay'] == ''
  options = {'hidden_size': 8, 'dropout_rate': 0.2, 'box_sigmoid': True}
  assert config['model']['head'] == {'name': 'localization', **options}


def test_messages_are_a_line_whatever_a_file_is_called(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['train.py'])
  assert cli._line(UsageError('a\nb', 'c\x1b')) == 'train.py: a\\nb\nc\\x1b'  # a table below it
  assert cli._line(FieldError('a\nb', 'c\x1b')) == 'train.py: a\\nb: c\\x1b'
  assert cli._line('a\nb') == 'train.py: a\\nb'
  warning = cli._format_warning(UsageWarning('a\nb' * 10**5), UsageWarning, others=None)
  assert warning.startswith('train.py: a\\nba\\nb')
  assert len(warning) < 2100


def test_what_is_logged_is_a_line():
  entry = {'msg': '%s is skipped: %s', 'args': ('a\nb', OSError('c\x1b'))}
  ours, others = (
    logging.makeLogRecord({'name': name, **entry}) for name in ('vit_jax.data.images', 'jax')
  )
  assert cli._escape(ours)
  assert cli._escape(others)
  assert ours.getMessage() == r'a\nb is skipped: c\x1b'
  assert others.getMessage() == 'a\nb is skipped: c\x1b'
