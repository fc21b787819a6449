"""ResNets compute what torchvision's do, restated here in PyTorch, and what transformers' do."""

import functools
import json

import jax
import numpy as np
import optax
import pytest
from small_vits import assert_same, assert_same_tensors

from vit_jax import models, weights
from vit_jax.errors import UsageError
from vit_jax.weights import files

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

BLOCKS = {
  'resnet18': (2, 2, 2, 2),
  'resnet34': (3, 4, 6, 3),
  'resnet50': (3, 4, 6, 3),
  'resnet101': (3, 4, 23, 3),
  'resnet152': (3, 8, 36, 3),
}
QUICK = {'xla_backend_optimization_level': 0}  # to compile, which is all the time that it takes


class Block(torch.nn.Module):
  """torchvision's BasicBlock."""

  def __init__(self, inputs, outputs, stride):
    super().__init__()
    self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    self.bn1 = torch.nn.BatchNorm2d(outputs)
    self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, 1, padding=1, bias=False)
    self.bn2 = torch.nn.BatchNorm2d(outputs)
    self.downsample = None
    if stride != 1 or inputs != outputs:
      self.downsample = torch.nn.Sequential(
        torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False), torch.nn.BatchNorm2d(outputs)
      )

  def forward(self, x):
    shortcut = x if self.downsample is None else self.downsample(x)
    y = torch.relu(self.bn1(self.conv1(x)))
    return torch.relu(self.bn2(self.conv2(y)) + shortcut)


class Bottleneck(torch.nn.Module):
  """torchvision's Bottleneck."""

  def __init__(self, inputs, width, stride):
    super().__init__()
    outputs = 4 * width
    self.conv1 = torch.nn.Conv2d(inputs, width, 1, bias=False)
    self.bn1 = torch.nn.BatchNorm2d(width)
    self.conv2 = torch.nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
    self.bn2 = torch.nn.BatchNorm2d(width)
    self.conv3 = torch.nn.Conv2d(width, outputs, 1, bias=False)
    self.bn3 = torch.nn.BatchNorm2d(outputs)
    self.downsample = None
    if stride != 1 or inputs != outputs:
      self.downsample = torch.nn.Sequential(
        torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False), torch.nn.BatchNorm2d(outputs)
      )

  def forward(self, x):
    shortcut = x if self.downsample is None else self.downsample(x)
    y = torch.relu(self.bn1(self.conv1(x)))
    y = torch.relu(self.bn2(self.conv2(y)))
    return torch.relu(self.bn3(self.conv3(y)) + shortcut)


class TorchResNet(torch.nn.Module):
  """torchvision's ResNet of such blocks; torchvision's width is 64."""

  def __init__(self, name='resnet18', width=8, num_classes=5, channels=3):
    super().__init__()
    self.conv1 = torch.nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
    self.bn1 = torch.nn.BatchNorm2d(width)
    self.maxpool = torch.nn.MaxPool2d(3, 2, padding=1)
    inputs, kind, expansion = width, Block, 1
    if name not in ('resnet18', 'resnet34'):
      kind, expansion = Bottleneck, 4
    for i, depth in enumerate(BLOCKS[name]):
      blocks = []
      for j in range(depth):
        blocks.append(kind(inputs, width * 2**i, 2 if i > 0 and j == 0 else 1))
        inputs = expansion * width * 2**i
      setattr(self, f'layer{i + 1}', torch.nn.Sequential(*blocks))
    self.fc = torch.nn.Linear(inputs, num_classes)
    for module in self.modules():
      if isinstance(module, torch.nn.Conv2d):
        torch.nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

  def forward(self, x):
    x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
    for i in range(1, 5):
      x = getattr(self, f'layer{i}')(x)
    return self.fc(x.mean(dim=(2, 3)))


@pytest.fixture(autouse=True)
def _seed():
  torch.manual_seed(0)


