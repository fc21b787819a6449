"""The fields that every experiment has: their defaults, types and ranges, in one place.

`configs/common.py` makes a configuration of them, flags change it, and `check` looks at what they
were given. What is under `model` and `loss` comes from the backbone and the task: their fields are
documented in `vit_jax.models` and `vit_jax.tasks`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

from ml_collections import ConfigDict

from vit_jax import config_fields
from vit_jax.data.augment.randaugment import MAX_MAGNITUDE
from vit_jax.errors import field_prefix
from vit_jax.models import fields
from vit_jax.models.fields import Section
from vit_jax.ranges import (
  Count,
  Fraction,
  NonNegative,
  Number,
  Positive,
  PositiveFraction,
  Range,
  Rate,
  Real,
  Seed,
  Side,
  Size,
)

# A process or thread is started for each, a batch, clip, frame or point is held in memory: the most
# are far more than any machine has or any data set needs.
_Workers = Annotated[int, Range(0, 1000)]
_Threads = Annotated[int, Range(1, 1000)]
_BatchesAhead = Annotated[int, Range(1, 1000)]
_Clips = Annotated[int, Range(1, 1000)]
_Frames = Annotated[int, Range(0, 10_000)]
_Points = Annotated[int, Range(0, 10_000_000)]
_Sigma = Annotated[float, Range(0, 128, above=True)]  # each pixel of its reach is an operation

# (least, most) of what is drawn between them. That they are in this order is checked where it is.
_Areas = tuple[PositiveFraction, PositiveFraction]
_AspectRatios = tuple[Positive, Positive]


@dataclasses.dataclass(frozen=True)
class InitOptions(Section):
  """How weights to start from are read: `config.init_options`."""

  head: str = 'auto'  # auto: kept where the classes are the same; or keep, new
  architecture: str | None = None  # timm's name, for a state dict alone
  allow: str | None = None  # regex of tensors there to leave out or start anew
  format: str | None = None  # augreg, huggingface, timm, scenic, torchvision, run
  num_heads: Count | None = None  # this and the rest: where the file doesn't say it
  image_size: tuple[Side, Side] | None = None  # height, width
  num_frames: Count | None = None
  classifier: str | None = None
  activation: str | None = None
  norm_epsilon: NonNegative | None = None
  resize: str = 'big_vision'  # of position embeddings: linear; or timm: bicubic


@dataclasses.dataclass(frozen=True)
class Data(Section):
  """What is learnt from, and how it comes to the device: `config.data`."""

  # digits, moving_mnist, digits_in_space, tfds_masks, one of TFDS, or a folder's: folder,
  # video_folder, point_folder, csv, modelnet40, shapenet_part, yolo, masks;
  # or 'module:function' of your own
  name: str = 'digits'
  # Of the data set; see `OPTIONS` in its file in data/sources/
  options: Mapping = dataclasses.field(default_factory=dict)
  dir: str = ''  # of images, or where TFDS keeps its data; '' = $TFDS_DATA_DIR or its default
  train_split: str = 'train'
  # To choose by: a split, or a share of the training split, as '10%', which is taken out of it by
  # config.seed, of each class alike. The test split is then evaluated once, at the end. '' = none
  val_split: str = ''
  test_split: str = 'test'
  # Of classes in training: uniform (each example once an epoch), balanced (all classes alike often)
  # or sqrt (as often as the square root of their number of examples says)
  sampling: str = 'uniform'
  image_size: Size = ()  # (height, width) that the model sees; () = as stored
  train_size: Size = ()  # (height, width) to train on, where the model takes both; () = image_size
  channels: Number = 0  # 1 or 3; 0 = as stored
  crop: str = 'resize'  # resize, central, or inception or scale (random at training time)
  # Of the resized image's sides, what central keeps, and inception to evaluate; None: 0.875
  crop_fraction: PositiveFraction | None = None
  crop_area: _Areas | None = None  # of the image, what inception takes; None: (0.08, 1.0)
  # exact; or reduced: trains on JPEGs decoded at 1/2, 1/4 or 1/8 of their size where what is taken
  # of them still has at least image_size; faster for photographs that are far larger than that
  decoding: str = 'exact'
  # exact; or fast: trains on images that cykooz-resizer resizes, Pillow's but for rounding
  resizing: str = 'exact'
  # Of videos: frames that the model sees, to train from a random one on, to evaluate from the
  # middle; 0 = as stored. A video that is too short starts again at its end.
  num_frames: _Frames = 0
  frame_stride: Count = 1  # of the video's frames, from each of these to the next
  temporal_views: _Clips = 1  # clips of each video whose outputs evaluation averages
  num_points: _Points = 0  # that the model sees of a cloud, at random to train; 0 = as stored
  spatial_crops: Count = 1  # 3: and of each, crops in the middle and at both ends
  test_rotation: str = 'none'  # of points in evaluation, as config.augment.rotation to train
  mean: tuple[Real, ...] | None = (0.5,)  # per channel, or one for all; of pixels in [0, 1]
  std: tuple[Positive, ...] | None = (0.5,)
  resident: str = 'auto'  # keep the decoded set on the device: yes, no, auto = where it fits
  num_workers: _Workers = 0  # worker processes of a streamed set; 0 = threads
  num_threads: _Threads = 8
  prefetch: _BatchesAhead = 4  # batches made ahead


@dataclasses.dataclass(frozen=True)
class ResizedCrop(Section):
  """A random part, resized: `config.augment.resized_crop`."""

  area: tuple[()] | _Areas = ()  # (smallest, largest) fraction of the image; () = off
  size: tuple[()] | tuple[Side, Side] = ()  # (height, width); () = the image's


@dataclasses.dataclass(frozen=True)
class RandAugment(Section):
  """Operations on colours and geometry, drawn at random: `config.augment.rand_augment`."""

  num_ops: Annotated[int, Range(0, 20)] = 0
  magnitude: Annotated[float, Range(0, MAX_MAGNITUDE)] = 9.0


@dataclasses.dataclass(frozen=True)
class ColorJitter(Section):
  """Changes of colours by random factors: `config.augment.color_jitter`."""

  brightness: NonNegative = 0.0
  contrast: NonNegative = 0.0
  saturation: NonNegative = 0.0
  hue: Annotated[float, Range(0, 0.5)] = 0.0
  probability: Fraction = 1.0


@dataclasses.dataclass(frozen=True)
class GaussianBlur(Section):
  """A blur of a random width: `config.augment.gaussian_blur`."""

  probability: Fraction = 0.0
  sigma: tuple[_Sigma, _Sigma] = (0.1, 2.0)  # in pixels


@dataclasses.dataclass(frozen=True)
class Solarize(Section):
  """Bright pixels inverted: `config.augment.solarize`."""

  probability: Fraction = 0.0
  threshold: Fraction = 0.5


@dataclasses.dataclass(frozen=True)
class RandomErasing(Section):
  """A random rectangle of noise: `config.augment.random_erasing`."""

  probability: Fraction = 0.0
  area: _Areas = (0.02, 1 / 3)
  aspect: _AspectRatios = (0.3, 10 / 3)


@dataclasses.dataclass(frozen=True)
class Augment(Section):
  """Augmentation on the device, in this order: `config.augment`. 0, False and () are off."""

  resized_crop: ResizedCrop = ResizedCrop()
  crop_padding: Number = 0  # pixels of zeros around, then a random crop of the old size
  flip: bool = False  # left to right, half of the time
  shift: Number = 0  # pixels, up to, in each direction
  rand_augment: RandAugment = RandAugment()
  color_jitter: ColorJitter = ColorJitter()
  grayscale: Fraction = 0.0  # probability
  gaussian_blur: GaussianBlur = GaussianBlur()
  solarize: Solarize = Solarize()
  # Functions of your own, each as 'module:function'; see docs/own_parts.md
  own: tuple[str, ...] = ()
  random_erasing: RandomErasing = RandomErasing()
  rotation: str = 'none'  # of points: z, by any angle about that axis; so3, any rotation
  point_scale: NonNegative = 0.0  # 0.25: by factors from 1 / 1.25 to 1.25
  point_shift: NonNegative = 0.0  # along each axis, up to, of a cloud that reaches out to 1
  point_jitter: NonNegative = 0.0  # standard deviation of each coordinate, likewise
  mixup_alpha: NonNegative = 0.0
  cutmix_alpha: NonNegative = 0.0  # with mixup: one of the two for each pair, at random


@dataclasses.dataclass(frozen=True)
class Optimizer(Section):
  """What makes updates of gradients: `config.optimizer`."""

  # sgd, adam, adamw, lion, lamb; or another of optax or your own, as 'optax:nadamw'
  name: str = 'adamw'
  learning_rate: NonNegative = 1e-3  # the schedule's peak
  weight_decay: NonNegative = 0.0  # coupled (added to gradients, as PyTorch) for sgd and adam
  weight_decay_end: NonNegative | None = None  # to which it goes by a cosine; None: constant
  no_decay: str | None = None  # regex of parameters; None: the model's, '': none
  layer_decay: PositiveFraction = 1.0  # of the learning rate, a layer down from the head; 1 = off
  head_lr_factor: Positive = 1.0  # multiplies the learning rate of the head, or the heads
  momentum: Rate | None = None  # sgd
  nesterov: bool | None = None  # sgd
  b1: Rate | None = None  # adam, adamw, lion, lamb
  b2: Rate | None = None
  eps: NonNegative | None = None  # adam, adamw, lamb; above 0 where it is used


@dataclasses.dataclass(frozen=True)
class Schedule(Section):
  """How the learning rate changes: `config.schedule`."""

  # constant, linear, cosine, rsqrt; or 'module:function' of (peak, steps after the warmup)
  name: str = 'cosine'
  warmup_steps: Number = 0  # linear warmup from 0
  end: NonNegative = 0.0  # learning rate that linear and cosine end with
  timescale: Count = 10_000  # rsqrt: steps before the decay sets in


@dataclasses.dataclass(frozen=True)
class Plateau(Section):
  """Reduction on a plateau, on top of the schedule: `config.plateau`."""

  factor: PositiveFraction = 1.0  # the learning rate is multiplied by it; 1 = off
  patience: Count = 5  # evaluations without a better monitor
  min_delta: Positive = 1e-4  # a smaller improvement is none
  cooldown: Number = 0  # evaluations to wait after a reduction
  min_scale: Rate = 0.0  # smallest product of factors


@dataclasses.dataclass(frozen=True)
class EvaluatorData(Section):
  """What an evaluator reads: `config.evaluators.NAME.data`."""

  name: str = ''  # '' here and in dir: as the run's data
  dir: str = ''
  train_split: str = ''  # to learn from; '' = the run's, or train of other data
  test_split: str = ''  # to be judged on; '' = the run's val, else test; or test of other data


@dataclasses.dataclass(frozen=True)
class Evaluator(Section):
  """What every evaluator has: `config.evaluators.NAME`."""

  enabled: bool = False  # before the first step, after the last, and
  every: Number = 0  # after each so many steps; 0 = with each evaluation of the task
  pooling: str = 'head'  # features: as the backbone's own head reads; token (of class); mean
  layer: Number | None = None  # whose tokens are read, from 0; None = after the last one's norm
  data: EvaluatorData = EvaluatorData()


@dataclasses.dataclass(frozen=True)
class KNN(Evaluator):
  """Nearest neighbours vote, weighted by exp(cosine similarity / temperature), as DINO's."""

  k: Count = 20  # neighbours that vote
  temperature: Positive = 0.07  # the lower, the less the farther ones count


