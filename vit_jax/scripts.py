"""The commands that `pip install` adds: vit-jax-NAME is `python -m vit_jax.NAME`."""

import runpy


def compare() -> None:
  """Runs `python -m vit_jax.compare`."""
  _run('vit_jax.compare')


def convert() -> None:
  """Runs `python -m vit_jax.convert`."""
  _run('vit_jax.convert')


def explain() -> None:
  """Runs `python -m vit_jax.explain`."""
  _run('vit_jax.explain')


def export() -> None:
  """Runs `python -m vit_jax.export`."""
  _run('vit_jax.export')


def features() -> None:
  """Runs `python -m vit_jax.features`."""
  _run('vit_jax.features')


def predict() -> None:
  """Runs `python -m vit_jax.predict`."""
  _run('vit_jax.predict')


def _run(module: str) -> None:
  # The module becomes __main__, so that processes which a command starts import the module again
  # and not the script in the PATH.
  runpy.run_module(module, run_name='__main__', alter_sys=True)
