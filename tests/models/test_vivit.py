"""ViViT's four models against a float64 NumPy forward pass, and against each other."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import models
from vit_jax.errors import FieldError, UsageError
from vit_jax.models import ModelConfig
from vit_jax.models.hybrid import HybridViT
from vit_jax.models.token_learner import EncoderMod, EncoderModFuser
from vit_jax.models.vit import ViT
from vit_jax.models.vivit import (
  SpaceTimeViViT,
  TubeletEmbedding,
  ViViT,
  factorized_dot_product_attention,
  sample_frames,
)
from vit_jax.weights import adapt

WIDTH, HEADS, CLASSES = 8, 2, 3
TUBELETS = {'patches': {'size': (4, 2, 2)}, 'temporal_encoding_config': {'method': '3d_conv'}}
SAMPLED = {
  'patches': {'size': (4, 2)},
  'temporal_encoding_config': {'method': 'temporal_sampling', 'n_sampled_frames': 3},
}
COMMON = {'num_classes': CLASSES, 'hidden_size': WIDTH, 'dropout_rate': 0.0}
SIZES = {'mlp_dim': 12, 'num_layers': 2, 'num_heads': HEADS}
DOT_PRODUCT = {'type': 'factorized_dot_product_attention'}
SELF_ATTENTION = {'type': 'factorized_self_attention_block'}
SPACE_TIME = {**SELF_ATTENTION, 'attention_order': 'space_time'}
MODELS = ('1', '2', '3', '4')


def make(number, **changes):
  """The paper's model of this number, small."""
  if number == '2':
    sizes = {'spatial_mlp_dim': 12, 'spatial_num_layers': 2, 'spatial_num_heads': HEADS}
    sizes |= {'temporal_mlp_dim': 16, 'temporal_num_layers': 1, 'temporal_num_heads': 4}
    fields = COMMON | TUBELETS | sizes | {'attention_config': {'type': 'factorized_encoder'}}
    return SpaceTimeViViT(**fields | changes)
  attention = {'1': {'type': 'spacetime'}, '3': SELF_ATTENTION, '4': DOT_PRODUCT}[number]
  return ViViT(**COMMON | TUBELETS | SIZES | {'attention_config': attention} | changes)


def clips_of(*size, seed=0):
  return np.random.default_rng(seed).normal(size=(2, *size, 3)).astype(np.float32)


def random_variables(model, size=(4, 8, 4), channels=3, seed=1):
  rng = np.random.default_rng(seed)
  shapes = model.variable_shapes(size, channels)
  flat = {n: 0.4 * rng.normal(size=s).astype(np.float32) for n, s in sorted(shapes.items())}
  return models.unflatten(flat)


def run(model, variables, clips, **options):
  return np.asarray(jax.jit(functools.partial(model.apply, **options))(variables, clips))


def capture(model, variables, clips):
  """What explain asks a model about."""
  _, state = jax.jit(functools.partial(model.apply, mutable=['intermediates']))(variables, clips)
  sown = models.flatten(state)
  return models.unflatten(
    {n.removeprefix('intermediates/'): np.asarray(a) for n, (a,) in sown.items()}
  )['params']


# The same in NumPy, of one clip; p are parameters.


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def norm(x, p):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p['scale'] + p['bias']


def dense(x, p):
  return x @ p['kernel'] + p['bias']


def mlp(x, p):
  h = dense(x, p['Dense_0'])
  h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
  return dense(h, p['Dense_1'])


def attend(x, p, sees):
  """[N, D] to [N, D]; `sees(head)` is the matrix [N, N] of who sees whom."""
  out = np.tile(p['out']['bias'], (len(x), 1))
  for h in range(p['query']['kernel'].shape[1]):
    q, k, v = (x @ p[n]['kernel'][:, h] + p[n]['bias'][h] for n in ('query', 'key', 'value'))
    logits = np.where(sees(h), q @ k.T / math.sqrt(q.shape[-1]), -np.inf)
    out = out + softmax(logits) @ v @ p['out']['kernel'][h]
  return out