@dataclasses.dataclass(frozen=True)
class Linear(Evaluator):
  """Logistic regression on standardised features."""

  l2: NonNegative = 1e-3  # times half of the kernel's squared norm
  max_steps: Count = 100  # of L-BFGS; it ends before where the gradient vanishes


@dataclasses.dataclass(frozen=True)
class Evaluators(Section):
  """Judges of the backbone's features, whatever the task, on labelled data: `config.evaluators`.

  Each gives an accuracy (knn/accuracy, linear/accuracy), which `monitor` may name.
  """

  knn: KNN = KNN()
  linear: Linear = Linear()


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """An experiment: `config`."""

  # Decides initial parameters, batches, augmentation and dropout. Of a seed of more than 32 bits,
  # all bits decide batches, and the last 32 the rest.
  seed: Seed = 0
  dtype: str = 'auto'  # compute dtype: float32, bfloat16, or auto = bfloat16 on GPU and TPU

  batch_size: Count = 128  # examples per optimiser step, over all devices and processes
  eval_batch_size: Number = 0  # 0 = batch_size
  num_epochs: NonNegative = 10.0  # passes over the training split
  num_steps: Number = 0  # optimiser steps; where set, it stands instead of num_epochs
  grad_accum_steps: Count = 1  # micro-batches that a step's batch is computed in, to save memory
  # What is spread over the devices instead of whole on each, to save memory: none; optimizer (its
  # state, gradients, moving average); all (parameters too). Runs may go on with another.
  shard: str = 'none'

  log_every: Number = 0  # steps between lines in metrics.jsonl; 0 = four per evaluation, or 100
  eval_every: Number = 0  # steps between evaluations; 0 = once per epoch
  checkpoint_every: Number = 0  # steps between checkpoints; 0 = with each evaluation

  # What metrics are written to beside metrics.jsonl: tensorboard, wandb, or 'module:Class'.
  writers: tuple[str, ...] = ('tensorboard',)
  # (first, last) steps to trace, counted from 1; see docs/configuration.md
  profile: tuple[()] | tuple[Count, Count] = ()

  # Decides best checkpoint, early stopping, plateau: a metric of the validation split if there is
  # one, else of the test split; or of an evaluator, as knn/accuracy.
  monitor: str = 'accuracy'
  # Further metrics of evaluations: names of docs/configuration.md#metrics, or 'module:function'.
  metrics: tuple[str, ...] = ()
  early_stopping_patience: Number = 0  # evaluations without a better monitor; 0 = never stops

  # Weights to start from: a file, a folder, hf:NAME, a run directory; '' = none
  init_from: str = ''
  init_options: InitOptions = InitOptions()

  # Of the backbone, with `head` where the task has one; None in a field stands for its default
  model: Mapping = dataclasses.field(default_factory=dict)
  task: str = 'classification'
  loss: Mapping = dataclasses.field(default_factory=dict)  # the task's options

  data: Data = Data()
  augment: Augment = Augment()
  optimizer: Optimizer = Optimizer()
  schedule: Schedule = Schedule()
  plateau: Plateau = Plateau()

  grad_clip_norm: NonNegative = 0.0  # clip gradients to this global norm; 0 = off
  grad_clip_norm_of_each: NonNegative = 0.0  # clip the gradient of each array to it; 0 = off
  ema_decay: Rate = 0.0  # of the parameters' moving average, which is then evaluated; 0 = off
  ema_decay_end: Fraction | None = None  # to which it goes by a cosine; None: constant
  # Regexes of parameter paths, or their parents', that stay as they are. Running statistics of
  # batch normalisation move all the same, as where PyTorch's requires_grad is False.
  freeze: tuple[str, ...] = ()
  # Regexes, likewise, of what trains only once these steps are done, by an optimiser that then
  # starts: the head's last layer in the first epoch of DINO.
  freeze_first: tuple[str, ...] = ()
  freeze_first_steps: Number = 0

  evaluators: Evaluators = Evaluators()

  # Published values that results are printed beside: metric -> value, and 'source' -> text. Metrics
  # are named as in metrics.jsonl (test/accuracy); or steps_per_second.
  reference: Mapping = dataclasses.field(default_factory=dict)


def default_config(model: str, task: str) -> ConfigDict:
  """Returns all fields with their defaults, those of a backbone and a task among them.

  Raises:
    FieldError: there is no such backbone or task.
  """
  config = fields.defaults(ExperimentConfig)
  config_fields.set_model(config, model)
  config_fields.set_task(config, task)
  return config


def defaults(config: ConfigDict) -> ConfigDict:
  """Returns the defaults of the fields of `config`: these, its model's, task's, data set's, head's.

  Runs of a version that had no such field did as its default says.
  """
  found = default_config(config.model.name, config.task)
  config_fields.set_data(found, config.data.name)
  if 'head' in config.model:
    config_fields.set_head(found, config.model.head.name)
  return found


def check(config: ConfigDict) -> None:
  """Raises FieldError, of 'config.FIELD', for a value of another type or out of its range.

  A field that `config` lacks, or that no experiment has, is left to who reads it, as are relations
  between fields.
  """
  with field_prefix('config.'):
    fields.check_given(ExperimentConfig, config)
