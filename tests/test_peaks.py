"""Which figure of a data sheet a device has."""

import types

import jax
import pytest

from vit_jax import peaks


@pytest.mark.parametrize(
  ('kind', 'tera'),
  [
    ('NVIDIA H100 80GB HBM3', 989),
    ('NVIDIA H100 PCIe', 756),
    ('NVIDIA H100 NVL', 835),
    ('NVIDIA GB200', 2500),
    ('NVIDIA A100-SXM4-80GB', 312),
    ('NVIDIA A10G', 70),
    ('NVIDIA A10', 125),
    ('NVIDIA L40S', 362),
    ('NVIDIA L4', 121),
    ('TPU v5 lite', 197),
    ('TPU v5p', 459),
  ],
)
def test_the_name_that_says_most_counts(monkeypatch, kind, tera):
  monkeypatch.setattr(jax, 'devices', lambda: [types.SimpleNamespace(device_kind=kind)])
  assert peaks.peak('bfloat16') == (tera * 1e12, 'data sheet')


def test_what_no_data_sheet_has_is_timed(monkeypatch):
  monkeypatch.setattr(jax, 'devices', lambda: [types.SimpleNamespace(device_kind='TPU v4')])
  monkeypatch.setattr(peaks, 'matrix_product', {'float32': 7.0}.get)
  assert peaks.peak('float32') == (7.0, 'a matrix product, timed here')
