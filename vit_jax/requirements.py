"""What must be installed: a package that is missing or too old is told by its name and version."""

import functools
import importlib.util
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

# Modules that not all users need -> the extra of the package that installs them.
EXTRAS = {
  'av': 'video',
  'h5py': 'hdf5',
  'huggingface_hub': 'hub',
  'matplotlib': 'plots',
  'sklearn': 'sklearn',
  'tensorflow_datasets': 'tfds',
}


@functools.cache
def _requirements() -> tuple[Requirement, ...]:
  """Returns those in a checkout's requirements.txt, or else of the installed package.

  Those of extras that aren't in `EXTRAS`, as `test`, are left out.
  """
  root = Path(__file__).resolve().parent.parent
  if (root / 'train.py').exists():
    lines = (root / 'requirements.txt').read_text().splitlines()
  else:
    try:
      lines = metadata.requires('vit_jax') or ()
    except metadata.PackageNotFoundError:  # a copy of the package alone
      lines = ()
  extras = ('', *EXTRAS.values())
  return tuple(
    requirement
    for requirement in map(Requirement, lines)
    if requirement.marker is None
    or any(requirement.marker.evaluate({'extra': extra}) for extra in extras)
  )


def check_versions() -> None:
  """Raises ImportError where an installed package is older than this project needs."""
  too_old = []
  for requirement in _requirements():
    try:
      version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
      continue  # its import tells, where it is needed
    if not requirement.specifier.contains(version, prereleases=True):
      too_old.append(f'{requirement.name}{requirement.specifier} ({version} is installed)')
  if too_old:
    raise ImportError(
      f'vit_jax needs {", ".join(too_old)}; pip install -U -r requirements.txt brings them'
    )


def advice(module: str) -> str | None:
  """Returns what installs a module that is missing; None where it is not one of `EXTRAS`."""
  extra = EXTRAS.get(module.partition('.')[0])
  return extra and (
    f"{module} isn't installed; pip install 'vit_jax[{extra}]' brings it, or in a checkout "
    'pip install -r requirements.txt'
  )


def need(*modules: str) -> None:
  """Raises ModuleNotFoundError where one of these modules, of `EXTRAS`, isn't installed."""
  for module in modules:
    if importlib.util.find_spec(module) is None:
      raise ModuleNotFoundError(advice(module), name=module)
