"""The model card of a folder for Hugging Face: README.md, with metadata that the hub reads."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from vit_jax import weights
from vit_jax.data import kinds
from vit_jax.errors import UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.variables import Variables
from vit_jax.predictor import preparation
from vit_jax.run import directory, splits
from vit_jax.run import results as results_lib
from vit_jax.run.metrics import format_value
from vit_jax.weights import files

CARD, CURVES, ATTENTION = 'README.md', 'curves.png', 'attention.png'
_SHOWN = 3  # images of the test split, with attention over them
# A path from the root, from a home or from the current folder, within a command.
_PATH = re.compile(r"""(?<![\w.])(~\w*|\.{0,2})/[^\s,:'"]*""")


def write(
  folder: Path,
  variables: Variables,
  config: ModelConfig,
  source: str,
  name: str,
  license: str | None,
  images: bool = False,
) -> str:
  """Writes the card of a model, and of a run its curves, and its attention over some images.

  The card of a run has its metrics, its command and its configuration; of paths of this machine
  only the last part is left.

  Args:
    folder: as the format `huggingface` wrote it.
    variables: of the model.
    config: of the model.
    source: where the model is from; a run, or weights, of which less is known.
    name: of the model: OWNER/NAME on the hub, or the folder's.
    license: of the weights, as the hub calls it; None where it isn't stated.
    images: whether images of a run's test split are in the card.

  Returns:
    A line that says which images the card shows, or why none; '' unless `images`.

  Raises:
    UsageError: it can't be written, or a file of the run can't be read.
  """
  run = Path(source)
  is_run = (run / 'model.json').exists()
  has_config = is_run and (run / directory.CONFIG).exists()
  experiment = _without_paths(directory.read_config(run)) if has_config else {}
  results = (results_lib.read(run) if is_run else None) or {}
  task = (
    f'{config.model.INPUT}-classification' if config.num_classes else 'image-feature-extraction'
  )
  started_from = experiment.get('init_from') or ''
  data = ModelCardData(
    license=license,
    library_name='transformers',
    pipeline_tag=task,
    tags=['vit_jax', 'jax', config.name],
    base_model=started_from.removeprefix('hf:') if started_from.startswith('hf:') else None,
    model_name=name.rpartition('/')[2],
    eval_results=_evaluations(results, task) or None,
  )
  has_curves = is_run and _draw_curves(run, folder, name, results)
  shown, remark = '', ''
  if images:
    try:
      shown = _draw_attention(run, folder, variables, config) if is_run else ''
      remark = 'shows images of ' + shown if shown else 'not drawn (no run, or no attention)'
    except UsageError as e:  # such as data that are no longer there
      remark = f'not drawn ({e})'
  parts = [
    f'# {name}',
    _model(config),
    f'![Attention over images of {shown}]({ATTENTION})' if shown else '',
    f'![Curves of the run]({CURVES})' if has_curves else '',
    _metrics(results),
    _use(config, name, folder),
    _training(experiment, results),
  ]
  text = '\n\n'.join(part for part in parts if part)
  files.write(folder / CARD, f'---\n{data.to_yaml()}\n---\n\n{text}\n'.encode())
  return remark and f'{folder / ATTENTION}: {remark}'


def _without_paths(value: Any) -> Any:
  """Returns a configuration in which no text tells where its user keeps files."""
  if isinstance(value, dict):
    return {name: _without_paths(item) for name, item in value.items()}
  if isinstance(value, list):
    return [_without_paths(item) for item in value]
  is_path = isinstance(value, str) and value.startswith(('/', '~', './', '../'))
  return Path(value).name if is_path else value


def _measured(results: Mapping[str, Any]) -> dict[str, float]:
  """Returns the best checkpoint's metrics of evaluations, those of single classes left out."""
  best = results.get('best', {})
  return {n: v for n, v in best.items() if n.count('/') == 1 and not n.startswith('train/')}


def _evaluations(results: Mapping[str, Any], task: str) -> list[EvalResult]:
  return [
    EvalResult(
      task_type=task,
      dataset_type=results['dataset'],
      dataset_name=results['dataset'],
      dataset_split=name.partition('/')[0],
      metric_type=name.partition('/')[2],
      metric_value=value,
    )
    for name, value in _measured(results).items()
    if name.startswith(('val/', 'test/'))  # knn/accuracy is of no split called knn
  ]


def _model(config: ModelConfig) -> str:
  size = 'x'.join(map(str, config.input_size or '?'))
  inputs = kinds.kind_of(config.model.INPUT).plural
  lines = f'{config.backbone.summary()}, for {inputs} of {size}'
  if config.num_classes:
    lines += f', {config.num_classes} classes'
  return lines + '. Made with vit_jax.'


def _metrics(results: Mapping[str, Any]) -> str:
  if not (measured := _measured(results)):
    return ''
  units = results.get('metrics', {})
  rows = '\n'.join(f'| {n} | {format_value(n, value, units)} |' for n, value in measured.items())
  where = f'On {results["dataset"]}, after step {results["best"]["step"]}:'
  return f'## Metrics\n\n{where}\n\n| metric | value |\n| --- | --- |\n{rows}'


def _use(config: ModelConfig, name: str, folder: Path) -> str:
  kind = weights.transformers_class(config, folder) if config.num_classes else 'AutoModel'
  return (
    '## Use\n\nWith transformers:\n\n```python\n'
    f"from transformers import {kind}\n\nmodel = {kind}.from_pretrained('{name}')\n```\n\n"
    'With vit_jax:\n\n```python\nfrom vit_jax import weights\n\n'
    f"variables, config = weights.load('{name}')\n"
    'outputs = config.model.apply(variables, inputs, train=False)\n```'
  )


def _training(experiment: Mapping[str, Any], results: Mapping[str, Any]) -> str:
  if not experiment:
    return ''
  known = {
    'steps': results.get('step'),
    'epochs': results.get('epochs'),
    'device': (results.get('device') or {}).get('kind'),
    'versions': ', '.join(f'{n} {v}' for n, v in results.get('versions', {}).items()),
  }
  lines = [f'- {name}: {value}' for name, value in known.items() if value]
  if command := results.get('command'):  # runs of earlier versions recorded none
    command = _PATH.sub(lambda path: Path(path[0]).name, command)
    lines += ['', '```sh', command, '```']
  text = json.dumps(experiment, indent=2)
  return (
    '\n'.join(['## Training', '', *lines]).rstrip()
    + '\n\n<details><summary>Configuration of the run, the fields of `--config` of `train.py`'
    f'</summary>\n\n```json\n{text}\n```\n\n</details>'
  )


def _draw_curves(run: Path, folder: Path, name: str, results: Mapping[str, Any]) -> bool:
  """Draws the run's curves; returns whether there are any."""
  from vit_jax.run import plots, writers  # Matplotlib, which takes a second to import

  path = run / 'metrics.jsonl'
  if not path.exists() or not (history := writers.read_history(path)):
    return False
  figure = plots.curves(history, name, results.get('metrics'))
  figure.savefig(folder / CURVES, dpi=120)
  return True


def _draw_attention(run: Path, folder: Path, variables: Variables, config: ModelConfig) -> str:
  """Draws what a model attends to; returns the name of the images, '' where it has no attention."""
  from vit_jax.explain import context, pictures, runs  # Matplotlib, too

  preprocessing = preparation(config)
  source, name = splits.read_split(run, 'test')
  figure = pictures.PICTURES['attention'](
    context.of_records(
      variables,
      config,
      preprocessing,
      context.spread(source, _SHOWN),
      class_names=context.class_names(config),
      evaluate=lambda: context.NOT_OF_MODEL,
      layer=None,
      head_fusion='mean',
      discard_ratio=0.0,
      target=None,
      task_options=runs.task_options(run, config),
    )
  )
  if isinstance(figure, str):
    return ''
  figure.savefig(folder / ATTENTION, pil_kwargs={'optimize': True})
  return name
