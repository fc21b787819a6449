"""The same models in PyTorch: what a process needs to make one, with weights written for it.

Each is a recipe that pickles, and imports PyTorch where it is made alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from vit_jax.errors import UsageError

# Endings of fields of transformers' configs that training alone reads.
_DROPOUT = ('dropout_rate', 'droplayer_rate', 'dropout_prob', 'drop_path_rate')


@dataclasses.dataclass(frozen=True)
class Transformers:
  """A classifier of Hugging Face's transformers, with the attention that it takes by default: SDPA.

  Attributes:
    path: a folder, or a name on the hub that has been downloaded.
    class_name: as 'ViTForImageClassification'.
    PACKAGES: that it needs.
  """

  path: str
  class_name: str
  PACKAGES: ClassVar[tuple[str, ...]] = ('torch', 'transformers')

  def make(self) -> tuple[Any, int]:
    """Returns (a module from images [B, C, H, W] to logits, in float32, its number of classes).

    It has no dropout, and is made in silence.

    Raises:
      UsageError: the path lacks some of the model's tensors.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind = getattr(transformers, self.class_name)
    config = kind.config_class.from_pretrained(self.path, local_files_only=True)
    for name in config.to_dict():
      if name.endswith(_DROPOUT):
        setattr(config, name, 0.0)
    model, info = kind.from_pretrained(
      self.path, config=config, output_loading_info=True, local_files_only=True
    )
    _refuse_missing(self.path, info['missing_keys'])

    class Logits(torch.nn.Module):
      def __init__(self):
        super().__init__()
        self.model = model

      def forward(self, images):
        return self.model(pixel_values=images).logits

    return Logits().float(), config.num_labels


@dataclasses.dataclass(frozen=True)
class Timm:
  """A classifier of timm.

  Attributes:
    path: of a state dict, .safetensors.
    architecture: as timm.create_model takes it.
    arguments: likewise.
    PACKAGES: that it needs.
  """

  path: str
  architecture: str
  arguments: Mapping[str, Any]
  PACKAGES: ClassVar[tuple[str, ...]] = ('torch', 'timm')

  def make(self) -> tuple[Any, int]:
    """Returns what `Transformers.make` does, and raises what that raises."""
    import timm
    from safetensors.torch import load_file

    model = timm.create_model(self.architecture, **self.arguments)
    # Buffers that follow from the arguments are in some versions part of the state, and not here.
    found = model.load_state_dict(load_file(self.path), strict=False)
    if found.unexpected_keys:
      raise UsageError(f'{self.path}: PyTorch knows no {", ".join(found.unexpected_keys)}')
    parameters = dict(model.named_parameters())
    _refuse_missing(self.path, [name for name in found.missing_keys if name in parameters])
    return model, self.arguments['num_classes']


def _refuse_missing(path: str, names: list[str]) -> None:
  if names:
    raise UsageError(f'{path}: PyTorch finds no {", ".join(sorted(names))} there')
