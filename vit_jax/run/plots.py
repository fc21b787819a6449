"""The plots of a run directory."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from vit_jax.run.metrics import LABELS, Descriptions, describe


def curves(
  history: Sequence[dict[str, Any]], title: str, descriptions: Descriptions | None = None
) -> Figure:
  """Draws metrics over steps, each that has a label in a panel of its own.

  Args:
    history: lines of metrics.jsonl, with 'step' and keys like 'train/loss', 'test/accuracy'.
    title: of the figure.
    descriptions: of the metrics, as results.json has them; None for runs that recorded none.
  """
  descriptions, series = descriptions or {}, {}
  for line in history:
    for key, value in line.items():
      if key.startswith(('train/', 'test/')):
        series.setdefault(key, []).append((line['step'], value))
  found = {key.partition('/')[2] for key in series}
  names = [n for n in descriptions or LABELS if n in found and describe(n, descriptions)['label']]
  figure = Figure(figsize=(5 * max(len(names), 1), 3.6), layout='constrained')
  figure.suptitle(title)
  axes = figure.subplots(1, max(len(names), 1), squeeze=False)[0]
  for axis, name in zip(axes, names, strict=False):
    metric = describe(name, descriptions)
    is_share = metric['unit'] == '%'
    for split, style in (('train', '-'), ('test', 'o-')):
      if points := series.get(f'{split}/{name}'):
        steps, values = zip(*points, strict=True)
        values = [value * (100 if is_share else 1) for value in values]
        axis.plot(steps, values, style, label=split, markersize=3, linewidth=1.3)
    axis.set(xlabel='step', ylabel=metric['label'] + (' (%)' if is_share else ''))
    axis.grid(alpha=0.3)
    axis.legend()
  return figure
