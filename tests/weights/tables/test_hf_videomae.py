"""transformers' VideoMAE computes the same here, and takes it back."""

import numpy as np
import pytest
from small_vits import assert_same_tensors, logits

from vit_jax import weights
from vit_jax.errors import UsageError

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SIZES = {
  'hidden_size': 16,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'intermediate_size': 24,
  'image_size': 12,
  'patch_size': 4,
  'num_frames': 4,
  'tubelet_size': 2,
  'num_labels': 5,
}


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'use_mean_pooling': False, 'layer_norm_eps': 0.01, 'hidden_act': 'relu'},
  ],
)
def test_models_agree_both_ways(tmp_path, changes):
  config = transformers.VideoMAEConfig(**SIZES | changes)
  model = transformers.VideoMAEForVideoClassification(config).eval()
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.1 * torch.randn(parameter.shape)
    model.classifier.weight *= 5
  model.save_pretrained(tmp_path / 'theirs')
  variables, config = weights.load(tmp_path / 'theirs')
  videos = np.random.default_rng(0).normal(size=(2, 4, 12, 12, 3)).astype(np.float32)
  with torch.no_grad():
    expected = model(torch.from_numpy(videos.transpose(0, 1, 4, 2, 3).copy())).logits.numpy()
  tolerance = 1e-4 * np.abs(expected).max()
  np.testing.assert_allclose(logits(variables, config, videos), expected, rtol=0, atol=tolerance)

  weights.save(variables, config, tmp_path / 'ours', format='huggingface')
  back, info = type(model).from_pretrained(tmp_path / 'ours', output_loading_info=True)
  assert not info['missing_keys']
  assert not info['unexpected_keys']
  assert_same_tensors(back, model)
  assert weights.load(tmp_path / 'ours')[1] == config

  variables['params']['Transformer']['posembed_input']['pos_embedding'] += 0.1
  with pytest.raises(UsageError, match='positions that were trained have no place'):
    weights.save(variables, config, tmp_path / 'trained', format='huggingface')


def test_without_biases(tmp_path):
  """Which come back as zeros, and what pre-training alone has is named."""
  config = transformers.VideoMAEConfig(**SIZES, qv_bias=False)
  model = transformers.VideoMAEForVideoClassification(config)
  model.save_pretrained(tmp_path / 'theirs')
  variables, _ = weights.load(tmp_path / 'theirs')
  block = variables['params']['Transformer']['encoderblock_0']['MultiHeadDotProductAttention_0']
  assert not any(np.any(block[part]['bias']) for part in ('query', 'key', 'value'))
  transformers.VideoMAEForPreTraining(config).save_pretrained(tmp_path / 'pre-training')
  with pytest.raises(UsageError, match='a decoder'):
    weights.load(tmp_path / 'pre-training')
