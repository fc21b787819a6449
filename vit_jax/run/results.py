"""The results of a finished run: results.json and the summary table."""

import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from vit_jax import host_memory, models
from vit_jax.errors import UsageError, printable
from vit_jax.regular_files import read_json
from vit_jax.run.metrics import Descriptions, format_classes, format_value, format_values

# In a run directory, once the run is finished.
FILE = 'results.json'

_Number, _Measured = int | float, int | float | None
_Metrics = {str: _Number}
_LONGEST = 50_000  # characters of a row, which may have a metric of each of 1,000 classes

# Types of what is read of results.json; `str` stands for any other name.
_REQUIRED = {
  'step': int,
  'stopped_early': bool,
  'final': _Metrics,
  'best': {'step': int, **_Metrics},
  'monitor': str,
  'parameters': int,
  'training': {'steps_per_second': _Measured, 'images_per_second': _Measured},
  'device': {'kind': str, 'count': int},
  'dtype': str,
  'versions': {str: str},
}
# Types of what runs of earlier versions lack, and what stands for it.
_LATER = {
  'command': (str, None),
  'model': (str, None),
  'dataset': (str, None),
  'epochs': (_Number, None),
  'start': (_Metrics, {}),
  'metrics': ({str: {'unit': str, 'higher_is_better': bool, 'label': str}}, {}),
  'reference': ({str: _Number | str}, {}),
  'flops_per_image': ({str: _Measured}, {'forward': None, 'training': None}),
}


def read(workdir: Path) -> dict[str, Any] | None:
  """Returns the content of results.json, None where there is none.

  What runs of earlier versions lack is None in it, or empty.

  Raises:
    UsageError: it can't be read, or isn't what the end of a run leaves.
  """
  path = workdir / FILE
  if not path.exists():
    return None
  found = read_json(path)
  there = {name: kind for name, (kind, _) in _LATER.items() if name in found}
  if name := _misfit(found, _REQUIRED | there):
    raise UsageError(f"{path}: damaged: {name} is not what a run's end leaves")
  return {name: value for name, (_, value) in _LATER.items()} | found


def _misfit(value: Any, kind: Any) -> str:
  """Returns the name of what is missing or not of its kind, '' where there is no such thing."""
  if not isinstance(kind, dict):
    return '' if isinstance(value, kind) else 'value'
  if not isinstance(value, dict):
    return 'value'
  names = dict.fromkeys(name for name in kind if name is not str)
  names |= dict.fromkeys(value if str in kind else ())
  for name in names:
    if name not in value:
      return name
    if inner := _misfit(value[name], kind.get(name, kind.get(str))):
      return name if inner == 'value' else f'{name}.{inner}'
  return ''


def read_descriptions(workdir: Path) -> Descriptions:
  """Returns the descriptions of metrics that a finished run recorded; empty where it didn't.

  Raises:
    UsageError: as `read` does.
  """
  return (read(workdir) or {'metrics': {}})['metrics']


def _versions() -> dict[str, str]:
  names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')
  return {'python': platform.python_version()} | {n: importlib.metadata.version(n) for n in names}


def _metrics_at(history: list[dict[str, Any]], step: int) -> dict[str, float]:
  lines = [line for line in history if line['step'] == step]
  return {k: v for line in lines for k, v in line.items() if '/' in k}


def _of_evaluation(metrics: dict[str, float]) -> dict[str, float]:
  return {k: v for k, v in metrics.items() if '/' in k and not k.startswith('train/')}


