"""The plots of a run directory."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

_LABELS = {'accuracy': 'accuracy (%)', 'iou': 'mean IoU of boxes'}


def curves(history: Sequence[dict[str, Any]], title: str) -> Figure:
  """Draws loss, accuracy and, of boxes, IoU over steps, each that there is in a panel of its own.

  Args:
    history: lines of metrics.jsonl, with 'step' and keys like 'train/loss', 'test/accuracy'.
    title: of the figure.
  """
  series = {}
  for line in history:
    for key, value in line.items():
      if key.startswith(('train/', 'test/')):
        series.setdefault(key, []).append((line['step'], value))
  names = [n for n in ('loss', 'accuracy', 'iou') if any(key.endswith(f'/{n}') for key in series)]
  figure = Figure(figsize=(5 * max(len(names), 1), 3.6), layout='constrained')
  figure.suptitle(title)
  axes = figure.subplots(1, max(len(names), 1), squeeze=False)[0]
  for axis, name in zip(axes, names, strict=False):
    for split, style in (('train', '-'), ('test', 'o-')):
      if points := series.get(f'{split}/{name}'):
        steps, values = zip(*points, strict=True)
        scale = 100 if name == 'accuracy' else 1
        values = [value * scale for value in values]
        axis.plot(steps, values, style, label=split, markersize=3, linewidth=1.3)
    axis.set(xlabel='step', ylabel=_LABELS.get(name, name))
    axis.grid(alpha=0.3)
    axis.legend()
  return figure
