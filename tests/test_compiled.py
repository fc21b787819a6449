"""What `benchmarks/compiled.py` reads in a compiled program; targets need packages of theirs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / 'benchmarks' / 'compiled.py'

HLO = """HloModule jit_f, is_scheduled=true

%fused_dot (p: bf16[8,4], q: bf16[4,2]) -> bf16[8,2] {
  %p = bf16[8,4]{1,0} parameter(0)
  %q = bf16[4,2]{1,0} parameter(1)
  ROOT %d = bf16[8,2]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_sum (r: bf16[8,2]) -> f32[2] {
  %r = bf16[8,2]{1,0} parameter(0)
  ROOT %s = f32[2]{0} reduce(%r), dimensions={0}
}

ENTRY %main (a: bf16[8,4], b: bf16[4,2]) -> (f32[2], f32[2]) {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = bf16[4,2]{1,0} parameter(1)
  %dot.1 = bf16[8,2]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused_dot, metadata={op_name="dot"}
  %sum.1 = f32[2]{0} fusion(%dot.1), kind=kInput, calls=%fused_sum, metadata={op_name="sum"}
  %call.1 = (f32[2]{0}, u8[0]{0}) custom-call(%sum.1), custom_call_target="__cublas$lt"
  %loop = (s32[], f32[2]{0}) while(%call.1), condition=%more, body=%round
  %first = f32[2]{0} get-tuple-element(%call.1), index=0
  ROOT %out = (f32[2]{0}, f32[2]{0}) tuple(%sum.1, %first)
}
"""


FILES = {'binary.txtpb': b'\xff\xfe', 'gpu.txtpb': b'gpu_device_info {}'}


def test_bytes_are_those_that_kernels_read_and_write(monkeypatch):
  monkeypatch.setattr(sys, 'path', [*sys.path])
  spec = importlib.util.spec_from_file_location('compiled', SCRIPT)
  compiled = importlib.util.module_from_spec(spec)
  for name in ('JAX_PLATFORMS', 'TPU_SKIP_MDS_QUERY'):
    monkeypatch.setenv(name, 'cpu')  # so that they are as before afterwards
  spec.loader.exec_module(compiled)
  assert compiled._kernels(HLO) == {
    'matrix product': [(2 * (8 * 4 + 4 * 2 + 8 * 2), 'bf16[8,2]', 'dot')],
    'sum over an axis': [(2 * 8 * 2 + 4 * 2, 'f32[2]', 'sum')],
    '__cublas$lt': [(4 * 2 + 4 * 2, '(f32[2], u8[0])', '')],
  }


@pytest.mark.parametrize('target', ['nonsense:2x4', 'missing.txtpb', 'binary.txtpb', 'gpu.txtpb'])
def test_a_target_without_its_packages_is_told_in_a_line(target, tmp_path):
  if target in FILES:
    (tmp_path / target).write_bytes(FILES[target])
    target = str(tmp_path / target)
  command = [sys.executable, SCRIPT, f'--target={target}', '--config=configs/digits.py']
  done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parent.parent)
  assert done.returncode == 1
  assert done.stderr.startswith(f'compiled.py: --target: {target!r}')
  assert done.stderr.count('\n') == 1
