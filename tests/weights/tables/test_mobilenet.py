"""MobileNetV3 computes what torchvision's does, restated here in PyTorch: evaluated, trained."""

import functools

import jax
import numpy as np
import pytest
import torch
import torchvision_operators  # noqa: F401  before torchvision
from small_vits import assert_same, assert_same_tensors
from torch import nn

from vit_jax import models, weights
from vit_jax.errors import UsageError
from vit_jax.weights import files

QUICK = {'xla_backend_optimization_level': 0}  # to compile, which is most of the time
# kernel, expanded, out, squeeze-and-excitation, activation, stride: tables 1 and 2 of the paper
ROWS = {
  'large': '3 16 16 - RE 1, 3 64 24 - RE 2, 3 72 24 - RE 1, 5 72 40 SE RE 2, 5 120 40 SE RE 1, '
  '5 120 40 SE RE 1, 3 240 80 - HS 2, 3 200 80 - HS 1, 3 184 80 - HS 1, 3 184 80 - HS 1, '
  '3 480 112 SE HS 1, 3 672 112 SE HS 1, 5 672 160 SE HS 2, 5 960 160 SE HS 1, 5 960 160 SE HS 1',
  'small': '3 16 16 SE RE 2, 3 72 24 - RE 2, 3 88 24 - RE 1, 5 96 40 SE HS 2, 5 240 40 SE HS 1, '
  '5 240 40 SE HS 1, 5 120 48 SE HS 1, 5 144 48 SE HS 1, 5 288 96 SE HS 2, 5 576 96 SE HS 1, '
  '5 576 96 SE HS 1',
}
PRE_LOGITS = {'large': 1280, 'small': 1024}


