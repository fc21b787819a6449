"""`Context`: the model, the images and the options that pictures are drawn from."""

import dataclasses
import functools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from vit_jax.data import Preprocess, augment, kinds
from vit_jax.explain import attention, panels
from vit_jax.explain.evaluation import Evaluation
from vit_jax.explain.masks import MaskEvaluation
from vit_jax.models.backbone import (
  Attention,
  AttentionMaps,
  Backbone,
  Layout,
  Positions,
  TokenMaps,
)
from vit_jax.models.config import ModelConfig, Preprocessing
from vit_jax.predictor import check_finite
from vit_jax.tasks import task_for

NOT_OF_MODEL = 'not of this model'

_MOST_LINES = 3  # of the names of an image's classes
_T = TypeVar('_T')


class Nothing(str):
  """Why there is nothing to draw, where that is a result and no mistake."""

  __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Context:
  """A model, some images, and the options of the command.

  Attributes:
    config: of the model.
    variables: of the model.
    images: uint8 [N, H, W, C], as they go into the model, of a video its middle frame; may be empty
      for the pictures in `pictures.WITHOUT_IMAGES`.
    inputs: float32 [N, H, W, C], the same, normalised; the whole videos, [N, T, H, W, C].
    class_names: a name for each logit.
    file_names: N names, empty for images of a data set.
    labels: bool [N, num_classes], the true classes of each image; None where there are none.
    boxes: float [N, 4], the true boxes, (cx, cy, width, height) in fractions of the image as it
      goes into the model; None where there are none.
    evaluate: classifies the whole data set, not the N images alone; or returns in words why it
      can't.
    layer: index of the layer whose attention is drawn; None for the last.
    head_fusion: see `attention.rollout`.
    discard_ratio: see `attention.rollout`.
    target: index of the class that gradients are of; None for the predicted one.
    masks: [N, H, W], the true masks of the images as they go into the model; None where there are
      none.
    evaluate_masks: predicts the masks of the whole data set; or returns in words why it can't.
    task_options: of the model's task, those that aren't the defaults.
  """

  config: ModelConfig
  variables: Mapping[str, Any]
  images: np.ndarray
  inputs: np.ndarray
  class_names: Sequence[str]
  file_names: Sequence[str]
  labels: np.ndarray | None
  boxes: np.ndarray | None
  evaluate: Callable[[], Evaluation | str]
  layer: int | None
  head_fusion: str
  discard_ratio: float
  target: int | None
  masks: np.ndarray | None = None
  evaluate_masks: Callable[[], MaskEvaluation | str] | None = None
  task_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def backbone(self) -> Backbone:
    """The model without a task's head."""
    return self.config.backbone

  @functools.cached_property
  def backbone_variables(self) -> Mapping[str, Any]:
    """The variables of `backbone`."""
    return self.config.backbone_variables(self.variables)

  @property
  def image_size(self) -> tuple[int, int]:
    """(height, width) of `images`."""
    return self.images.shape[1:3]

  @property
  def sees_windows(self) -> bool:
    """Whether the backbone never sees a whole image, so that nothing can be drawn over one."""
    return self.config.seen_size != self.config.image_size

  @property
  def layout(self) -> Layout | None:
    """Where the backbone's tokens lie in the images."""
    return self.backbone.layout(self.image_size)

  @functools.cached_property
  def outputs(self) -> dict[str, np.ndarray]:
    """What the model gives for the images, by name, as in the evaluation of its task.

    Raises:
      UsageError: some of it isn't finite.
    """
    task, model = task_for(self.config, **self.task_options), self.config.model

    def apply(inputs, **options):
      return task.name_outputs(model.apply(self.variables, inputs, train=False, **options))

    def run(inputs, keys):
      return task.outputs(apply, {model.INPUT: inputs}, keys, False, apply)

    run, keys = jax.jit(run), jax.random.split(jax.random.key(0), len(self.inputs))
    rows = [jax.device_get(run(self.inputs[i : i + 1], keys[i : i + 1])) for i in range(len(keys))]
    outputs = jax.tree.map(lambda *x: np.concatenate(x), *rows)
    check_finite(outputs)
    return outputs

  @functools.cached_property
  def predicted_masks(self) -> np.ndarray | None:
    """Masks, [N, H, W]; None of a model that predicts none."""
    task = task_for(self.config)
    return np.asarray(task.predict(self.outputs)['mask']) if 'mask' in task.TARGETS else None

  @functools.cached_property
  def mask_evaluation(self) -> MaskEvaluation | str:
    """What `evaluate_masks` returns."""
    return self.evaluate_masks()

  @property
  def predictions(self) -> np.ndarray | None:
    """Most probable classes, int [N]; None of a model that classifies nothing."""
    if self.config.num_classes < 1:
      return None
    logits = self.outputs.get('logits')
    is_classifier = logits is not None and logits.ndim == 2
    return logits.argmax(axis=1) if is_classifier else None

  @property
  def classifies_alone(self) -> bool:
    """Whether the backbone itself gives the classes."""
    return self.predictions is not None and self.backbone.num_classes > 0

  @functools.cached_property
  def captions(self) -> list[str]:
    """For each image, in a few lines: its file, what classes are predicted, and the true ones."""
    captions = []
    for i, file_name in enumerate(self.file_names):
      lines = [panels.shorten(file_name)] if file_name else []
      if self.predictions is not None:
        lines.append(f'predicted {self._join_names(self._predicted_classes(i))}')
      if self.labels is not None:
        lines.append(f'true {self._join_names(np.flatnonzero(self.labels[i]))}')
      captions.append('\n'.join(lines))
    return captions

  @property
  def lines(self) -> list[str]:
    """The captions, each in one line."""
    return [c.replace(',\n', ', ').replace('\n', ', ') for c in self.captions]

  def _predicted_classes(self, i: int) -> list[int]:
    task = task_for(self.config, **self.task_options)
    outputs = {name: rows[i : i + 1] for name, rows in self.outputs.items()}
    return task.predicted_classes(task.probabilities(jax.device_get(task.predict(outputs)))[0])

  def _join_names(self, classes: Sequence[int]) -> str:
    # A line doesn't end within a name.
    names = [panels.shorten(self.class_names[c]).replace(' ', '\xa0') for c in classes] or ['none']
    options = {'break_long_words': False, 'break_on_hyphens': False}
    text = textwrap.fill(
      ', '.join(names), panels.LONGEST, max_lines=_MOST_LINES, placeholder=' …', **options
    )
    return text.replace('\xa0', ' ')

  @functools.cached_property
  def evaluation(self) -> Evaluation | str:
    """What `evaluate` returns, or why there is nothing to evaluate."""
    if self.labels is None:
      return 'the images are not in folders of the names of classes'
    return self.evaluate()

  # What the backbone looks at.

  @functools.cached_property
  def has_attention(self) -> bool:
    """Whether the backbone has attention between the tokens of the patches in every layer."""
    *input_size, channels = self.inputs.shape[1:]
    return not self.sees_windows and attention.has_attention(
      self.backbone, self.backbone_variables, input_size, channels
    )

  def attentions(self) -> Iterator[Attention]:
    """Yields the attention weights of each image, one by one, since they are large."""
    for image in self.inputs:
      yield jax.device_get(self._capture(self.backbone_variables, image[None])[1])

  @functools.cached_property
  def _capture(self) -> Callable[..., tuple[jax.Array, Attention]]:
    return jax.jit(functools.partial(attention.capture, self.backbone))

  @functools.cached_property
  def attention_maps(self) -> list[AttentionMaps]:
    """The maps of each image, of the layer that is asked for; [] where there are none."""
    ask = self.backbone.attention_maps
    return self.ask_backbone(functools.partial(ask, image_size=self.image_size, layer=self.layer))

  @functools.cached_property
  def token_maps(self) -> list[Sequence[TokenMaps]]:
    """The maps of tokens of each image; [] where there are none."""
    ask = self.backbone.token_maps
    return self.ask_backbone(functools.partial(ask, image_size=self.image_size))

  @property
  def patch_kernel(self) -> np.ndarray | None:
    """The kernel of the patch embedding; None where there is none that can be drawn."""
    return self.backbone.patch_kernel(self.backbone_variables['params'])

  @property
  def positions(self) -> Positions | None:
    """The position embeddings; None where there are none."""
    return self.backbone.positions(self.backbone_variables['params'], self.config.seen_size)

  def ask_backbone(self, question: Callable[[Mapping[str, Any]], _T]) -> list[_T]:
    """Returns the answer about each image; [] of a model that has none, or sees windows alone.

    Args:
      question: a function of what the backbone captured of an image, `Backbone.attention`'s
        `intermediates`.
    """
    answers = []
    if self.sees_windows:
      return answers
    for image in self.inputs:
      _, intermediates = jax.device_get(self._apply(self.backbone_variables, image[None]))
      answer = question(intermediates)
      if not answer:
        return []
      answers.append(answer)
    return answers

  @functools.cached_property
  def _apply(self) -> Callable[..., tuple[Any, dict[str, Any]]]:
    return jax.jit(functools.partial(attention.apply_with_intermediates, self.backbone))

  def to_pixels(
    self,
    maps: np.ndarray,
    patch: tuple[int, int],
    stride: tuple[int, int],
    upsample: Callable[..., np.ndarray] = attention.upsample,
  ) -> np.ndarray:
    """Brings maps [..., rows, columns] to the images: [..., H, W].

    Args are those of `attention.upsample`; where the maps reach beyond the image, as those of a
    model that pads it, they are cut off, and where they end before it, their last values go on.
    """
    height, width = self.image_size
    maps = upsample(maps, patch, stride)[..., :height, :width]
    missing = [(0, height - maps.shape[-2]), (0, width - maps.shape[-1])]
    return np.pad(maps, [(0, 0)] * (maps.ndim - 2) + missing, 'edge')

  def to_bytes(self, inputs: np.ndarray) -> np.ndarray:
    """Returns uint8 pixels of values in the scale of `inputs`."""
    scale = self.config.preprocess or Preprocessing()
    pixels = inputs * np.float32(scale.std) + np.float32(scale.mean)
    return np.round(255 * pixels.clip(0, 1)).astype(np.uint8)


