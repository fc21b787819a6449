"""ONNX, by jax2onnx (github.com/enpasos/jax2onnx), compared with the model in onnxruntime."""

import importlib.util
import json
import logging
import os

import jax
import jax.export
import numpy as np

from vit_jax.errors import UsageError
from vit_jax.exporting.function import Function
from vit_jax.models.layers import cpu
from vit_jax.weights import files

OPTIONS = ()
BESIDE = ()


def write(path: str | os.PathLike, function: Function) -> float:
  """Writes PATH, which holds the function's description as metadata of the model.

  Returns:
    The largest difference, as `Function.check`.

  Raises:
    UsageError: packages are missing, the model has what jax2onnx can't convert, onnxruntime
      computes something else, or the file can't be written.
  """
  missing = [name for name in ('jax2onnx', 'onnxruntime') if not importlib.util.find_spec(name)]
  if missing:
    raise UsageError(
      f'{" and ".join(missing)} not installed; pip install {" ".join(missing)} '
      '(the extra onnx of this package)'
    )
  import jax2onnx
  import onnxruntime

  logging.getLogger('onnx_ir').setLevel(logging.ERROR)  # tells of shapes that it infers later

  names = list(function.description['outputs'])

  def call(inputs):
    outputs = function.call(inputs)
    return tuple(outputs[name] for name in names)

  (batch,) = jax.export.symbolic_shape('batch')
  try:
    with cpu.left_alone():
      model = jax2onnx.to_onnx(
        call,
        [function.spec(batch)],
        input_names=[function.input],
        output_names=names,
        model_name='vit_jax',
      )
  except Exception as e:  # of any type; the model itself was traced before
    reason = (str(e).splitlines() or [type(e).__name__])[0]
    raise UsageError(f'{path}: jax2onnx cannot convert the model: {reason}') from e
  # Shapes in between, which onnxruntime infers anew; those that were moved are wrong.
  del model.graph.value_info[:]
  for name, value in function.description.items():
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    model.metadata_props.add(key=name, value=text)
  data = model.SerializeToString()
  session = onnxruntime.InferenceSession(data, providers=['CPUExecutionProvider'])

  def run(inputs: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(names, session.run(names, {function.input: inputs}), strict=True))

  difference = function.check(run)
  files.write(path, data)
  return difference