def divisible(value):
  rounded = max(8, int(value + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * value else rounded


def conv_norm(inputs, outputs, kernel=1, stride=1, groups=1, activation=None):
  conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
  layers = [conv, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)]
  return nn.Sequential(*layers, *([activation()] if activation else []))


class SqueezeExcitation(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.fc1 = nn.Conv2d(channels, divisible(channels // 4), 1)
    self.fc2 = nn.Conv2d(divisible(channels // 4), channels, 1)

  def forward(self, x):
    y = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
    return x * nn.functional.hardsigmoid(y)


class Residual(nn.Module):
  def __init__(self, inputs, kernel, expanded, outputs, squeezes, activation, stride):
    super().__init__()
    kind = {'RE': nn.ReLU, 'HS': nn.Hardswish}[activation]
    layers = [conv_norm(inputs, expanded, activation=kind)] if expanded != inputs else []
    layers.append(conv_norm(expanded, expanded, kernel, stride, expanded, kind))
    layers += [SqueezeExcitation(expanded)] if squeezes == 'SE' else []
    self.block = nn.Sequential(*layers, conv_norm(expanded, outputs))
    self.adds = stride == 1 and inputs == outputs

  def forward(self, x):
    return self.block(x) + x if self.adds else self.block(x)


class TorchMobileNet(nn.Module):
  def __init__(self, size='small', width=0.5, num_classes=5):
    super().__init__()
    channels = divisible(16 * width)
    layers = [conv_norm(3, channels, 3, 2, activation=nn.Hardswish)]
    for row in ROWS[size].split(', '):
      kernel, expanded, outputs, squeezes, activation, stride = row.split()
      expanded, outputs = (divisible(int(n) * width) for n in (expanded, outputs))
      sizes = int(kernel), expanded, outputs, squeezes, activation, int(stride)
      layers.append(Residual(channels, *sizes))
      channels = outputs
    layers.append(conv_norm(channels, 6 * channels, activation=nn.Hardswish))
    self.features = nn.Sequential(*layers)
    last = divisible(PRE_LOGITS[size] * width)
    self.classifier = nn.Sequential(
      nn.Linear(6 * channels, last), nn.Hardswish(), nn.Dropout(0.0), nn.Linear(last, num_classes)
    )

  def forward(self, x):
    return self.classifier(self.features(x).mean((2, 3)))


def randomized(model):
  """The model with a value of its own for every parameter and running statistic."""
  generator = torch.Generator().manual_seed(0)

  def normal(tensor, deviation):
    tensor.copy_(deviation * torch.randn(tensor.shape, generator=generator))

  with torch.no_grad():
    for parameter in model.parameters():
      normal(parameter, 0.3 if parameter.ndim < 2 else 2 * parameter[0].numel() ** -0.5)
    for module in model.modules():
      if isinstance(module, nn.BatchNorm2d):
        module.weight += 1
        normal(module.running_mean, 0.3)
        module.running_var.copy_(0.5 + torch.rand(len(module.running_var), generator=generator))
  return model.eval()


def images_of(size):
  return np.random.default_rng(0).normal(size=(3, *size, 3)).astype(np.float32)


def to_torch(images):
  return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def theirs(model, images):
  with torch.inference_mode():
    return model(to_torch(images)).numpy()


@functools.cache
def compiled(model):
  return jax.jit(model.apply, compiler_options=QUICK)


def assert_same_logits(ours, expected):
  spread = np.ptp(expected, axis=0).max()
  assert spread > 0.01 * np.abs(expected).max()
  assert np.abs(ours - expected).max() <= 1e-4 * spread


@pytest.mark.parametrize('size', ['small', 'large'])
def test_logits_agree_both_ways(tmp_path, size):
  model = randomized(TorchMobileNet(size))
  torch.save(model.state_dict(), tmp_path / 'theirs.pth')
  assert weights.detect(tmp_path / 'theirs.pth') == 'torchvision'
  variables, config = weights.load(tmp_path / 'theirs.pth')
  found = config.name, config.backbone.width_multiplier, config.num_classes, config.image_size
  assert found == (f'mobilenet_v3_{size}', 0.5, 5, (224, 224))
  for shape in ((64, 64), (47, 65))[: 2 if size == 'small' else 1]:
    images = images_of(shape)
    expected = theirs(model, images)
    assert_same_logits(np.asarray(compiled(config.model)(variables, images)), expected)

  weights.save(variables, config, tmp_path / 'ours.pth', format='torchvision')
  back = TorchMobileNet(size)
  back.load_state_dict(torch.load(tmp_path / 'ours.pth'))
  assert_same_tensors(back, model)
  again, its_config = weights.load(tmp_path / 'ours.pth')
  assert_same(again, variables)
  assert its_config == config


def test_running_statistics_move_as_in_pytorch(tmp_path):
  model = randomized(TorchMobileNet())
  torch.save(model.state_dict(), tmp_path / 'm.pth')
  variables, config = weights.load(tmp_path / 'm.pth')
  images = images_of((48, 48))
  flax_model = config.replace(dropout_rate=0.0).model
  apply = functools.partial(flax_model.apply, train=True, mutable=['batch_stats'])
  logits, state = jax.jit(apply, compiler_options=QUICK)(variables, images)
  with torch.no_grad():
    expected = model.train()(to_torch(images)).numpy()
  assert_same_logits(np.asarray(logits), expected)
  moved = variables | state
  weights.save(moved, config, tmp_path / 'moved.safetensors', format='torchvision')
  found, _ = files.parse_safetensors((tmp_path / 'moved.safetensors').read_bytes())
  for name, buffer in model.named_buffers():
    if not name.endswith('num_batches_tracked'):
      np.testing.assert_allclose(found[name], buffer.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('size', ROWS)
def test_names_and_shapes_are_torchvision_s(tmp_path, size):
  torchvision = pytest.importorskip('torchvision', exc_type=ImportError)
  model = getattr(torchvision.models, f'mobilenet_v3_{size}')(width_mult=0.5, num_classes=5)
  torch.save(model.state_dict(), tmp_path / 'theirs.pth')
  variables, config = weights.load(tmp_path / 'theirs.pth')
  weights.save(variables, config, tmp_path / 'ours.pth', format='torchvision')
  statement = TorchMobileNet(size)
  statement.load_state_dict(torch.load(tmp_path / 'ours.pth'))
  assert_same_tensors(statement, model)
  images = images_of((47, 65))
  np.testing.assert_allclose(
    theirs(statement.eval(), images), theirs(model.eval(), images), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda t: t.pop('features.3.block.0.1.running_var'),
      r'missing +features\.3\.block\.0\.1\.run',
    ),
    (lambda t: t.update({'features.20.0.weight': torch.zeros(1)}), 'of 12 blocks is none of'),
    (lambda t: t.update({'classifier.0.bias': torch.zeros(520)}), 'tensors that do not fit'),
    (lambda t: t.update({'features.1.block.0.0.bias': torch.zeros(8)}), r'unexpected +features\.1'),
  ],
)
def test_tensors_that_do_not_fit(tmp_path, change, message):
  tensors = dict(TorchMobileNet().state_dict())
  change(tensors)
  torch.save(tensors, tmp_path / 'm.pth')
  with pytest.raises(UsageError, match=message):
    weights.load(tmp_path / 'm.pth')


def test_strides_of_small_images_have_no_place(tmp_path):
  torch.save(TorchMobileNet().state_dict(), tmp_path / 'm.pth')
  variables, config = weights.load(tmp_path / 'm.pth')
  config = config.replace(strides=(1, 1, 2, 2, 2))
  with pytest.raises(UsageError, match=r'strides \(1, 1, 2, 2, 2\) have no place there'):
    weights.save(variables, config, tmp_path / 'n.pth', format='torchvision')
  assert models.ModelConfig.from_dict(config.to_dict()) == config
