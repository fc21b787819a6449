"""What layers of ViT are made of."""

import re

from vit_jax.models.vit import ViT


def test_what_layers_add_to_logits_or_turn_by_is_not_decayed():
  fields = {'num_classes': 2, 'mlp_dim': 8, 'num_layers': 1, 'num_heads': 2, 'hidden_size': 16}
  fields |= {'patches': {'size': (4, 4)}, 'positional_embedding': 'none'}
  for options, parameters in (
    ({'rotary': {'type': 'mixed'}}, {'freqs'}),
    ({'relative_positions': {'type': 'bias'}}, {'relative_position_bias_table'}),
    ({'relative_positions': {'type': 'decomposed'}}, {'rel_pos_h', 'rel_pos_w'}),
    ({'differential': True}, {f'lambda_{x}{i}' for x in 'qk' for i in (1, 2)}),
  ):
    names = ViT(**fields, **options).variable_shapes((8, 8), 3)
    decayed = {name.split('/')[-1] for name in names if not re.search(ViT.NO_DECAY, name)}
    assert decayed == {'kernel'}
    assert {name.split('/')[-1] for name in names} >= parameters
