"""What gradients recompute with each policy, of each backbone that can recompute its layers."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax.errors import FieldError
from vit_jax.models import layers
from vit_jax.models.swin import Swin
from vit_jax.models.token_learner import TokenLearnerViT
from vit_jax.models.vit import ViT
from vit_jax.models.vivit import ViViT
from vit_jax.train import flops

VIT = {'num_classes': 2, 'mlp_dim': 8, 'num_layers': 2, 'num_heads': 2, 'hidden_size': 4}
TOKENIZER = {'type': 'dynamic', 'num_tokens': 2, 'tokenlearner_loc': 1}
MODELS = {
  'vit': (ViT, {**VIT, 'patches': {'size': (4, 4)}}, (1, 8, 8, 3)),
  'token_learner': (
    TokenLearnerViT,
    {**VIT, 'patches': {'size': (4, 4)}, 'tokenizer': TOKENIZER},
    (1, 8, 8, 3),
  ),
  'vivit': (
    ViViT,
    {
      **VIT,
      'patches': {'size': (4, 4, 2)},
      'temporal_encoding_config': {'method': '3d_conv'},
      'attention_config': {'type': 'spacetime'},
    },
    (1, 4, 8, 8, 3),
  ),
  'swin': (
    Swin,
    {'num_classes': 2, 'embed_dim': 4, 'depths': (2,), 'num_heads': (2,), 'window_size': 2},
    (1, 16, 16, 3),
  ),
}


@pytest.mark.parametrize('name', MODELS)
def test_policies_recompute_fewer_products_in_turn(name):
  kind, fields, shape = MODELS[name]
  inputs = jax.ShapeDtypeStruct(shape, jnp.float32)

  variables = jax.eval_shape(lambda x: kind(**fields).init(jax.random.key(0), x), inputs)

  def operations(**options):
    model = kind(**fields, **options)
    loss = jax.grad(lambda v, x: jnp.square(model.apply(v, x)).sum())
    return flops.count(loss, variables, inputs)

  counts = [operations(remat=True, remat_policy=policy) for policy in layers.REMAT_POLICIES]
  assert counts == sorted(counts, reverse=True)
  assert len(set(counts)) == 3
  assert operations(remat=True) == counts[0]
  assert operations() == counts[-1]
  with pytest.raises(FieldError, match=r"^remat_policy: 'dots' is not one of "):
    operations(remat=True, remat_policy='dots')
  with pytest.raises(FieldError, match=r"^remat_policy: 'dots_saveable', but remat is False$"):
    operations(remat_policy='dots_saveable')
