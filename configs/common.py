"""The fields that every experiment has, with their defaults. The other configs start from here.

What is under `model` and `loss` comes from the backbone and the task: their fields are documented
in `vit_jax.models` and `vit_jax.tasks`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vit_jax import config_fields
from vit_jax.errors import UsageError


def get_config(model: str, task: str = 'classification') -> ConfigDict:
  """Returns the defaults, with the fields of a backbone (`models.BACKBONES`) and a task."""
  c = ConfigDict()
  c.seed = 0  # decides initial parameters, batches, augmentation and dropout
  c.dtype = 'auto'  # compute dtype: float32, bfloat16, or auto = bfloat16 on GPU and TPU

  c.batch_size = 128  # examples per optimiser step, over all devices and processes
  c.eval_batch_size = 0  # 0 = batch_size
  c.num_epochs = 10.0  # passes over the training split
  c.num_steps = 0  # optimiser steps; where set, it stands instead of num_epochs
  c.grad_accum_steps = 1  # micro-batches that a step's batch is computed in, to save memory
  # What is spread over the devices instead of whole on each, to save memory: none; optimizer (its
  # state, gradients, moving average); all (parameters too). Runs may go on with another.
  c.shard = 'none'

  c.log_every = 0  # steps between lines in metrics.jsonl; 0 = four per evaluation, or every 100
  c.eval_every = 0  # steps between evaluations; 0 = once per epoch
  c.checkpoint_every = 0  # steps between checkpoints; 0 = with each evaluation

  # What metrics are written to beside metrics.jsonl: tensorboard, wandb, or 'module:Class'.
  c.writers = ('tensorboard',)
  c.profile = ()  # (first, last) steps to trace, counted from 1; see docs/configuration.md

  # Decides best checkpoint, early stopping, plateau: a metric of the validation split if there is
  # one, else of the test split; or of an evaluator, as knn/accuracy.
  c.monitor = 'accuracy'
  # Further metrics of evaluations: names of docs/configuration.md#metrics, or 'module:function'.
  c.metrics = ()
  c.early_stopping_patience = 0  # evaluations without a better monitor before stopping; 0 = never

  c.init_from = ''  # weights to start from: a file, a folder, hf:NAME, a run directory; '' = none
  c.init_options = ConfigDict()
  c.init_options.head = 'auto'  # auto: kept where the classes are the same; or keep, new
  c.init_options.architecture = placeholder(str)  # timm's name, for a state dict alone
  c.init_options.allow = placeholder(str)  # regex of tensors there to leave out or start anew
  c.init_options.format = placeholder(str)  # augreg, huggingface, timm, scenic, torchvision, run
  c.init_options.num_heads = placeholder(int)  # this and the rest: where the file doesn't say it
  c.init_options.image_size = placeholder(tuple)  # height, width
  c.init_options.num_frames = placeholder(int)
  c.init_options.classifier = placeholder(str)
  c.init_options.activation = placeholder(str)
  c.init_options.norm_epsilon = placeholder(float)
  c.init_options.resize = 'big_vision'  # of position embeddings: linear; or timm: bicubic

  config_fields.set_model(c, model)  # model: None in a field stands for its default
  config_fields.set_task(c, task)  # task, loss, and model.head where the task has one

  c.data = ConfigDict()
  # digits, moving_mnist, digits_in_space, tfds_masks, one of TFDS, or a folder's: folder,
  # video_folder, point_folder, csv, modelnet40, shapenet_part, yolo, masks;
  # or 'module:function' of your own
  c.data.name = 'digits'
  c.data.options = ConfigDict()  # of the data set; see `OPTIONS` in its file in data/sources/
  c.data.dir = ''  # of images, or where TFDS keeps its data; '' = $TFDS_DATA_DIR or its default
  c.data.train_split = 'train'
  # To choose by: a split, or a share of the training split, as '10%', which is taken out of it by
  # config.seed, of each class alike. The test split is then evaluated once, at the end. '' = none
  c.data.val_split = ''
  c.data.test_split = 'test'
  # Of classes in training: uniform (each example once an epoch), balanced (all classes alike often)
  # or sqrt (as often as the square root of their number of examples says)
  c.data.sampling = 'uniform'
  c.data.image_size = ()  # (height, width) that the model sees; () = as stored
  c.data.train_size = ()  # (height, width) to train on, where the model takes both; () = image_size
  c.data.channels = 0  # 1 or 3; 0 = as stored
  c.data.crop = 'resize'  # resize, central, or inception or scale (random at training time)
  # Of the resized image's sides, what central keeps, and inception to evaluate; None: 0.875
  c.data.crop_fraction = placeholder(float)
  c.data.crop_area = placeholder(tuple)  # of the image, what inception takes; None: (0.08, 1.0)
  # exact; or reduced: trains on JPEGs decoded at 1/2, 1/4 or 1/8 of their size where what is taken
  # of them still has at least image_size; faster for photographs that are far larger than that
  c.data.decoding = 'exact'
  # Of videos: frames that the model sees, to train from a random one on, to evaluate from the
  # middle; 0 = as stored. A video that is too short starts again at its end.
  c.data.num_frames = 0
  c.data.frame_stride = 1  # of the video's frames, from each of these to the next
  c.data.temporal_views = 1  # clips of each video whose outputs evaluation averages
  c.data.num_points = 0  # that the model sees of a cloud, at random to train; 0 = as stored
  c.data.spatial_crops = 1  # 3: and of each, crops in the middle and at both ends
  c.data.test_rotation = 'none'  # of points in evaluation, as config.augment.rotation to train
  c.data.mean = (0.5,)  # per channel, or one for all; of pixels scaled to [0, 1]
  c.data.std = (0.5,)
  c.data.resident = 'auto'  # keep the decoded set on the device: yes, no, auto = where it fits
  c.data.num_workers = 0  # worker processes of a streamed set; 0 = threads
  c.data.num_threads = 8
  c.data.prefetch = 4  # batches made ahead

  c.augment = ConfigDict()  # on the device, in this order; 0, False: off
  c.augment.resized_crop = ConfigDict()  # a random part, resized
  c.augment.resized_crop.area = ()  # (smallest, largest) fraction of the image; () = off
  c.augment.resized_crop.size = ()  # (height, width); () = the image's
  c.augment.crop_padding = 0  # pixels of zeros around, then a random crop of the old size
  c.augment.flip = False  # left to right, half of the time
  c.augment.shift = 0  # pixels, up to, in each direction
  c.augment.rand_augment = ConfigDict({'num_ops': 0, 'magnitude': 9.0})  # magnitude 0 to 30
  c.augment.color_jitter = ConfigDict()
  c.augment.color_jitter.update(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
  c.augment.color_jitter.probability = 1.0
  c.augment.grayscale = 0.0  # probability
  c.augment.gaussian_blur = ConfigDict({'probability': 0.0, 'sigma': (0.1, 2.0)})  # sigma in pixels
  c.augment.solarize = ConfigDict({'probability': 0.0, 'threshold': 0.5})
  c.augment.own = ()  # functions of your own, each as 'module:function'; see docs/own_parts.md
  c.augment.random_erasing = ConfigDict()
  c.augment.random_erasing.update(probability=0.0, area=(0.02, 1 / 3), aspect=(0.3, 10 / 3))
  c.augment.rotation = 'none'  # of points: z, by any angle about that axis; so3, any rotation
  c.augment.point_scale = 0.0  # 0.25: by factors from 1 / 1.25 to 1.25
  c.augment.point_shift = 0.0  # along each axis, up to, of a cloud that reaches out to 1
  c.augment.point_jitter = 0.0  # standard deviation of each coordinate, likewise
  c.augment.mixup_alpha = 0.0
  c.augment.cutmix_alpha = 0.0  # with mixup: one of the two for each pair, at random

  c.optimizer = ConfigDict()
  # sgd, adam, adamw, lion, lamb; or another of optax or your own, as 'optax:nadamw'
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 1e-3  # the schedule's peak
  c.optimizer.weight_decay = 0.0  # coupled (added to gradients, as PyTorch) for sgd and adam
  c.optimizer.weight_decay_end = placeholder(float)  # to which it goes by a cosine; None: constant
  c.optimizer.no_decay = placeholder(str)  # regex of parameters; None: the model's, '': none
  c.optimizer.layer_decay = 1.0  # of the learning rate, for each layer down from the head; 1 = off
  c.optimizer.head_lr_factor = 1.0  # multiplies the learning rate of the head, or the heads
  c.optimizer.momentum = placeholder(float)  # sgd
  c.optimizer.nesterov = placeholder(bool)  # sgd
  c.optimizer.b1 = placeholder(float)  # adam, adamw, lion, lamb
  c.optimizer.b2 = placeholder(float)
  c.optimizer.eps = placeholder(float)  # adam, adamw, lamb

  c.schedule = ConfigDict()
  # constant, linear, cosine, rsqrt; or 'module:function' of (peak, steps after the warmup)
  c.schedule.name = 'cosine'
  c.schedule.warmup_steps = 0  # linear warmup from 0
  c.schedule.end = 0.0  # learning rate that linear and cosine end with
  c.schedule.timescale = 10_000  # rsqrt: steps before the decay sets in

  c.plateau = ConfigDict()  # reduce on plateau, on top of the schedule
  c.plateau.factor = 1.0  # the learning rate is multiplied by it; 1 = off
  c.plateau.patience = 5  # evaluations without a better monitor
  c.plateau.min_delta = 1e-4  # a smaller improvement is none
  c.plateau.cooldown = 0  # evaluations to wait after a reduction
  c.plateau.min_scale = 0.0  # smallest product of factors

  c.grad_clip_norm = 0.0  # clip gradients to this global norm; 0 = off
  c.grad_clip_norm_of_each = 0.0  # clip the gradient of each array to this norm; 0 = off
  c.ema_decay = 0.0  # of the parameters' moving average, which is then what is evaluated; 0 = off
  c.ema_decay_end = placeholder(float)  # to which it goes by a cosine; None: constant
  # Regexes of parameter paths, or their parents', that stay as they are. Running statistics of
  # batch normalisation move all the same, as where PyTorch's requires_grad is False.
  c.freeze = ()
  # Regexes, likewise, of what trains only once these steps are done, by an optimiser that then
  # starts: the head's last layer in the first epoch of DINO.
  c.freeze_first = ()
  c.freeze_first_steps = 0

  # Judges of the backbone's features, whatever the task, on labelled data. Each gives an accuracy
  # (knn/accuracy, linear/accuracy), which `monitor` may name.
  c.evaluators = ConfigDict()
  # The k nearest neighbours vote, weighted by exp(cosine similarity / temperature), as DINO's.
  c.evaluators.knn = _evaluator(k=20, temperature=0.07)
  # Logistic regression on standardised features; l2 / 2 multiplies the kernel's squared norm.
  c.evaluators.linear = _evaluator(l2=1e-3, max_steps=100)

  # Published values that results are printed beside: metric -> value, and 'source' -> text. Metrics
  # are named as in metrics.jsonl (test/accuracy); or steps_per_second.
  c.reference = ConfigDict()
  return c


def defaults(config: ConfigDict) -> ConfigDict:
  """Returns the defaults of the fields of `config`: these, its model's, task's, data set's, head's.

  Runs of a version that had no such field did as its default says.
  """
  c = get_config(config.model.name, config.task)
  config_fields.set_data(c, config.data.name)
  if 'head' in config.model:
    config_fields.set_head(c, config.model.head.name)
  return c


def _evaluator(**options: float) -> ConfigDict:
  """Returns the fields that every evaluator has, off, and its own."""
  c = ConfigDict()
  c.enabled = False  # before the first step, after the last, and
  c.every = 0  # after each so many steps; 0 = with each evaluation of the task
  c.pooling = 'head'  # features: as the backbone's own head reads; token (of class); mean (of all)
  c.layer = placeholder(int)  # whose tokens are read, from 0; None = after the last one's norm
  c.data = ConfigDict()
  c.data.name = ''  # '' here and in dir: as the run's data
  c.data.dir = ''
  c.data.train_split = ''  # to learn from; '' = the run's, or train of other data
  c.data.test_split = ''  # to be judged on; '' = the run's val, else test; or test of other data
  c.update(options)
  return c


def refuse_arg(config: str, arg: str) -> None:
  """Raises UsageError where a config that takes no argument (after the colon) is given one."""
  if arg:
    raise UsageError(f'--config: {config} takes no argument, but was given {arg!r}')
