"""Models as functions that other programs run: one file a format, by the suffix of its files.

A format is a module with `write(path, function, **options)`, which writes a
`function.Function` and returns the largest difference between what the file computes and what the
function does, or raises UsageError. `OPTIONS` are those that it takes, and `BESIDE` the suffixes of
further files that it writes, named as the first.
"""

from vit_jax.exporting import onnx, stablehlo

FORMATS = {'.onnx': onnx, '.stablehlo': stablehlo}
