"""Tasks of the user's own, as 'module:Class', and how a model tells what it was trained for."""

import dataclasses
from typing import ClassVar

import pytest
from conftest import tiny_config

from vit_jax import config_fields, models, tasks
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig, fields
from vit_jax.tasks import Metric, Task
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.segmentation import Segmentation


@dataclasses.dataclass(frozen=True)
class Careful(Classification):
  caution: float = 1.0


@dataclasses.dataclass(frozen=True)
class Silent(Task):
  HEADS: ClassVar[tuple[str, ...]] = ('linear',)

  metrics: ClassVar[dict[str, Metric]] = {'loss': Metric()}

  def loss(self, outputs, batch, rng, train):
    return {}


class Endless(Task):
  def loss(self, outputs, batch, rng, train):
    return {}


def name_of(cls):
  return f'{__name__}:{cls.__name__}'


def make_config(name, task, head=None):
  head_fields = {'head': {'name': head}} if head else {}
  model = models.build({'name': 'resnet18', **head_fields}, num_classes=3)
  return ModelConfig(model=model, task=tasks.stated(name, task, head))


def test_a_model_states_a_task_of_the_user_s_own_and_its_options():
  config = make_config(name_of(Careful), Careful(3, name='sigmoid', caution=0.5))
  again = ModelConfig.from_dict(config.to_dict())
  assert tasks.task_for(again) == Careful(3, name='sigmoid', caution=0.5)
  assert tasks.task_for(again, caution=2.0) == Careful(3, name='sigmoid', caution=2.0)


@pytest.mark.parametrize(
  ('name', 'head'), [('classification', None), ('segmentation', 'linear'), ('mae', 'mae')]
)
def test_a_model_whose_head_tells_the_task_does_not_state_it(name, head):
  assert tasks.stated(name, tasks.build(name, {}, 3), head) is None


def test_a_task_of_ours_is_stated_where_its_head_is_not_ours():
  told = tasks.stated('segmentation', Segmentation(3), 'my_heads:Wide')
  assert told['name'] == 'segmentation'
  assert told['options'] == fields.plain(tasks.default_options('segmentation'))


def test_a_task_of_the_user_s_own_has_a_head_of_ours():
  config = make_config(name_of(Silent), Silent(3), 'linear')
  assert tasks.task_for(config) == Silent(3)


def test_the_fields_of_a_config_are_those_of_the_task():
  config = tiny_config(**{'loss.label_smoothing': 0.1})
  config_fields.set_task(config, name_of(Careful))
  fields = tasks.default_options('classification').to_dict()
  assert config.loss.to_dict() == fields | {'label_smoothing': 0.1, 'caution': 1.0}
  config_fields.set_task(config, name_of(Silent))
  assert (config.task, config.model.head.name) == (name_of(Silent), 'linear')


def test_any_task_with_a_head_takes_one_of_the_user_s_own():
  tasks.check_head('name', 'my_heads:Wide', Segmentation)
  with pytest.raises(FieldError, match=r"^name: 'my_heads:Wide' is not one of "):
    tasks.check_head('name', 'my_heads:Wide', Classification)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    (name_of(Endless), r'^task: .* lacks metrics$'),
    (name_of(ModelConfig), r'defined elsewhere|is not a subclass of vit_jax\.tasks\.task\.Task'),
    ('no_such_module:Task', r"^task: .* there is no module 'no_such_module'"),
  ],
)
def test_mistakes_name_the_field(name, message):
  with pytest.raises(FieldError, match=message):
    tasks.find(name)


def test_a_task_that_predicts_nothing_says_so():
  with pytest.raises(UsageError, match=r'^the task Silent predicts nothing: it has no predict\(\)'):
    Silent(3).predict({})


@pytest.mark.parametrize('task', [3, {'name': 'mae'}])
def test_a_damaged_description_is_refused(task):
  entries = make_config('classification', Classification(3)).to_dict() | {'task': task}
  with pytest.raises(FieldError, match=r'^task: .* is not a name and options'):
    ModelConfig.from_dict(entries)
