"""Small, valid weights, images and folders of data, which tests/fuzz.py damages."""

import shutil
import sys
from pathlib import Path

import mask_folders
import numpy as np
import yolo_folders
from forked_commands import ROOT
from image_files import make_folder, pixels, save
from PIL import Image
from tfds_files import image_feature, label_feature, png, write_tfds
from video_files import frames, write_video

RUNS = ROOT / 'tests' / 'kept_runs'
SIZE = (24, 20)
_VIT = (
  '--config.model.hidden_size=16',
  '--config.model.mlp_dim=16',
  '--config.model.num_layers=1',
  '--config.model.num_heads=2',
  '--config.model.patches.size=(4,4)',
)
_STEPS = ('--config.num_steps=2', '--config.batch_size=4', '--config.schedule.warmup_steps=0')
_SMALL = (*_VIT, *_STEPS, '--config.data.image_size=(8,8)')
_POINTS = (*_STEPS, '--config.data.num_points=16')
# Kind of folder -> the flags of an experiment on it, which is FOLDER.
EXPERIMENTS = {
  'classes': ('--config=configs/vit.py:Ti/4,FOLDER', *_SMALL),
  'yolo': (
    '--config=configs/asl_letters.py:vit-small',
    '--config.data.dir=FOLDER',
    *_SMALL,
  ),
  'csv': ('--config=configs/vit.py:Ti/4,FOLDER', '--config.data.name=csv', *_SMALL),
  'masks': ('--config=configs/segmentation.py:linear,small,FOLDER', *_SMALL),
  'videos': (
    '--config=configs/vivit.py:Ti/4x2-1,FOLDER',
    *_VIT[:-1],
    *_SMALL[len(_VIT) :],
    '--config.data.num_frames=2',
    '--config.data.frame_stride=1',
  ),
  'tfds': (
    '--config=configs/digits.py',
    '--config.data.name=tiny',
    '--config.data.dir=FOLDER',
    '--config.data.test_split=train',
    '--config.data.channels=3',
    *_SMALL,
  ),
  'points': ('--config=configs/point_transformer.py:small,FOLDER', *_POINTS),
  'modelnet40': (
    '--config=configs/point_transformer.py:small,modelnet40',
    '--config.data.dir=FOLDER',
    *_STEPS,
    '--config.data.num_points=6',
  ),
}


def make(root):
  """Makes all, in folders named as the kinds; in a process of its own, for it starts JAX."""
  weights(root / 'weights')
  images(root / 'images')
  for name, maker in MAKERS.items():
    maker(root / 'folders' / name)


def weights(root):
  """Writes models in every format, as files and as folders, and copies runs."""
  import torch
  from small_vits import SQUARE, random_variables

  from vit_jax import models
  from vit_jax.weights import files, save

  root.mkdir(parents=True)
  vit = SQUARE.replace(class_names=('cat', 'dog', 'ox'))
  exact = vit.replace(activation='gelu_exact')
  swin = {'name': 'swin', 'embed_dim': 8, 'depths': (1, 1), 'num_heads': (2, 2), 'window_size': 2}
  swin |= {'image_size': (32, 32), 'channels': 3, 'num_classes': 3}
  resnet = {'name': 'resnet18', 'num_filters': 2, 'num_classes': 3, 'channels': 3}
  swin, resnet = map(models.ModelConfig.from_dict, (swin, resnet | {'image_size': (32, 32)}))
  made = (
    ('vit.npz', vit, 'augreg'),
    ('vit.msgpack', vit, 'scenic'),
    ('vit.safetensors', exact, 'timm'),
    ('vit_timm', exact, 'timm'),
    ('vit_huggingface', exact, 'huggingface'),
    ('swin_timm', swin.replace(windowing='timm'), 'timm'),
    ('swin_huggingface', swin, 'huggingface'),
    ('resnet.safetensors', resnet, 'torchvision'),
  )
  for name, config, format in made:
    save(random_variables(config), config, root / name, format=format)
  tensors, _ = files.parse_safetensors((root / 'resnet.safetensors').read_bytes())
  tensors = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
  torch.save(tensors, root / 'resnet.pth')
  torch.save({'state_dict': tensors}, root / 'old.pth', _use_new_zipfile_serialization=False)
  for name in ('run', 'resnet', 'token_learner'):
    shutil.copytree(RUNS / name, root / f'run_{name}')


