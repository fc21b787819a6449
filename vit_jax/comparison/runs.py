"""Runs beside the published values that their configs name, from their results.json alone."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.errors import MAX_NAME, UsageError, printable
from vit_jax.run import directory
from vit_jax.run import results as results_lib
from vit_jax.run.metrics import format_value

_KEPT = ('model', 'dataset', 'epochs', 'flops_per_image', 'step', 'parameters', 'device', 'dtype')
_LEFT = ('run', 'model', 'data set', 'metric', 'device')  # these columns are text
_DASH = '—'


def is_finished(workdir: str) -> bool:
  """Whether a run in `workdir` came to its end."""
  return (Path(workdir) / results_lib.FILE).exists()


def read(workdir: str) -> dict[str, Any]:
  """Returns what there is to compare of a finished run.

  Returns:
    `run`, its folder's name; `metrics`, name -> {'ours', 'published'}, each None where there is
    none: those of its reference, or the one that it monitors, of the test split; `descriptions` of
    all metrics, name -> unit and direction, empty for runs of older versions; `source` of the
    reference; and `model`, `dataset`, `step`, `epochs`, `parameters`, `flops_per_image` (of
    `forward` and `training`), `images_per_second` (training), `device`, `dtype` and `versions`.

  Raises:
    UsageError: no finished run is there, or its results can't be read or are damaged.
  """
  if (results := results_lib.read(Path(workdir))) is None:
    raise UsageError(f'--runs: {workdir} holds no finished run (no {results_lib.FILE})')
  metrics = results_lib.against_reference(results)
  if not metrics:
    name = results_lib.reported(results)
    metrics = {name: (results['best'].get(name), None)}
  return {
    'run': Path(workdir).resolve().name,
    'metrics': {k: {'ours': ours, 'published': value} for k, (ours, value) in metrics.items()},
    'descriptions': results['metrics'],
    'source': results['reference'].get('source'),
    'images_per_second': results['training']['images_per_second'],
  } | {name: results[name] for name in (*_KEPT, 'versions')}


def over_seeds(workdirs: Sequence[str]) -> list[dict[str, Any]]:
  """Returns what `read` does of runs, those that differ in seeds alone as one.

  So may the runs that they start from. `count` is how many they are, `run` the name of the first
  without its number, and metrics have 'low' and 'high' beside 'ours', the mean; the rest is of the
  first of them.

  Raises:
    UsageError: as `read` does.
  """
  groups: dict[str, list[dict[str, Any]]] = {}
  for workdir in workdirs:
    groups.setdefault(_without_seeds(Path(workdir)), []).append(read(workdir))
  return [_average(group) for group in groups.values()]


def _without_seeds(workdir: Path) -> str:
  config = directory.read_config(workdir)
  config.pop('seed', None)
  start = config.get('init_from')
  if start and (Path(start) / 'config.json').exists():
    config['init_from'] = _without_seeds(Path(start))
  return json.dumps(config, sort_keys=True)


def _average(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  metrics = {}
  for name, values in group[0]['metrics'].items():
    found = [ours for run in group if (ours := run['metrics'][name]['ours']) is not None]
    spread = {'low': min(found), 'high': max(found)} if found else {}
    ours = sum(found) / len(found) if found else None
    metrics[name] = values | {'ours': ours} | spread
  name = group[0]['run']
  if len(group) > 1:
    name = re.sub(r'[-_.]?\d+$', '', name) or name
  return dict(group[0]) | {'run': name, 'count': len(group), 'metrics': metrics}


def format_runs(runs: Sequence[Mapping[str, Any]]) -> str:
  """Returns a Markdown table of what `read` returns; a run has a row for each of its metrics."""
  rows = [row for run in runs for row in _rows(run)]
  names = list(rows[0])
  widths = {name: max(len(row[name]) for row in [*rows, {name: name}]) for name in names}
  rule = {n: '-' * w if n in _LEFT else '-' * (w - 1) + ':' for n, w in widths.items()}

  def line(row):
    cells = (f'{row[n]:{"<" if n in _LEFT else ">"}{widths[n]}}' for n in names)
    return f'| {" | ".join(cells)} |'

  return '\n'.join(map(line, [{name: name for name in names}, rule, *rows]))


def _rows(run: Mapping[str, Any]) -> Iterator[dict[str, str]]:
  device, flops = run['device'], run['flops_per_image']['forward']
  about = {
    'run': run['run'],
    'model': run['model'] or _DASH,
    'data set': run['dataset'] or _DASH,
    'epochs': _number(run['epochs'], '.4g'),
  }
  cost = {
    'parameters': _number(run['parameters'], ','),
    'MFLOPs/image': _number(flops and flops / 1e6, ',.1f'),
    'images/s': _number(run['images_per_second'], ',.0f'),
    'device': f'{device["count"]} x {device["kind"]}, {run["dtype"]}',
  }
  for name, values in run['metrics'].items():
    shown = {
      k: _DASH if v is None else format_value(name, v, run['descriptions'])
      for k, v in values.items()
    }
    if (count := run.get('count', 1)) > 1 and 'low' in shown:
      shown['ours'] += f' ({shown["low"]} to {shown["high"]}, {count} runs)'
    shown = {k: shown[k] for k in ('ours', 'published')}
    row = about | {'metric': name} | shown | cost
    yield {column: printable(cell, MAX_NAME) for column, cell in row.items()}


def _number(value: float | None, spec: str) -> str:
  return _DASH if value is None else format(value, spec)
