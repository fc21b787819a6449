"""What is known of metrics: as a run recorded it, or by their names."""

import pytest

from vit_jax.run.metrics import (
  describe,
  format_classes,
  format_value,
  format_values,
)

RECORDED = {
  'mean_iou': {'unit': '%', 'higher_is_better': True, 'label': 'mean IoU'},
  'accuracy': {'unit': '', 'higher_is_better': False, 'label': ''},
}


@pytest.mark.parametrize(
  ('name', 'value', 'text'),
  [
    ('test/accuracy', 0.981, '98.10 %'),
    ('train/top5_accuracy', 1.0, '100.00 %'),
    ('iou50', 0.25, '25.00 %'),
    ('iou', 0.25, '0.25'),
    ('train/loss', 2.303456, '2.303'),
    ('images_per_second', 12345.6, '12,346'),
  ],
)
def test_of_runs_that_recorded_nothing_the_name_tells_the_unit(name, value, text):
  assert format_value(name, value) == text


def test_what_was_recorded_stands_before_the_name():
  values = {'test/mean_iou': 0.5, 'test/accuracy': 0.5, 'val/accuracy': 0.5, 'test/iou75': 0.5}
  expected = 'test/mean_iou 50.00 %  test/accuracy 0.5  val/accuracy 0.5  test/iou75 50.00 %'
  assert format_values(values, RECORDED) == expected


def test_metrics_of_each_class_have_lines_of_their_own():
  values = {'test/loss': 0.5, 'test/accuracy/cat': 0.5, 'test/mean_iou/a/b': 0.25}
  assert format_values(values, RECORDED) == 'test/loss 0.5'
  expected = {'accuracy': 'cat 0.5', 'mean_iou': 'a/b 25.00 %'}
  assert format_classes(values, RECORDED) == expected


def test_the_direction_by_name():
  names = ('test/loss', 'box_loss', 'accuracy', 'iou')
  assert [describe(name, {})['higher_is_better'] for name in names] == [False, False, True, True]


def test_names_from_files_are_printable():
  values = {'test/accuracy\n': 0.5, 'test/mean_iou/a\x1bcat': 0.5, f'test/{"x" * 10**5}': 1.0}
  assert len(format_values(values, RECORDED)) < 500
  assert format_values(values, RECORDED).startswith(r'test/accuracy\n 0.5  test/xxx')
  assert format_classes(values, RECORDED) == {'mean_iou': r'a\x1bcat 50.00 %'}