def encode(x, p, kind, frames, order='time_space'):
  """Tokens [N, D], frame by frame."""
  x = x + p['posembed_input']['pos_embedding'][0]
  frame, place = np.divmod(np.arange(len(x)), len(x) // frames)
  over = {'space': frame[:, None] == frame, 'time': place[:, None] == place}
  for i in range(sum(name.startswith('encoderblock') for name in p)):
    b = p[f'encoderblock_{i}']
    if kind == '3':
      for axis in order.split('_'):
        weights = b[f'MultiHeadDotProductAttention_{axis}']
        x = x + attend(norm(x, b[f'LayerNorm_{axis}']), weights, lambda h: over[axis])  # noqa: B023
      x = x + mlp(norm(x, b['LayerNorm_mlp']), b['MlpBlock'])
      continue
    sees = {'1': lambda h: True, '4': lambda h: over['time' if h < HEADS // 2 else 'space']}[kind]
    x = x + attend(norm(x, b['LayerNorm_0']), b['MultiHeadDotProductAttention_0'], sees)
    x = x + mlp(norm(x, b['LayerNorm_1']), b['MlpBlock_0'])
  return norm(x, p['encoder_norm'])


def read(x, cls, p, classifier, **options):
  """Encodes tokens, behind a class token if there is one, and pools them."""
  if classifier == 'token':
    x = np.concatenate([cls[0], x])
  x = encode(x, p, **options)
  return {'gap': x.mean(0), 'gmp': x.max(0), 'gsp': x.sum(0)}.get(classifier, x[0])


def expected_logits(clip, p, number, model):
  if model.tubelet_frames is None:  # scenic samples at T / (n + 1), 2 T / (n + 1), ...
    step = len(clip) / 4
    clip = clip[np.minimum(np.round(np.arange(step, len(clip), step)).astype(int), len(clip) - 1)]
  depth, (height, width) = model.tubelet_frames or 1, model.patch_size
  kernel = p['embedding']['kernel'].reshape(-1, WIDTH)
  tokens = np.array(
    [
      [
        clip[t : t + depth, r : r + height, c : c + width].ravel() @ kernel + p['embedding']['bias']
        for r in range(0, clip.shape[1], height)
        for c in range(0, clip.shape[2], width)
      ]
      for t in range(0, len(clip), depth)
    ]
  )  # [t, h * w, D]
  classifier = model.classifier
  if number == '2':
    cls, encoder = p.get('cls_SpatialTransformer'), p['SpatialTransformer']
    x = np.array([read(x, cls, encoder, classifier, kind='1', frames=1) for x in tokens])
    if model.is_spatial_only:
      x = x.mean(0)
    else:
      cls, encoder = p.get('cls_TemporalTransformer'), p['TemporalTransformer']
      x = read(x, cls, encoder, classifier, kind='1', frames=1)
  else:
    order = model.attention_config.get('attention_order', 'time_space')
    options = {'kind': number, 'frames': len(tokens), 'order': order}
    x = tokens.reshape(-1, WIDTH)
    x = read(x, p.get('cls'), p['Transformer'], classifier, **options)
  if 'pre_logits' in p:
    x = np.tanh(dense(x, p['pre_logits']))
  return dense(x, p['output_projection'])


@pytest.mark.parametrize(
  ('number', 'size', 'changes'),
  [
    ('1', (4, 8, 4), {'classifier': 'token'}),
    ('1', (8, 4, 6), {'classifier': '0', 'representation_size': 6}),
    ('1', (8, 8, 8), {'classifier': 'gmp', **SAMPLED}),
    ('2', (4, 8, 4), {'classifier': 'token'}),
    ('2', (6, 4, 6), {**SAMPLED, 'representation_size': 6}),
    ('2', (6, 4, 6), {'attention_config': {'spatial_only_baseline': True}, 'classifier': 'gsp'}),
    ('3', (4, 8, 4), {}),
    ('3', (7, 4, 6), {**SAMPLED, 'attention_config': SPACE_TIME}),
    ('4', (4, 8, 4), {'classifier': 'gmp'}),
    ('4', (8, 4, 6), {'num_heads': 4, 'hidden_size': 8}),
  ],
)  # fmt: skip
def test_logits_are_those_of_scenic_s_forward_pass(number, size, changes, monkeypatch):
  model = make(number, **changes)
  monkeypatch.setitem(globals(), 'HEADS', changes.get('num_heads', HEADS))
  clips, variables = clips_of(*size), random_variables(model, size)
  p = jax.tree.map(lambda a: a.astype(np.float64), variables['params'])
  expected = np.array([expected_logits(clip, p, number, model) for clip in clips])
  assert np.abs(expected[0] - expected[1]).max() > 1e-3
  np.testing.assert_allclose(run(model, variables, clips), expected, rtol=1e-5, atol=1e-5)


ATTENTION = {'query', 'key', 'value', 'out'}
BLOCKS = {
  '1': {'LayerNorm_0', 'MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0'},
  '3': {
    'LayerNorm_time', 'MultiHeadDotProductAttention_time', 'LayerNorm_space',
    'MultiHeadDotProductAttention_space', 'LayerNorm_mlp', 'MlpBlock',
  },
}  # fmt: skip


@pytest.mark.parametrize('number', MODELS)
def test_parameters_have_the_paths_of_scenic(number):
  """projects/vivit/model.py there."""
  classifier = 'token' if number in '12' else 'gap'
  model = make(number, classifier=classifier)
  params = jax.eval_shape(model.init, jax.random.key(0), clips_of(4, 8, 4))['params']
  encoders = ['Transformer'] if number != '2' else ['SpatialTransformer', 'TemporalTransformer']
  cls = {'1': {'cls'}, '2': {f'cls_{name}' for name in encoders}}.get(number, set())
  assert params.keys() == {'embedding', 'output_projection', *cls, *encoders}
  assert params['embedding']['kernel'].shape == (2, 4, 2, 3, WIDTH)
  for name, depth in zip(encoders, (2, 1), strict=False):
    encoder = params[name]
    blocks = {f'encoderblock_{i}' for i in range(depth)}
    assert encoder.keys() == {'posembed_input', 'encoder_norm', *blocks}
    for block in blocks:
      assert encoder[block].keys() == BLOCKS.get(number, BLOCKS['1'])
      for module, tree in encoder[block].items():
        assert not module.startswith('Multi') or tree.keys() == ATTENTION
  assert model.variable_shapes((4, 8, 4), 3) == {
    path: leaf.shape for path, leaf in models.flatten({'params': params}).items()
  }


@pytest.mark.parametrize(('frames', 'count'), [(32, 8), (31, 7), (10, 1), (5, 5), (3, 8), (12, 11)])
def test_sampled_frames_are_those_of_scenic(frames, count):
  step = frames / (count + 1) if count < frames else 1
  first = step if count < frames else 0
  indices = np.round(np.arange(first, frames, step)).astype(int)
  np.testing.assert_array_equal(
    sample_frames(frames, count), np.minimum(indices, frames - 1)[: max(count, frames)]
  )
  assert len(sample_frames(frames, count)) == min(frames, count)


def test_what_is_returned_before_the_logits():
  clips = clips_of(4, 8, 4)
  model = make('1', classifier='token', representation_size=6)
  variables = random_variables(model)
  tokens = run(model.clone(return_preclassifier=True), variables, clips)
  assert tokens.shape == (2, 1 + 2 * 2 * 2, WIDTH)
  before = run(model.clone(return_prelogits=True), variables, clips)
  p = variables['params']
  np.testing.assert_allclose(before, np.tanh(dense(tokens[:, 0], p['pre_logits'])), atol=1e-6)
  found = jax.jit(functools.partial(model.apply, method='features', layers=(1, 0)))(
    variables, clips
  )
  last, _ = map(np.asarray, found.layers)
  np.testing.assert_allclose(found.tokens, norm(last, p['Transformer']['encoder_norm']), atol=1e-4)
  np.testing.assert_allclose(found.pooled, before, atol=1e-6)
  with pytest.raises(UsageError, match='no tokens in common'):
    make('2').apply(random_variables(make('2')), clips, method='features', layers=(0,))


# The models against each other.

IMAGES = ViT(**COMMON, **SIZES, patches={'size': (4, 2)}, classifier='gap')

HYBRID = HybridViT(
  **COMMON, **SIZES, patches={'size': (1, 1)}, resnet={'num_layers': (1,), 'width_factor': 0.5}
)


def inflate(target, source=IMAGES, size=(4, 8, 4), image=(8, 4), seed=1):
  """Returns (the target's variables, the source's, notes); modules without are zeros."""
  of_images = ModelConfig(source, image_size=image)
  new = ModelConfig(target, image_size=size[1:], num_frames=size[0])
  variables = random_variables(source, image, seed=seed)
  fitted, notes = adapt.adapt(variables, of_images, new, 'w.npz', head='keep')
  shapes = target.variable_shapes(size, 3)
  zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  return models.unflatten(zeros | models.flatten(fitted)), variables, notes


def still(image, frames):
  return np.repeat(image[:, None], frames, axis=1)


CENTRAL = {'method': '3d_conv', 'kernel_init_method': 'central_frame_initializer'}
AVERAGE = {'method': '3d_conv', 'kernel_init_method': 'average_frame_initializer'}
ZERO = {**SELF_ATTENTION, 'attention_kernel_init_method': 'zero'}
ONLY = {'type': 'factorized_encoder', 'spatial_only_baseline': True}


@pytest.mark.parametrize(
  ('number', 'size', 'changes'),
  [
    ('1', (4, 8, 4), {'temporal_encoding_config': CENTRAL}),
    ('1', (5, 8, 4), SAMPLED),
    ('3', (4, 8, 4), {'temporal_encoding_config': AVERAGE, 'attention_config': ZERO}),
    ('2', (4, 8, 4), {'temporal_encoding_config': AVERAGE, 'attention_config': ONLY}),
  ],
)
def test_of_a_still_clip_an_inflated_image_model_gives_its_own_logits(number, size, changes):
  """Attention to copies of the tokens is attention to them, where none is a class token's."""
  model = make(number, **changes)
  variables, of_images, notes = inflate(model, size=size)
  image = clips_of(8, 4)
  logits = run(model, variables, still(image, size[0]))
  np.testing.assert_allclose(logits, run(IMAGES, of_images, image), rtol=1e-4, atol=1e-5)
  assert any('position embeddings' in note for note in notes) == (number != '2')


def test_without_attention_over_time_the_factorised_models_read_frames_one_by_one():
  """Model 3 whose attention over time adds nothing is model 2 whose frames are averaged."""
  three = make('3', temporal_encoding_config=CENTRAL, attention_config=ZERO)
  two = make('2', temporal_encoding_config=CENTRAL, attention_config=ONLY)
  clips = clips_of(4, 8, 4)
  logits = [run(model, inflate(model)[0], clips) for model in (three, two)]
  np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)
  one = make('1', temporal_encoding_config=CENTRAL)  # which attends to all frames
  assert np.abs(run(one, inflate(one)[0], clips) - logits[0]).max() > 1e-3


@pytest.mark.parametrize(('size', 'silent'), [((2, 8, 4), 0), ((4, 4, 2), 1)])
def test_factorised_dot_products_are_joint_ones_of_one_frame_and_of_one_place(size, silent):
  """But for the heads that attend along the other axis, which are silenced in both."""
  one, four = make('1'), make('4')
  variables = random_variables(one, size)
  for block in ('encoderblock_0', 'encoderblock_1'):
    out = variables['params']['Transformer'][block]['MultiHeadDotProductAttention_0']['out']
    out['kernel'][silent] = 0
  clips = clips_of(*size)
  logits = [run(model, variables, clips) for model in (one, four)]
  np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


def test_the_class_token_of_an_image_model_reads_each_frame():
  source = IMAGES.clone(classifier='token')
  model = make('2', classifier='token', temporal_encoding_config=CENTRAL, attention_config=ONLY)
  variables, of_images, _ = inflate(model, source)
  clips = clips_of(4, 8, 4)
  frames = np.stack([run(source, of_images, clips[:, i]) for i in (1, 3)])  # the central ones
  np.testing.assert_allclose(run(model, variables, clips), frames.mean(0), rtol=1e-4, atol=1e-5)


# Weights of other models.


@pytest.mark.parametrize('number', MODELS)
@pytest.mark.parametrize('source', ['image', 'token'])
def test_what_an_inflated_model_takes_from_images(number, source):
  source = IMAGES.clone(classifier='gap' if source == 'image' else 'token')
  model = make(number, temporal_encoding_config=AVERAGE, patches={'size': (4, 4, 2)})
  variables, of_images, notes = inflate(model, source, size=(6, 12, 8), image=(8, 4))
  new, old = models.flatten(variables), models.flatten(of_images)
  kernel = new['embedding/kernel']
  assert kernel.shape == (2, 4, 4, 3, WIDTH)
  np.testing.assert_array_equal(kernel[0], kernel[1])
  name = 'SpatialTransformer' if number == '2' else 'Transformer'
  positions = new[f'{name}/posembed_input/pos_embedding'].reshape(-1, 3, 2, WIDTH)
  assert len(positions) == (1 if number == '2' else 3)
  np.testing.assert_array_equal(positions, np.broadcast_to(positions[:1], positions.shape))
  corner = old['Transformer/posembed_input/pos_embedding'][0, int(source.has_class_token)]
  np.testing.assert_allclose(positions[0, 0, 0], corner, atol=1e-6)
  query = 'encoderblock_1/MultiHeadDotProductAttention_{}/query/kernel'
  theirs = old[f'Transformer/{query.format(0)}']
  for module in ('space', 'time') if number == '3' else (0,):
    np.testing.assert_array_equal(new[f'{name}/{query.format(module)}'], theirs)
  told = {
    '1': 'embedding: from 4x2x3 to 2x4x4x3',
    '2': 'TemporalTransformer: new',
    '3': 'attention over time: as over space at first',
    '4': 'attention: from spacetime to factorized_dot_product_attention',
  }
  assert told[number] in notes
  left_out = [n for n in notes if n.startswith('cls') and n.endswith('left out')]
  assert len(left_out) == source.has_class_token == any('position of' in note for note in notes)


@pytest.mark.parametrize('number', MODELS)
def test_weights_of_videos_fit_other_sizes(number):
  """Of a still clip, whatever its frames and its tubelets' are, the tokens are about the same."""
  classifier = 'token' if number in '12' else 'gap'
  old, new = make(number, classifier=classifier), make(number, patches={'size': (4, 2, 4)})
  sizes = (4, 8, 4), (12, 8, 6)
  configs = [
    ModelConfig(model, image_size=size[1:], num_frames=size[0])
    for model, size in zip((old, new), sizes, strict=True)
  ]
  variables = random_variables(old, sizes[0])
  fitted, notes = adapt.adapt(variables, *configs, 'w.npz', head='keep')
  shapes = {name: leaf.shape for name, leaf in models.flatten(fitted).items()}
  assert shapes == new.variable_shapes(sizes[1], 3)
  embed = [v['params']['embedding']['kernel'].sum(0) for v in (variables, fitted)]
  np.testing.assert_allclose(*embed, rtol=1e-5, atol=1e-5)  # a still tubelet's tokens
  for name in new.position_axes:
    before, after = (models.flatten(v)[name] for v in (variables, fitted))
    first = int(old.has_class_token)
    np.testing.assert_allclose(before[0, first], after[0, 0], atol=1e-6)
    np.testing.assert_allclose(before[0, -1], after[0, -1], atol=1e-6)
  assert 'embedding: from 2x4x2x3 to 4x4x2x3' in notes
  assert any('left out' in note for note in notes) == old.has_class_token


@pytest.mark.parametrize(('kernel', 'expected'), [([0, 1], [1]), ([0, 0, 1, 0], [0, 1])])
def test_of_fewer_frames_a_kernel_computes_the_same_of_a_still_clip(kernel, expected):
  old, new = (make('1', patches={'size': (4, 2, len(part))}) for part in (kernel, expected))
  configs = [ModelConfig(model, image_size=(8, 4), num_frames=4) for model in (old, new)]
  variables = random_variables(old)
  first = variables['params']['embedding']['kernel'][0]
  variables['params']['embedding']['kernel'] = np.stack([share * first for share in kernel])
  fitted, _ = adapt.adapt(variables, *configs, 'w.npz', head='keep')
  found = fitted['params']['embedding']['kernel']
  np.testing.assert_allclose(found, [share * first for share in expected], atol=1e-6)


def test_tubelets_weights_for_frames_are_those_of_still_ones():
  model = make('1', **SAMPLED)
  configs = [ModelConfig(m, image_size=(8, 4), num_frames=4) for m in (make('1'), model)]
  variables = random_variables(configs[0].model)
  fitted, _ = adapt.adapt(variables, *configs, 'w.npz', head='keep')
  kernel = variables['params']['embedding']['kernel'].sum(0)
  np.testing.assert_allclose(fitted['params']['embedding']['kernel'], kernel, rtol=1e-6)


@pytest.mark.parametrize(
  ('target', 'source', 'message'),
  [
    (make('1'), IMAGES, r'kernel_init_method: None does not say'),
    (make('1'), make('3'), r"attention_config.type: 'spacetime', but the weights"),
    (
      make('3'),
      make('3', attention_config=SPACE_TIME),
      r"attention_order: 'time_space', but the weights are for 'space_time'",
    ),
    (make('1'), make('2'), r"name: 'vivit', but w.npz has weights of a 'space_time_vivit'"),
    (make('2'), HYBRID, r"name: 'space_time_vivit', but w.npz has weights of a 'hybrid'"),
    (make('1'), IMAGES.clone(stride=(2, 2)), r'w.npz: overlapping patches'),
    (
      make('1', temporal_encoding_config=CENTRAL),
      IMAGES.clone(positional_embedding='none'),
      r'missing.*pos_embedding',
    ),
  ],
)
def test_weights_that_do_not_fit_are_refused(target, source, message):
  size = {'video': {'image_size': (8, 4), 'num_frames': 4}, 'image': {'image_size': (8, 4)}}
  configs = [ModelConfig(m, **size[m.INPUT]) for m in (source, target)]
  variables = models.unflatten(
    {name: np.zeros(shape, np.float32) for name, shape in configs[0].variable_shapes().items()}
  )
  with pytest.raises(UsageError, match=message):
    adapt.adapt(variables, *configs, 'w.npz')


def test_open_fields_come_from_weights_of_images():
  opened = models.open_config().to_dict()
  theirs = models.default_config('vit').to_dict()
  for name, prefix in (('vivit', ''), ('space_time_vivit', 'spatial_')):
    kind = models.backbone(name)
    fields = {n: opened[n] for n in make('1' if not prefix else '2').config()}
    completed = kind.complete(fields, theirs)
    assert completed['patches'] == {'size': (16, 16, 2)}
    assert completed[f'{prefix}num_heads'] == theirs['num_heads']
    default = models.default_config(name).to_dict()
    for field in ('temporal_encoding_config', 'tokenizer'):
      assert completed[field] == default[field]


# Training.


def test_kernels_begin_as_their_config_says():
  clips = clips_of(6, 4, 2)
  for method, seen in (
    ('central_frame_initializer', [1]),
    ('average_frame_initializer', [0, 1, 2]),
    ('lecun_normal', [0, 1, 2]),
  ):
    encoding = {'method': '3d_conv', 'kernel_init_method': method}
    model = make('1', patches={'size': (4, 2, 3)}, temporal_encoding_config=encoding)
    init = jax.jit(lambda: model.init(jax.random.key(0), clips)['params']['embedding'])  # noqa: B023
    kernel = np.asarray(init()['kernel'])
    assert [i for i, frame in enumerate(kernel) if frame.any()] == seen
    alike = all((kernel[i] == kernel[seen[0]]).all() for i in seen)
    assert alike == (method != 'lecun_normal')
    assert 0.5 < kernel[seen].std() * math.sqrt(3 * 4 * 2 * 3) < 2  # lecun_normal's


def test_attention_that_begins_at_zero_learns():
  model, clips = make('3', attention_config=ZERO, num_layers=1), clips_of(4, 8, 4)
  params = jax.jit(model.init)(jax.random.key(0), clips)['params']
  params['output_projection']['kernel'] = jnp.ones((WIDTH, CLASSES)).at[:4].set(-1)
  grad = jax.jit(jax.grad(lambda p: (model.apply({'params': p}, clips) ** 2).sum()))
  block, gradient = (p['Transformer']['encoderblock_0'] for p in (params, grad(params)))
  for axis in ('time', 'space'):
    name = f'MultiHeadDotProductAttention_{axis}'
    assert not block[name]['out']['kernel'].any()
    assert np.abs(gradient[name]['out']['kernel']).max() > 1e-6


@pytest.mark.parametrize('number', MODELS)
def test_bfloat16_and_remat(number):
  clips, model = clips_of(4, 8, 4), make(number)
  variables = random_variables(model)
  logits = run(model, variables, clips)
  half = run(model.clone(dtype=jnp.bfloat16, remat=True), variables, clips)
  assert half.dtype == np.float32
  np.testing.assert_allclose(half, logits, atol=0.1)
  assert np.abs(half - logits).max() > 1e-5
  features = model.clone(dtype=jnp.bfloat16, num_classes=0)
  assert jax.eval_shape(features.apply, variables, clips).dtype == jnp.bfloat16


@pytest.mark.parametrize('number', MODELS)
def test_scanned_layers_compute_the_same(number):
  clips, model = clips_of(4, 8, 4), make(number)
  variables = random_variables(model)
  scanned = model.clone(scan=True)
  traced = str(jax.make_jaxpr(scanned.apply)(variables, clips))
  assert traced.count('= scan[') == len(model.encoders)
  np.testing.assert_allclose(
    run(scanned, variables, clips), run(model, variables, clips), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(
  ('number', 'field'),
  [('3', 'stochastic_droplayer_rate'), ('4', 'attention_dropout_rate')],
)
def test_noise_is_of_training_alone(number, field):
  clips = clips_of(4, 8, 4)
  model = make(number, attention_dropout_rate=0.0)
  variables = random_variables(model)
  logits, rngs = run(model, variables, clips), {'dropout': jax.random.key(0)}
  np.testing.assert_array_equal(run(model, variables, clips, train=True, rngs=rngs), logits)
  noisy = run(model.clone(**{field: 0.5}), variables, clips, train=True, rngs=rngs)
  assert np.abs(noisy - logits).max() > 1e-3


# TokenLearner.

LEARNS = {'type': 'video', 'num_tokens': 2}


@pytest.mark.parametrize(
  ('use_v11', 'use_tokenfuse', 'tokens'), [(True, False, 6), (False, True, 18)]
)
def test_a_tokenizer_of_videos_is_scenic_s(use_v11, use_tokenfuse, tokens):
  """projects/token_learner/model.py there: the same encoder after the same embedding."""
  tokenizer = LEARNS | {'use_v11': use_v11, 'use_tokenfuse': use_tokenfuse}
  model, clips = make('1', tokenizer=tokenizer), clips_of(6, 8, 6)
  variables = random_variables(model, (6, 8, 6))
  p = variables['params']
  assert p.keys() == {'embedding', 'Transformer', 'output_projection'}
  encoder = (EncoderModFuser if use_tokenfuse else EncoderMod)(
    **SIZES, tokenizer_type='video', num_tokens=2, tokenlearner_loc=1, use_v11=use_v11,
    temporal_dimensions=3, grid=(2, 3),
  )  # fmt: skip
  embedding = TubeletEmbedding(WIDTH, (4, 2), 2)
  x = embedding.apply({'params': p['embedding']}, clips).reshape(2, 18, WIDTH)
  expected = run(encoder, {'params': p['Transformer']}, x)
  assert expected.shape == (2, tokens, WIDTH)
  found = run(model.clone(return_preclassifier=True), variables, clips)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('number', ['2', '3', '4'])
def test_every_model_takes_the_tokenizer(number):
  """And draws what it learns of the middle frame."""
  model = make(number, tokenizer=LEARNS)
  clips, variables = clips_of(6, 8, 6), random_variables(model, (6, 8, 6))
  found = capture(model, variables, clips)
  (maps,) = model.token_maps(found, (8, 6))
  assert maps.maps.shape == (2, 2, 2, 3)
  np.testing.assert_allclose(maps.maps.sum((2, 3)), 1, rtol=1e-5)
  encoder = next(iter(model.encoders))
  every = found[encoder]['TokenLearnerModuleV11_0']['token_maps'].reshape(2, 3, 2, 2, 3)
  np.testing.assert_array_equal(maps.maps, every[:, 1])
  assert maps.source == 'TokenLearner before layer 1, in the middle frame'
  assert model.attention_maps(found, (8, 6)) is None
  assert make(number).token_maps(found, (8, 6)) == []


# What there is to see.


@pytest.mark.parametrize(
  ('number', 'classifier'),
  [('1', 'token'), ('1', 'gap'), ('2', 'token'), ('3', 'gap'), ('4', 'gap')],
)
def test_attention_is_drawn_on_the_middle_frame(number, classifier):
  model = make(number, classifier=classifier)
  clips, variables = clips_of(6, 8, 6), random_variables(model, (6, 8, 6))
  found = capture(model, variables, clips)
  maps = model.attention_maps(found, (8, 6), 0)
  assert maps.maps.shape == (2, 1 if number == '4' else HEADS, 2, 3)
  assert 'layer 0 (0 to 1), to the middle frame' in maps.source
  block = found[next(iter(model.encoders))]['encoderblock_0']
  weights = {
    '3': lambda: block['MultiHeadDotProductAttention_space']['attention_weights'],
    '4': lambda: block['MultiHeadDotProductAttention_0']['attention_weights_space'],
  }.get(number, lambda: block['MultiHeadDotProductAttention_0']['attention_weights'])()
  clip = 1  # the second; frame 1 of its 3
  expected = {
    ('1', 'token'): lambda: weights[clip, :, 0, 1 + 6 : 1 + 12],
    ('1', 'gap'): lambda: weights[clip, :, :, 6:12].mean(1),
    ('2', 'token'): lambda: weights[3 * clip + 1, :, 0, 1:],
    ('3', 'gap'): lambda: weights[3 * clip + 1].mean(1),
    ('4', 'gap'): lambda: weights[clip, 1].mean(1),
  }[number, classifier]()
  np.testing.assert_allclose(maps.maps[clip].reshape(-1, 6), expected, rtol=1e-5)


def test_filters_and_positions_of_the_middle_frame():
  for number, kind in (('1', 'learned, those of the middle frame'), ('2', 'learned')):
    model = make(number, classifier='token')
    params = random_variables(model, (6, 8, 6))['params']
    kernel = model.patch_kernel(params)
    assert kernel.shape == (4, 4, 3, WIDTH)
    np.testing.assert_array_equal(kernel[:, 2:], params['embedding']['kernel'][1])
    found = model.positions(params, (8, 6))
    assert (found.kind, found.embeddings.shape) == (kind, (2, 3, WIDTH))
    encoder = params[next(iter(model.encoders))]['posembed_input']['pos_embedding'][0, 1:]
    middle = encoder[6:12] if number == '1' else encoder
    np.testing.assert_array_equal(found.embeddings.reshape(6, WIDTH), middle)
  assert (
    make('1', **SAMPLED).patch_kernel({'embedding': {'kernel': np.ones((4, 2, 3, 8))}}).ndim == 4
  )


# As published.

BASE = {'mlp_dim': 3072, 'num_heads': 12}


@pytest.mark.parametrize(
  ('number', 'parameters', 'flops'),
  [('1', 88.9, 455.2), ('2', 115.1, 284.4), ('3', 117.3, 372.3), ('4', 88.9, 277.1)],
)
def test_vivit_b_is_as_large_as_published(number, parameters, flops):
  """ViViT-B/16x2 on 32 frames of 224 x 224: table 2 of the paper, in millions and billions.

  The paper's FLOPs are multiply-adds, as XLA counts them. All layers are alike, and tracing twelve
  takes seconds: what one more adds is counted. Of 88.95 million parameters it prints 88.9.
  """
  size = (32, 224, 224)
  fields = {'num_classes': 400, 'hidden_size': 768, 'patches': {'size': (16, 16, 2)}}

  def measure(depth, temporal=1):
    if number == '2':
      depths = {'spatial': depth, 'temporal': temporal}
      sizes = {f'{part}_num_layers': depth for part, depth in depths.items()}
      sizes |= {f'{part}_{name}': value for part in depths for name, value in BASE.items()}
    else:
      sizes = {**BASE, 'num_layers': depth}
    model = make(number, **fields, **sizes, classifier='token' if number in '12' else 'gap')
    shapes = model.variable_shapes(size, 3)
    count = sum(map(math.prod, shapes.values()))
    params = models.unflatten({n: jax.ShapeDtypeStruct(s, np.float32) for n, s in shapes.items()})
    clip = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    return np.array([count, jax.jit(model.apply).lower(params, clip).cost_analysis()['flops'] / 2])

  first = measure(1)
  total = first + 11 * (measure(2) - first)
  if number == '2':
    total += 3 * (measure(1, 2) - first)
  assert total[0] / 1e6 == pytest.approx(parameters, abs=0.06)
  assert total[1] / 1e9 == pytest.approx(flops, abs=0.05)


@pytest.mark.parametrize(
  ('number', 'changes', 'message'),
  [
    ('1', {'classifier': 'map'}, r"classifier: 'map' is not one of token"),
    ('1', {'activation': 'selu'}, r"activation: 'selu'"),
    ('3', {'classifier': 'token'}, r"classifier: 'token', but .* has no class token"),
    ('4', {'num_heads': 1}, 'num_heads: 1 heads are not half for time'),
    ('1', {'num_heads': 3}, 'num_heads: 3 heads do not divide hidden_size=8'),
    ('2', {'temporal_num_heads': 3}, 'temporal_num_heads: 3 heads do not divide'),
    ('2', {'spatial_num_layers': 0}, 'spatial_num_layers: 0 is not a whole number from 1 to'),
    ('1', {'hidden_size': 0}, 'hidden_size: 0 is not a whole number'),
    ('1', {'representation_size': 0}, 'representation_size: 0 is not a whole number'),
    ('1', {'posemb_init_stddev': -1.0}, 'posemb_init_stddev: -1.0 is not a number from 0 on'),
    ('1', {'dropout_rate': 1.0}, r'dropout_rate: 1.0 is not a number from 0 to below 1'),
    ('1', {'patches': {'size': (4, 2)}}, r'patches.size: \(4, 2\) is not .height, width, frames\)'),
    ('1', {**SAMPLED, 'patches': {'size': (4, 2, 2)}}, r'patches.size: .* not \(height, width\)'),
    ('1', {'temporal_encoding_config': {'method': 'conv'}}, r"encoding_config.method: 'conv'"),
    ('1', {'temporal_encoding_config': {**AVERAGE, 'frames': 3}}, r'encoding_config.frames: 3'),
    (
      '1',
      {'temporal_encoding_config': {**AVERAGE, 'kernel_init_method': 'average'}},
      r"kernel_init_method: 'average' is not one of",
    ),
    (
      '1',
      {**SAMPLED, 'temporal_encoding_config': {'method': 'temporal_sampling'}},
      'n_sampled_frames: None is not a number',
    ),
    ('1', {'attention_config': {'type': 'factorized_encoder'}}, r"attention_config.type: 'fact"),
    ('2', {'attention_config': {'type': 'spacetime'}}, r"attention_config.type: 'spacetime'"),
    ('1', {'attention_config': ONLY | {'type': 'spacetime'}}, 'spatial_only_baseline: True'),
    ('3', {'attention_config': {'attention_order': 'space'}}, "attention_order: 'space'"),
    ('1', {'tokenizer': {'type': 'dynamic'}}, "tokenizer.type: 'dynamic' is not one of patch, v"),
    ('2', {'tokenizer': {'type': 'video'}}, 'tokenizer.num_tokens: not set'),
    ('1', {'tokenizer': LEARNS | {'tokenlearner_loc': 2}}, 'tokenlearner_loc: 2 is not a layer'),
  ],
)  # fmt: skip
def test_mistakes_name_their_field(number, changes, message):
  with pytest.raises(FieldError, match=message):
    make(number, **changes)


def test_clips_that_tubelets_do_not_tile_are_refused():
  model = make('1')
  for size in ((3, 8, 4), (4, 6, 4)):
    with pytest.raises(FieldError, match=r'patches.size: 2x4x2 \(frames, height, width\) does not'):
      model.init(jax.random.key(0), clips_of(*size))
  with pytest.raises(ValueError, match='neither bias nor mask'):
    factorized_dot_product_attention(*[jnp.ones((1, 4, 2, 2))] * 3, frames=2, mask=True)