def randomised(model):
  """The model with every parameter and running statistic off its initial value."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
      if name.endswith('running_mean'):
        buffer += 0.1 * torch.randn(buffer.shape, generator=generator)
      elif name.endswith('running_var'):
        buffer += torch.rand(buffer.shape, generator=generator)
  return model


def make_images(*shape):
  """Noise, stronger from one image to the next."""
  rng = np.random.default_rng(0)
  return (rng.normal(size=shape) * np.arange(1, 1 + shape[0])[:, None, None, None]).astype(
    np.float32
  )


def to_torch(images):
  return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def theirs(model, images):
  with torch.no_grad():
    return model.eval()(to_torch(images)).numpy()


@functools.cache
def compiled(name, num_filters, num_classes):
  model = models.backbone(name)(num_classes=num_classes, num_filters=num_filters)
  return jax.jit(functools.partial(model.apply, train=False), compiler_options=QUICK)


def ours(variables, config, images):
  apply = compiled(config.name, config.backbone.num_filters, config.num_classes)
  return np.asarray(apply(variables, images))


def assert_close(found, expected):
  tolerance = 1e-4 * np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


# 47 and 33: where torch's padding differs from TensorFlow's 'SAME' in other ways than at 64.
@pytest.mark.parametrize('shape', [(2, 64, 64, 3), (3, 47, 33, 3)], ids=['even', 'odd'])
@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_logits_agree_both_ways(tmp_path, name, shape):
  model = randomised(TorchResNet(name))
  torch.save(model.state_dict(), tmp_path / 'theirs.pth')
  variables, config = weights.load(tmp_path / 'theirs.pth')
  assert (config.name, config.backbone.num_filters, config.num_classes) == (name, 8, 5)
  images = make_images(*shape)
  expected = theirs(model, images)
  assert np.ptp(expected, axis=0).max() > 0.1
  assert_close(ours(variables, config, images), expected)

  weights.save(variables, config, tmp_path / 'ours.pth', format='torchvision')
  back = TorchResNet(name)
  back.load_state_dict(torch.load(tmp_path / 'ours.pth'))
  assert_same_tensors(back, model)
  # How PyTorch rounds depends on where in memory the tensors lie.
  tolerance = 1e-6 * np.abs(expected).max()
  np.testing.assert_allclose(theirs(back, images), expected, rtol=0, atol=tolerance)


def test_a_training_step_agrees(tmp_path):
  """Outputs, gradients, running statistics: the variances that are averaged are unbiased."""
  model, path = randomised(TorchResNet()), tmp_path / 'm.pth'
  torch.save(model.state_dict(), path)
  variables, config = weights.load(path)
  images, labels = make_images(4, 64, 64, 3), np.array([0, 3, 1, 4])

  logits = model.train()(to_torch(images))
  torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()

  flax_model = models.backbone('resnet18')(num_classes=5, num_filters=8)

  def loss(params, batch_stats):
    outputs, state = flax_model.apply(
      {'params': params, 'batch_stats': batch_stats}, images, train=True, mutable=['batch_stats']
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return losses.mean(), (outputs, state['batch_stats'])

  grad_fn = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)
  grads, (outputs, batch_stats) = grad_fn(variables['params'], variables['batch_stats'])
  np.testing.assert_allclose(outputs, logits.detach().numpy(), rtol=0, atol=1e-4)

  found = {'params': grads, 'batch_stats': batch_stats}
  weights.save(found, config, tmp_path / 'step.safetensors', format='torchvision')
  found, _ = files.parse_safetensors((tmp_path / 'step.safetensors').read_bytes())
  for name, parameter in model.named_parameters():
    expected = parameter.grad.numpy()
    error = np.abs(found[name] - expected).max() / np.abs(expected).max()
    assert error < 1e-3, f'{name}: {error}'
  moved = dict(model.named_buffers())
  for name in moved:
    if not name.endswith('num_batches_tracked'):
      np.testing.assert_allclose(found[name], moved[name].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', BLOCKS)
def test_names_and_shapes_are_torchvision_s(tmp_path, name):
  with torch.device('meta'):
    expected = TorchResNet(name, width=16, num_classes=1000).state_dict()
  zeros = {n: np.zeros(t.shape, str(t.dtype).removeprefix('torch.')) for n, t in expected.items()}
  (tmp_path / 'theirs.safetensors').write_bytes(files.format_safetensors(zeros))
  variables, config = weights.load(tmp_path / 'theirs.safetensors')
  assert (config.name, config.backbone.num_filters) == (name, 16)
  weights.save(variables, config, tmp_path / 'ours.safetensors', format='torchvision')
  found, _ = files.parse_safetensors((tmp_path / 'ours.safetensors').read_bytes())
  assert {n: (a.shape, a.dtype) for n, a in found.items()} == {
    n: (a.shape, a.dtype) for n, a in zeros.items()
  }


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('around', [None, 'state_dict', 'model'])
def test_all_that_torch_saves_is_known_by_its_content(tmp_path, zipped, around):
  """Old files of torchvision's aren't zipped; its training script saves more than the model."""
  state = randomised(TorchResNet()).state_dict()
  path = tmp_path / 'm.pth'
  content = {around: state, 'epoch': 3} if around else state
  torch.save(content, path, _use_new_zipfile_serialization=zipped)
  assert weights.detect(path) == 'torchvision'
  variables, _ = weights.load(path)
  torch.save(state, tmp_path / 'plain.pt')
  assert_same(variables, weights.load(tmp_path / 'plain.pt')[0])


def test_a_file_for_pytorch_says_all_that_a_run_does(tmp_path):
  torch.save(randomised(TorchResNet(channels=1)).state_dict(), tmp_path / 'm.pth')
  variables, config = weights.load(tmp_path / 'm.pth')
  config = config.replace(
    image_size=(48, 32),
    class_names=('cat', 'dög', 'cat', 'd', 'e'),
    preprocess=models.Preprocessing(mean=(0.4567,), std=(0.3,)),
  )
  weights.save(variables, config, tmp_path / 'again.pth', format='torchvision')
  loaded, its_config = weights.load(tmp_path / 'again.pth')
  assert its_config == config
  assert_same(loaded, variables)
  for name, tensor in torch.load(tmp_path / 'again.pth').items():
    is_counter = name.endswith('num_batches_tracked')
    assert tensor.dtype == (torch.int64 if is_counter else torch.float32)
    assert tensor.shape == TorchResNet(channels=1).state_dict()[name].shape


def hugging_face(name, **changes):
  """transformers' ResNet of the same sizes as `TorchResNet(name)`."""
  bottleneck = name != 'resnet18'
  sizes = {
    'embedding_size': 8,
    'hidden_sizes': [(32 if bottleneck else 8) * 2**stage for stage in range(4)],
    'depths': list(BLOCKS[name]),
    'layer_type': 'bottleneck' if bottleneck else 'basic',
    'num_labels': 5,
  }
  return randomised(
    transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes | changes))
  )


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_hugging_face_agrees_and_takes_it_back(tmp_path, name):
  model = hugging_face(name)
  model.save_pretrained(tmp_path / 'theirs')
  variables, config = weights.load(tmp_path / 'theirs')
  assert (config.name, config.num_classes, config.image_size) == (name, 5, (224, 224))
  for shape in ((2, 64, 64, 3), (3, 47, 33, 3)):
    images = make_images(*shape)
    with torch.no_grad():
      expected = model.eval()(to_torch(images)).logits.numpy()
    assert np.ptp(expected, axis=0).max() > 0.1
    assert_close(ours(variables, config, images), expected)

  preprocess = models.Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
  config = config.replace(image_size=(64, 48), preprocess=preprocess)
  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  back = type(model).from_pretrained(tmp_path / 'ours')
  assert_same_tensors(back, model)
  again, its_config = weights.load(tmp_path / 'ours')
  assert_same(again, variables)
  assert its_config == config
  bare = config.replace(image_size=None)
  with pytest.raises(UsageError, match='image_size is needed there'):
    weights.save(variables, bare, tmp_path / 'no', format='huggingface')


