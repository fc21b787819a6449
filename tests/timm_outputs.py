"""What timm computes with one small model of each kind, kept for machines without timm.

    python tests/timm_outputs.py

writes timm_outputs.npz beside it: what config.json says, names and shapes of the tensors, and the
logits. Values of tensors and images follow from their names.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix('.npz')
_SMALL = {'embed_dim': 32, 'depth': 2, 'num_heads': 2, 'num_classes': 3}
_IMAGES = {'img_size': (12, 16), 'patch_size': 4}
# Architecture, and the arguments that make it small.
MODELS = {
  'norms after the branches': ('vit_base_patch16_rpn_224', {}),
  'prefix tokens in the average': (
    'vit_tiny_patch16_224',
    {'global_pool': 'avg', 'pool_include_prefix': True},
  ),
  'CLIP': ('vit_base_patch32_clip_quickgelu_224', {}),
  'registers, gated': ('vit_giant_patch14_reg4_dinov2', {'embed_dim': 48}),
  'SigLIP': ('vit_so400m_patch16_siglip_256', {}),
  'RMSNorm': ('aimv2_1b_patch14_224', {}),
  'side by side, differential': ('vit_dlittle_patch16_reg1_gap_256', {}),
  'distilled': ('deit_tiny_distilled_patch16_224', {}),
  'EVA': ('eva02_base_patch14_448', {}),
  'PE': ('vit_pe_core_base_patch16_224', {'attn_pool_num_heads': 4}),
  'learned rotation': ('vit_small_patch16_rope_mixed_ape_224', {}),
  'DINOv3': ('vit_small_plus_patch16_dinov3_qkvb', {}),
  'fewer heads of keys': ('vit_base_patch16_sapiens2', {'num_kv_heads': (2, 1)}),
  'BEiT': ('beit_base_patch16_224', {}),
  'relative positions': ('vit_relpos_medium_patch16_cls_224', {'rel_pos_dim': 8}),
  'SAM': ('samvit_base_patch16', {'window_size': 2, 'global_attn_indexes': (1,), 'neck_chans': 8}),
  'NaFlex': ('naflexvit_base_patch16_par_gap', {'pos_embed_grid_size': (3, 3)}),
}


def images_of(config):
  """Returns two images [2, H, W, C]."""
  rng = np.random.default_rng(1)
  return rng.normal(size=(2, *config.image_size, config.channels)).astype(np.float32)


def read():
  """Returns kind -> {'config', 'shapes', 'logits'}."""
  with np.load(FILE) as file:
    return json.loads(file['json'].tobytes())


def generate(kind):
  """Returns what `read` does of one kind, by timm."""
  import timm
  import torch
  from timm.models import _hub
  from timm_models import randomised, theirs

  from vit_jax import weights

  name, changes = MODELS[kind]
  given = {**_SMALL, **_IMAGES, **changes}
  model = randomised(timm.create_model(name, **given))
  with tempfile.TemporaryDirectory() as folder:
    _hub.save_for_hf(model, folder, model_args=given, safe_serialization=True)
    config = json.loads((Path(folder) / 'config.json').read_text())
    images = images_of(weights.load(folder)[1])
  named = ('architecture', 'num_classes', 'global_pool', 'model_args')
  with torch.inference_mode():
    logits = theirs(model, images)
  return {
    'config': {name: config[name] for name in named if name in config},
    'shapes': {n: list(t.shape) for n, t in model.state_dict().items()},
    'logits': logits.tolist(),
  }


if __name__ == '__main__':
  root = Path(__file__).parents[1]
  sys.path[:0] = [str(root), str(root / 'tests')]
  import torchvision_operators  # noqa: F401  before timm

  text = json.dumps({kind: generate(kind) for kind in MODELS})
  np.savez_compressed(FILE, json=np.frombuffer(text.encode(), np.uint8))
