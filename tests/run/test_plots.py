"""The curves of a run: a panel for each metric with a label."""

import pytest

from vit_jax.run.plots import curves

HISTORY = [
  {'step': 2, 'train/loss': 2.0, 'train/accuracy': 0.25, 'train/top5_accuracy': 0.5},
  {'step': 2, 'test/loss': 2.5, 'test/accuracy': 0.125, 'test/iou': 0.5, 'test/error': 3.0},
  {'step': 4, 'train/loss': 1.0, 'train/accuracy': 0.5, 'grad_norm': 1.0},
]


def panels(figure):
  """Label of the axis -> {split: values}."""
  return {
    axis.get_ylabel(): {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    for axis in figure.axes
  }


def test_of_runs_that_recorded_no_metrics():
  assert panels(curves(HISTORY, 'a run')) == {
    'loss': {'train': [2.0, 1.0], 'test': [2.5]},
    'accuracy (%)': {'train': [25.0, 50.0], 'test': [12.5]},
    'mean IoU of boxes': {'test': [0.5]},
  }


def test_the_panels_are_those_that_metrics_ask_for():
  metrics = {
    'error': {'unit': '%', 'higher_is_better': False, 'label': 'wrong'},
    'loss': {'unit': '', 'higher_is_better': False, 'label': 'nats'},
    'accuracy': {'unit': '%', 'higher_is_better': True, 'label': ''},
    'not_yet': {'unit': '', 'higher_is_better': True, 'label': 'not yet'},
  }
  assert panels(curves(HISTORY, 'a run', metrics)) == {
    'wrong (%)': {'test': [300.0]},
    'nats': {'train': [2.0, 1.0], 'test': [2.5]},
  }


def test_many_panels_stand_in_rows():
  names = [f'm{i}' for i in range(6)]
  metrics = {n: {'unit': '', 'higher_is_better': True, 'label': n} for n in names}
  figure = curves([{'step': 1, **{f'test/{n}': 1.0 for n in names}}], 'a run', metrics)
  figure.draw_without_rendering()
  assert [axis.get_ylabel() for axis in figure.axes] == names
  assert len({axis.get_position().y0 for axis in figure.axes}) == 2


@pytest.mark.parametrize('history', [[], [{'step': 1, 'grad_norm': 2.0}]])
def test_nothing_to_draw(history):
  assert panels(curves(history, 'a run')) == {'': {}}


def test_the_split_that_chooses_is_drawn_and_not_what_the_end_alone_knows():
  history = [
    {'step': 4, 'train/loss': 2.0, 'val/loss': 2.5},
    {'step': 8, 'train/loss': 1.0, 'val/loss': 1.5},
    {'step': 8, 'test/loss': 9.0},
  ]
  assert panels(curves(history, 'a run')) == {'loss': {'train': [2.0, 1.0], 'val': [2.5, 1.5]}}
