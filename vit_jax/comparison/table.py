"""A comparison's report as a table for people."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NAMES = {'jax': 'JAX', 'pytorch': 'PyTorch'}


def format_report(report: Mapping[str, Any]) -> str:
  """Returns what `compare` prints, from what it prints as JSON."""
  rows = {
    **{name: _side(report[side]) for side, name in _NAMES.items()},
    'weights': report['weights'],
    'images': '{count:,} of {shape[0]}x{shape[1]}x{shape[2]} ({from})'.format(**report['images']),
    **_logits(report['logits']),
    'first losses': '; '.join(
      ' '.join([name, *(f'{loss:.5f}' for loss in report['first_losses'][side])])
      for side, name in _NAMES.items()
    ),
  }
  return '\n'.join([*aligned(rows.items()), '', *_speeds(report)])


def _side(side: Mapping[str, Any]) -> str:
  versions = ', '.join(f'{name} {version}' for name, version in side['versions'].items())
  compiled = ', torch.compile' if side.get('compiled') else ''
  return f'{versions}; {side["device"]}, {side["threads"]} threads{compiled}'


def _logits(logits: Mapping[str, Any]) -> dict[str, str]:
  difference = (
    'at most {largest_difference:.1e}, on average {mean_difference:.1e}, in float32, of logits '
    'with mean {mean:.3g} and standard deviation {standard_deviation:.3g}'
  )
  agreement = '{top_1_agreement:.2%}'
  if logits['accuracy']:
    agreement += '; correct: JAX {accuracy[jax]:.2%}, PyTorch {accuracy[pytorch]:.2%}'
  return {
    'logit difference': difference.format(**logits),
    'top-1 agreement': agreement.format(**logits),
  }


def _speeds(report: Mapping[str, Any]) -> list[str]:
  casts = ' (parameters float32; PyTorch: torch.autocast)'
  heading = (
    'images/s, batch {batch_size}, {dtype}{casts}: median (low to high) of {turns} turns; load '
    'average before: {load_average:.1f}'
  ).format(**report, casts=casts if report['dtype'] == 'bfloat16' else '')
  rows = [('', 'JAX', 'PyTorch', 'JAX / PyTorch')]
  for task in ('inference', 'training'):
    speeds = report[task]
    rows.append(
      (task, *(show_range(speeds[name], 1) for name in _NAMES), show_range(speeds['ratio'], 2))
    )
  return [heading, *aligned(rows)]


def show_range(summary: Mapping[str, float], digits: int) -> str:
  """Returns a median with its range in brackets."""
  low, median, high = (f'{summary[key]:,.{digits}f}' for key in ('low', 'median', 'high'))
  return f'{median} ({low} to {high})'


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
  """Returns a line for each row, its cells in columns."""
  rows = list(rows)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
