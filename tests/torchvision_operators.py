"""Lets torchvision, and timm with it, be imported beside a build of PyTorch that it isn't made for.

Its operators, which no test uses, are declared before it asks for them. Import this first.
"""

import importlib.util
import re
from pathlib import Path

import torch


def _declare():
  """Returns the library that holds the declarations; None where there is nothing to declare."""
  found = importlib.util.find_spec('torchvision')
  if found is None:
    return None
  text = (Path(found.origin).parent / '_meta_registrations.py').read_text()
  names = re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"\)', text)
  library = torch.library.Library('torchvision', 'DEF')
  for name in names:
    library.define(f'{name}(Tensor a) -> Tensor')
  return library


library = _declare()  # declarations go with it