def images(root):
  """Writes images of every format, and of the kinds that these have."""
  exif = Image.Exif()
  exif[0x0112] = 6
  colour, grey = pixels(*SIZE), pixels(*SIZE, 1)
  for suffix in ('bmp', 'gif', 'jpg', 'png', 'webp'):
    save(root / f'colour.{suffix}', colour)
    save(root / f'grey.{suffix}', grey)
  save(root / 'turned.jpg', colour, exif=exif)
  save(root / 'turned.png', colour, exif=exif)
  save(root / 'progressive.jpg', colour, progressive=True)
  save(root / 'transparent.png', pixels(*SIZE, 4))
  save(root / 'transparent.webp', pixels(*SIZE, 4), lossless=True)
  save(root / 'deep.png', grey.astype(np.uint16) * 257)
  for name, mode in {'cmyk.jpg': 'CMYK', 'palette.png': 'P', 'bits.png': '1', 'p.bmp': 'P'}.items():
    Image.fromarray(colour).convert(mode).save(root / name)
  Image.fromarray(grey).save(root / 'comment.png', pnginfo=_comment())
  moving = [Image.fromarray(pixels(*SIZE, seed=seed)) for seed in range(3)]
  for suffix in ('gif', 'webp', 'png'):
    moving[0].save(root / f'moving.{suffix}', save_all=True, append_images=moving[1:])


def _comment():
  from PIL.PngImagePlugin import PngInfo

  info = PngInfo()
  info.add_text('Comment', 'words' * 100, zip=True)
  info.add_itxt('Title', 'words' * 100, zip=True)
  return info


def yolo(root):
  """Images with boxes."""
  yolo_folders.write(root, {'train': 6, 'valid': 3, 'test': 3})


def csv(root):
  """Images with tables of their labels."""
  for split in ('train', 'test'):
    names = [f'images/{split}{i}.png' for i in range(6)]
    for i, name in enumerate(names):
      save(root / name, pixels(8, 9, seed=i))
    rows = [f'{name},{("cat", "dog")[i % 2]}' for i, name in enumerate(names)]
    (root / f'{split}.csv').write_text('\n'.join(['file,label', *rows]) + '\n')


def masks(root):
  """Images with masks."""
  mask_folders.write(root, {'train': 6, 'test': 4})


def videos(root):
  """Videos of several formats, and folders of frames, in a folder for each class."""
  for split in ('train', 'test'):
    for label in ('cat', 'dog'):
      for i, name in enumerate(('a.gif', 'b', 'c.mp4', 'd.avi', 'e.webm')):
        write_video(root / split / label / name, frames(4, 16, 24, seed=i))


def tfds(root):
  """A data set that TFDS has prepared."""
  examples = [{'image': png(pixels(8, 8, seed=i)), 'label': [i % 3]} for i in range(8)]
  features = {'image': image_feature(8, 8, 3), 'label': label_feature(3)}
  write_tfds(root, examples, features, keys=('image', 'label'))


def points(root):
  """Clouds of points in text, in a folder for each class."""
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for label in ('chair', 'lamp'):
      (root / split / label).mkdir(parents=True)
      for i in range(4):
        np.savetxt(root / split / label / f'{i}.xyz', rng.normal(size=(20, 3)), fmt='%.5g')


def modelnet40(root):
  """Clouds of points in HDF5."""
  sys.path.append(str(Path(__file__).parent / 'data' / 'sources'))
  from test_hdf5 import make_modelnet

  root.mkdir(parents=True)
  make_modelnet(root)


MAKERS = {
  'classes': make_folder,
  'yolo': yolo,
  'csv': csv,
  'masks': masks,
  'videos': videos,
  'tfds': tfds,
  'points': points,
  'modelnet40': modelnet40,
}