def test_a_hugging_face_model_without_a_head(tmp_path):
  hugging_face('resnet18').resnet.save_pretrained(tmp_path / 'theirs')
  variables, config = weights.load(tmp_path / 'theirs')
  assert config.num_classes == 0
  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  transformers.ResNetModel.from_pretrained(tmp_path / 'ours')
  assert_same(weights.load(tmp_path / 'ours')[0], variables)


@pytest.mark.parametrize(
  'entry',
  [
    {'downsample_in_bottleneck': True},
    {'downsample_in_first_stage': True},
    {'hidden_act': 'gelu'},
    {'layer_type': 'bottleneck'},
    {'depths': None},
    {'num_channels': 4},
  ],
)
def test_a_config_json_of_another_resnet_is_refused(tmp_path, entry):
  hugging_face('resnet18').save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | entry))
  with pytest.raises(UsageError, match=rf'config\.json: {next(iter(entry))} is '):
    weights.load(tmp_path)


def save_as_timm(folder, architecture='resnet50.a1_in1k', **more):
  """As on the hub: config.json, and a state dict, which is torchvision's."""
  model = randomised(TorchResNet('resnet50'))
  cfg = {'input_size': [3, 64, 48], 'mean': [0.4], 'std': [0.3], 'crop_pct': 0.95}
  made_with = {'num_classes': 5, 'in_chans': 3, 'global_pool': 'avg'}
  config = {'architecture': architecture, 'model_args': made_with, 'pretrained_cfg': cfg, **more}
  (folder / 'config.json').write_text(json.dumps(config))
  torch.save(model.state_dict(), folder / 'pytorch_model.bin')
  torch.save(model.state_dict(), folder.parent / 'plain.pth')


def test_timm_s_folders_say_what_is_done_to_images(tmp_path):
  (tmp_path / 'timm').mkdir()
  save_as_timm(tmp_path / 'timm')
  assert weights.detect(tmp_path / 'timm') == 'timm'
  variables, config = weights.load(tmp_path / 'timm')
  assert (config.name, config.image_size) == ('resnet50', (64, 48))
  assert config.preprocess == models.Preprocessing(
    (0.4,), (0.3,), 'central', 0.95, rounding='nearest'
  )
  assert_same(variables, weights.load(tmp_path / 'plain.pth')[0])
  weights.save(variables, config, tmp_path / 'ours.pth', format='timm')
  TorchResNet('resnet50').load_state_dict(torch.load(tmp_path / 'ours.pth')['state_dict'])
  again, its_config = weights.load(tmp_path / 'ours.pth')
  assert_same(again, variables)
  assert its_config == config


@pytest.mark.parametrize(
  ('entry', 'message'),
  [
    ({'architecture': 'resnetblur50'}, "architecture: 'resnetblur50' is not one of resnet18, "),
    ({'model_args': {'act_layer': 'silu'}}, 'model_args act_layer are not read'),
    ({'model_args': {'global_pool': 'max'}}, "global_pool: 'max' is not one of avg"),
    ({'model_args': {}, 'global_pool': 'max'}, "global_pool: 'max' is not one of avg"),
  ],
)
def test_other_models_with_these_tensors_are_refused(tmp_path, entry, message):
  (tmp_path / 'timm').mkdir()
  save_as_timm(tmp_path / 'timm', **entry)
  with pytest.raises(UsageError, match=message):
    weights.load(tmp_path / 'timm')