def class_names(config: ModelConfig) -> Sequence[str]:
  """Returns a name for each class of a model."""
  return config.class_names or [f'class {i}' for i in range(config.num_classes)]


def spread(examples: Sequence[_T], count: int) -> list[_T]:
  """Returns `count` of the examples at most, evenly spread, since folders are in order."""
  count = min(count, len(examples))
  return [examples[i * len(examples) // count] for i in range(count)]


def of_records(
  variables: Mapping[str, Any],
  config: ModelConfig,
  preprocessing: tuple[Preprocess, Sequence[float], Sequence[float]],
  records: Sequence[Mapping[str, Any]],
  **options: Any,
) -> Context:
  """Returns what there is to explain of a model in some records, of each its middle view.

  Args:
    variables: of the model.
    config: of the model.
    preprocessing: as `predictor.preparation` returns it.
    records: as sources give them, with a `file` where they have a name.
    **options: the other attributes of the context.
  """
  preprocess, mean, std = preprocessing
  name, kind = config.model.INPUT, kinds.kind_of(config.model.INPUT)
  prepared = [preprocess.one_view(record) for record in records]
  inputs = np.array([record[name] for record in prepared], kind.dtype)
  inputs = inputs.reshape(-1, *config.input_size, config.channels)
  images = [kind.picture(value) for value in inputs]
  labels = [record['label'] for record in records if 'label' in record and config.num_classes]
  boxes, masks = ([r[entry] for r in prepared if entry in r] for entry in ('box', 'mask'))
  return Context(
    config=config,
    variables=variables,
    images=np.stack(images or [kind.picture(np.zeros(inputs.shape[1:], kind.dtype))])[
      : len(images)
    ],
    inputs=np.asarray(augment.normalize_batch({name: inputs}, mean, std)[name]),
    labels=_one_hot(labels, config.num_classes) if len(labels) == len(records) else None,
    boxes=np.stack(boxes) if boxes else None,
    file_names=[record.get('file', '') for record in records],
    masks=np.stack(masks) if masks else None,
    **options,
  )


def _one_hot(labels: Sequence[int | np.ndarray], num_classes: int) -> np.ndarray:
  """Labels, or rows of a number per class, to bool [N, num_classes]."""
  ids = np.arange(num_classes)
  return np.array([ids == label if np.ndim(label) == 0 else label > 0 for label in labels])
