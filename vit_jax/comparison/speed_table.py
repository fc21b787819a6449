"""A benchmark's report as tables for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.comparison.table import aligned, show_range

# What a report may have -> what it is of.
_TITLES = {
  'train': 'training',
  'infer': 'inference',
  'data': 'input',
  'start': 'to the first step of train.py',
}


def format_report(report: Mapping[str, Any]) -> str:
  """Returns what `benchmark` prints, from what it prints as JSON."""
  lines = [*_sides(report)]
  for what, title in _TITLES.items():
    if what in report:
      rows = {name: _cells(row) for name, row in report[what]['rows'].items()}
      columns = [title, *next(iter(rows.values()))]
      body = ([name, *cells.values()] for name, cells in rows.items())
      lines += ['', *aligned([columns, *body]), *map(_ratio, report[what]['ratios'])]
  for dtype, peak in report.get('peaks', {}).items():
    rate = peak['flops_per_second'] / 1e12
    product = peak['matrix_product_flops_per_second'] / 1e12
    lines += ['', f'peak in {dtype}: {rate:.4g} TFLOP/s a device ({peak["from"]})']
    if product != rate:
      lines[-1] += f'; a matrix product reaches {product:.4g}'
  return '\n'.join(lines).lstrip('\n')


def _sides(report: Mapping[str, Any]) -> Iterator[str]:
  """Yields a line for each side: what it is and runs on."""
  for name, side in report.get('sides', {}).items():
    versions = ', '.join(f'{name} {version}' for name, version in side['versions'].items())
    devices = f'{side.get("device_count", 1)} x {side["device"]}'
    text = f'{name}: {versions}; {devices}, {side["threads"]} threads; batch {side["batch_size"]}'
    logits = side.get('logits', {}).get('largest_difference')
    beside = '' if logits is None else f'; logits differ by at most {logits:.1e}'
    yield f'{text}, {side["dtype"]}{beside}'


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
  """Returns the cells of a row by the names of their columns."""
  if 'seconds' in row:
    return {'s': show_range(row['seconds'], 2)}
  cells = {'images/s': show_range(row['images_per_second'], 1)}
  if 'cores' in row:
    cells[f'images/s of each of {row["cores"]} cores'] = show_range(
      row['images_per_second_per_core'], 1
    )
    cells['s to the first'] = _number(row['first_step_seconds'], '.2f')
  else:
    cells |= {
      'steps/s': show_range(row['steps_per_second'], 2),
      'compiling s': _compiling(row),
      'first step s': _number(row['first_step_seconds'], '.1f'),
    }
  memory = _number(row['peak_memory_mib'], ',.0f')
  cells['memory MiB'] = f'{memory} ({row["peak_memory_of"]})' if row['peak_memory_of'] else memory
  if 'cores' not in row:
    cells |= {
      'GFLOP/image': f'{row["flops_per_image"] / 1e9:.4g}',
      'TFLOP/s': f'{row["flops_per_second"] / 1e12:.4g}',
      'of peak': _number(row['share_of_peak'], '.1%'),
      'of a product': _number(row['share_of_matrix_product'], '.1%'),
    }
  return cells


def _compiling(row: Mapping[str, Any]) -> str:
  seconds = _number(row['compile_seconds'], '.1f')
  return f'{seconds} (cached)' if row['programs_from_cache'] else seconds


def _number(value: float | None, form: str) -> str:
  return '-' if value is None else format(value, form)


def _ratio(ratio: Mapping[str, Any]) -> str:
  by_flops = ratio['by_flops']
  allowed = '' if by_flops in (None, 1) else f'; FLOPs allow {by_flops:.2f}'
  return (
    f'{ratio["of"]} / {ratio["to"]}: {show_range(ratio, 2)}, {len(ratio["turns"])} turns{allowed}'
  )