def collect(
  run, history: list[dict[str, Any]], tested: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
  """Returns the content of results.json.

  Args:
    run: the loop's `Run`, at its end.
    history: lines of metrics.jsonl.
    tested: metrics of the test split that are known of the end alone: of the `final` state and of
      the `best` checkpoint.
  """
  best, config = run.meta['best'], run.config
  steps_per_second = run.timed_steps / run.seconds if run.timed_steps else None
  return {
    'command': shlex.join(['python', *sys.argv]),
    'model': config.model.name,
    'dataset': run.experiment.data_title,
    'step': run.step,
    'epochs': run.step * config.batch_size / len(run.experiment.sets['train'][0]),
    'stopped_early': run.meta['stopped'],
    'start': _metrics_at(history, 0),
    'final': _metrics_at(history, run.step) | tested.get('final', {}),
    'best': {
      'step': best['step'],
      **_metrics_at(history, best['step']),
      **tested.get('best', {}),
    },
    'monitor': config.monitor,
    'metrics': run.experiment.descriptions,
    'reference': config.reference.to_dict(),
    'parameters': models.num_entries(run.state.params),
    'flops_per_image': run.experiment.flops_per_image(run.state),
    'training': {
      'seconds': run.seconds,  # of this process, without compilation and evaluation
      'steps_per_second': steps_per_second,
      'images_per_second': steps_per_second and steps_per_second * config.batch_size,
      'resident': run.experiment.resident,
    },
    'device': {
      'kind': jax.devices()[0].device_kind,
      'platform': jax.default_backend(),
      'count': jax.device_count(),
      'processes': jax.process_count(),
    },
    'dtype': config.dtype,
    'peak_host_memory_mib': host_memory.peak_mib(),
    'versions': _versions(),
  }


def against_reference(results: dict[str, Any]) -> dict[str, tuple[float | None, float]]:
  """Returns metric -> (the run's value, None where it has none; the published value).

  Values of evaluations are those of the best one, where it has them, others those at the end.

  Args:
    results: the content of results.json.
  """
  ours = results['final'] | _of_evaluation(results['best'])
  ours['steps_per_second'] = results['training']['steps_per_second']
  published = {k: v for k, v in results['reference'].items() if k != 'source'}
  return {name: (ours.get(name), value) for name, value in published.items()}


def reported(results: dict[str, Any]) -> str:
  """Returns the metric that says how good a run is: that which chose, or of test where val did."""
  split, _, name = results['monitor'].partition('/')
  return f'test/{name}' if split == 'val' else results['monitor']


def _published(results: dict[str, Any]) -> str:
  parts, metrics = [], results['metrics']
  for name, (ours, published) in against_reference(results).items():
    here = '' if ours is None else f' (here {format_value(name, ours, metrics)})'
    parts.append(f'{name} {format_value(name, published, metrics)}{here}')
  return '  '.join([*parts, results['reference'].get('source', '')]).rstrip()


def _rows(
  name: str, values: Mapping[str, float], note: str, metrics: Descriptions
) -> dict[str, str]:
  """Returns rows of the summary on one evaluation, the test split in one of its own beside val."""
  has_val = any(key.startswith('val/') for key in values)
  tested = {k: v for k, v in values.items() if has_val and k.startswith('test/')}
  rows = {name: {k: v for k, v in values.items() if k not in tested}}
  if tested:
    rows[f'{name}, test'] = tested
  classes = format_classes(tested or values, metrics) if name == 'best' else {}
  return {
    **{row: format_values(shown, metrics) + note for row, shown in rows.items()},
    **{f'{name} {metric}': text for metric, text in classes.items()},
  }


def table(results: dict[str, Any], workdir: Path) -> str:
  """Returns the summary that a run in `workdir` ends with."""
  speed = results['training']['images_per_second']
  final, best = (_of_evaluation(results[name]) for name in ('final', 'best'))
  device, metrics = results['device'], results['metrics']
  rows = {
    'steps': f'{results["step"]}' + (' (stopped early)' if results['stopped_early'] else ''),
    **({'start': format_values(results['start'], metrics)} if results['start'] else {}),
    **_rows('final', final, '', metrics),
    **_rows('best', best, f'  (step {results["best"]["step"]})', metrics),
    **({'published': _published(results)} if results['reference'] else {}),
    'parameters': f'{results["parameters"]:,}',
    'speed': f'{speed:,.0f} images/s' if speed else 'not measured: one dispatch, which compiled',
    'device': f'{device["count"]} x {device["kind"]}, {results["dtype"]}',
    'run': f'{workdir} (what it looks at: python -m vit_jax.explain --workdir={workdir})',
    'pictures': ', '.join(map(str, sorted(workdir.glob('plots/**/*.png')))),
  }
  width = max(map(len, rows))
  return '\n'.join(
    printable(f'  {name:<{width}}  {value}', _LONGEST) for name, value in rows.items()
  )
