"""American Sign Language letters, their class and box: configs/asl_letters.py:MODEL[-small].

MODEL is vit, a ViT-B/16 from scratch; vit-pretrained, the ViT of config.init_from with its patch
and position embeddings and first six blocks frozen; or resnet18. With -undivided after a ViT, the
loss of the class isn't divided to balance it with that of the box. With -small, images have 64
pixels a side, and the ViT is one for a CPU. config.data.dir is a folder in YOLO format: the letters
are public.roboflow.com's, 1512 images to train, 144 to validate, 72 to test. Any other with one
object an image will do. The published numbers are of the 144, which also choose the best checkpoint
and move the learning rate, so that they are the test split here.
"""

from ml_collections import ConfigDict

from configs import common, datasets, finetune
from vit_jax.errors import check_choice
from vit_jax.models import sizes

_MODELS = ('vit', 'vit-undivided', 'vit-pretrained', 'vit-pretrained-undivided', 'resnet18')
# accuracy and share of boxes over an IoU of 50, 75 and 90 %, on the 144 images of `valid`
_PUBLISHED = {
  'vit': (0.8819, 1.0, 0.993, 0.6597),
  'vit-undivided': (0.9097, 1.0, 0.8055, 0.125),
  'resnet18': (0.8819, 1.0, 0.8472, 0.1319),
}
_FIRST_SIX_BLOCKS = r'backbone/(embedding|cls|Transformer/(posembed_input|encoderblock_[0-5]))'


def get_config(arg: str = 'vit') -> ConfigDict:
  """Returns the configuration; `arg` is 'MODEL', perhaps with '-small' after it."""
  name = arg.removesuffix('-small')
  check_choice('--config: the model of asl_letters', name, _MODELS)
  model = 'resnet18' if name == 'resnet18' else 'vit'
  c = common.get_config(model=model, task='localization')
  c.data.update(name='yolo', test_split='valid', image_size=(224, 224), channels=3)
  c.batch_size = 32
  c.num_epochs = 60.0
  c.monitor = 'loss'
  c.schedule.name = 'constant'
  c.schedule.warmup_steps = 100
  c.plateau.factor = 0.5
  c.grad_clip_norm = 1.0
  c.optimizer.learning_rate = 1e-4
  c.optimizer.weight_decay = 0.05
  if not name.endswith('-undivided'):
    c.loss.class_divisor = 100.0  # ln 26 = 3.3 nats at the start, against a squared error of 0.02
  c.augment.color_jitter.update(brightness=0.2, contrast=0.2, saturation=0.2)
  c.augment.flip = True
  c.augment.crop_padding = 24
  small = arg != name
  if small:
    c.data.image_size = (64, 64)
    c.augment.crop_padding = 7
    c.optimizer.learning_rate = 1e-3
  if name == 'resnet18':
    c.data.update(datasets.IMAGENET)
  elif 'pretrained' in name:
    finetune.leave_open(c)
    c.freeze = (_FIRST_SIX_BLOCKS,)
  elif small:
    c.model.update(hidden_size=128, mlp_dim=512, num_layers=6, num_heads=4)
    c.model.patches.size = (8, 8)
    c.model.posemb_init_stddev = 0.3  # positions must be told apart soon
  else:
    c.model.update(sizes.parse('B/16'))
  c.model.head.box_sigmoid = name == 'resnet18'  # the published ViT did better without
  metrics = ('test/accuracy', 'test/iou50', 'test/iou75', 'test/iou90')
  c.reference.update(dict(zip(metrics, _PUBLISHED[name.replace('-pretrained', '')], strict=True)))
  c.reference.source = 'PyTorch write-up, pre-trained on ImageNet (21k for the ViT)'
  return c
