"""Damages what commands read, and the commands, at random, and looks at how they end.

    python tests/fuzz.py weights|images|folders|commands [--seed=N] [--count=N] [--verbose]

Case i of a seed N is the first of the seed N + i: --seed=N+i --count=1 --verbose makes it again. A
case is clean where the command succeeds, or ends with a documented exit code and one line that
names the file or the field, within the time and the memory below, without a traceback or control
characters in what it writes, and having executed nothing. Those that aren't are printed, and the
exit code is then 1. A few of each kind are a test.
"""

import argparse
import collections
import functools
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import fuzz_commands  # noqa: E402
import fuzz_mutations  # noqa: E402
import fuzz_originals  # noqa: E402
from forked_commands import Command, all_endings, in_child, preload  # noqa: E402

from vit_jax.errors import printable  # noqa: E402

COUNTS = {'weights': 500, 'images': 400, 'folders': 100, 'commands': 300}
SECONDS, MEMORY = 120, 2 * 2**30  # of a command, at most; memory beyond what imports take
_DATA = 8 * 2**30  # more is refused by the system, for the sake of the machine
_ENVIRONMENT = {'HF_HUB_OFFLINE': '1', 'COLUMNS': '100', 'OMP_NUM_THREADS': '1'}
# 1: a loss that isn't finite, or damaged images beside others, in the commands that tell of each.
_CODES = (0, 1, 2)
_EACH_FILE = ('vit_jax.predict', 'vit_jax.features', 'vit_jax.explain')
_CONTROL = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f]')
_NATIVE = re.compile(
  r'^([IWEF]\d{4} .*\.(cc|h):\d+\]|\*\*\* |Fatal Python|terminate |\[\w+ @ 0x)', re.M
)
_MOST_LINES, _LONGEST = 12, 3000


class Case(NamedTuple):
  """A command on something damaged.

  Attributes:
    module: 'train' or a module of vit_jax.
    args: its arguments.
    what: what was damaged, in words.
    names: its message has one of these, or a flag or a field.
  """

  module: str
  args: list[str]
  what: str
  names: tuple[str, ...] = ()


def weights_case(rng, originals, folder):
  """Returns a command that reads damaged weights."""
  original = rng.choice(sorted((originals / 'weights').iterdir()))
  path = copy(original, folder / 'given')
  what, file = fuzz_mutations.damage(path, rng, folder / 'executed')
  image = originals / 'images' / 'colour.png'
  source = f'--{"workdir" if original.name.startswith("run_") else "weights"}={path}'
  to = rng.choice(('scenic', 'timm', 'huggingface', 'augreg', 'torchvision'))
  of_seven = rng.randrange(7)
  if of_seven < 3:
    module, args = 'vit_jax.convert', [path, folder / 'converted', f'--to={to}']
  elif of_seven == 3:
    module, args = 'vit_jax.features', [path, image, folder / 'features.npz']
  elif of_seven == 4:
    module, args = 'train', ['--config=configs/digits.py', '--mode=describe']
    args += [*fuzz_commands.TINY, f'--config.init_from={path}']
  else:
    module, args = 'vit_jax.predict', [source, image]
  return Case(module, args, what, (path.name, file.name, 'converted'))


def images_case(rng, originals, folder):
  """Returns a command that reads a damaged image."""
  original, trains = rng.choice(sorted((originals / 'images').iterdir())), rng.random() < 0.2
  place = folder / 'cat'
  if trains:
    data = Path(shutil.copytree(originals / 'folders' / 'classes', folder / 'data'))
    place = data / rng.choice(('train', 'test')) / 'cat'
  path = copy(original, place)
  what, _ = fuzz_mutations.damage(path, rng, folder / 'executed')
  what = f'{path.name}: {what}'
  if trains:
    mode = rng.choice(('describe', 'preview', 'train', 'train'))
    return Case('train', experiment('classes', data, folder, mode, rng), what, ('cat', path.name))
  run = originals / 'weights' / 'run_run'
  given = [path if rng.random() < 0.7 else path.parent]
  if rng.random() < 0.3:
    given.append(originals / 'images' / 'colour.png')
  if rng.random() < 0.2:
    return Case('vit_jax.features', [run, *given, folder / 'f.npz'], what, (path.name, 'cat'))
  if rng.random() < 0.15:
    args = [f'--workdir={run}', f'--out={folder}/out', '--pictures=attention', *given]
    return Case('vit_jax.explain', args, what, (path.name, 'cat'))
  return Case('vit_jax.predict', [f'--workdir={run}', *given], what, (path.name, 'cat'))


def folders_case(rng, originals, folder):
  """Returns a command that reads a damaged folder of data."""
  name = rng.choice(sorted(fuzz_originals.EXPERIMENTS))
  data = shutil.copytree(originals / 'folders' / name, folder / 'data')
  done = [
    fuzz_mutations.damage(data, rng, folder / 'executed') for _ in range(rng.choice((1, 1, 3)))
  ]
  mode = rng.choice(('describe', 'preview', 'train', 'train'))
  what = f'{name}: ' + '; '.join(f'{file.name} {words}' for words, file in done)
  return Case('train', experiment(name, data, folder, mode, rng), what, (data.name,))


def commands_case(rng, originals, folder):
  """Returns a command with flags that are wrong."""
  module, args, what = fuzz_commands.mutated(rng, originals, folder)
  values = (printable(arg.rpartition('=')[2]) for arg in args)
  return Case(module, args, what, tuple(v if len(v) > 2 else f': {v}: ' for v in values))


CASES = {
  'weights': weights_case,
  'images': images_case,
  'folders': folders_case,
  'commands': commands_case,
}


def copy(original, folder):
  """Copies a file or folder into another folder; returns the copy."""
  folder.mkdir(exist_ok=True)
  if original.is_dir():
    return Path(shutil.copytree(original, folder / original.name))
  return Path(shutil.copy(original, folder))


def experiment(name, data, folder, mode, rng):
  """Returns the flags of train.py for a kind of folder."""
  flags = [flag.replace('FOLDER', str(data)) for flag in fuzz_originals.EXPERIMENTS[name]]
  if rng.random() < 0.3:
    flags.append('--config.data.resident=no')
  return [*flags, f'--mode={mode}', f'--workdir={folder}/workdir']


def problem(case, ending, marker):
  """Returns what is unclean about an ending, or None."""
  text = ending.output + ending.errors
  lines = [line for line in ending.errors.splitlines() if line.strip()]
  name = case.module.rpartition('.')[2]
  own = [line for line in lines if line.startswith((f'{name}.py: ', f'{name}: '))]
  if marker.exists():
    return 'EXECUTED'
  if ending.stopped or ending.peak > MEMORY:
    limit = {'time': f'{SECONDS} s'}.get(ending.stopped, f'{MEMORY >> 20} MiB')
    return f'more than {limit}'
  if 'Traceback (most recent call last)' in text:
    trace = [line for line in text[text.rindex('Traceback') :].splitlines()[1:] if line.strip()]
    last = next((line for line in trace if not line.startswith(' ')), trace[-1])
    files = re.findall(r'File "([^"]+)", line (\d+)', text[text.rindex('Traceback') :])
    ours = [f'{Path(f).name}:{n}' for f, n in files if f.startswith(f'{ROOT}/')]
    return f'traceback: {last[:120]} ({ours[-1] if ours else ""})'
  if ending.code not in _CODES:
    return f'exit code {ending.code}: {lines[-1][:100] if lines else ""}'
  if found := _CONTROL.search(text):
    return f'control character {found[0]!r}'
  if found := _NATIVE.search(ending.errors):
    return f'words of a library: {ending.errors[found.start() :][:80]!r}'
  is_table = any('tensors that do not fit' in line for line in own)
  if (len(lines) > _MOST_LINES and not is_table) or max(map(len, lines), default=0) > _LONGEST:
    return f'{len(lines)} lines of up to {max(map(len, lines))} characters'
  if ending.code == 1 and case.module not in _EACH_FILE and 'not finite' not in ending.errors:
    return f'exit code 1: {lines[-1][:100] if lines else ""}'
  if ending.code and not lines:
    return 'exit code without a line'
  if ending.code == 2:
    if not own or (own[-1] != lines[-1] and not is_table):
      return f'ends with: {lines[-1][:120]}'
    if not any(name in ending.errors for name in case.names) and not re.search(
      r"--\w|config\.|command line flag '|: give [A-Z_]+ ", own[-1]
    ):
      return f'names nothing: {own[-1][:160]}'
  return None


def main(kind, seed, count, jobs, verbose):
  """Runs so many cases; returns how many are unclean."""
  preload()
  root = Path(tempfile.mkdtemp(prefix='fuzz-')).resolve()  # which forks don't remove as they end
  try:
    return fuzz(kind, seed, count, jobs, verbose, root)
  finally:
    shutil.rmtree(root, ignore_errors=True)


def fuzz(kind, seed, count, jobs, verbose, root):
  """Likewise, in a folder."""
  originals = root / 'originals'
  if not in_child(fuzz_originals.make, originals):
    raise RuntimeError('the originals cannot be made')
  cases, problems, most, longest = {}, collections.defaultdict(list), 0, 0

  def start(number):
    folder = root / f'case{number}'
    folder.mkdir()
    (folder / 'configs').symlink_to(ROOT / 'configs')
    rng = random.Random(f'{kind} {number}')
    cases[number] = CASES[kind](rng, originals, folder)
    case = cases[number]
    return Command(case.module, case.args, folder, _ENVIRONMENT, _DATA)

  commands = ((n, functools.partial(start, n)) for n in range(seed, seed + count))
  codes = collections.Counter()
  for number, ending in all_endings(commands, SECONDS, MEMORY, jobs):
    folder, case = root / f'case{number}', cases.pop(number)
    most, longest = max(most, ending.peak), max(longest, ending.seconds)
    codes[ending.code] += 1
    words = problem(case, ending, folder / 'executed')
    if words:
      problems[re.sub(r'[\d]+', 'N', words)[:70]].append(number)
    if words or verbose:
      args = ' '.join(str(arg) for arg in case.args).replace(str(root), '')
      print(f'--seed={number}: {words}\n  {case.what[:200]!r}\n  {case.module} {args[:600]!r}')
    if verbose:
      print(ending.code, f'{ending.output[-2000:]}{ending.errors[-8000:]!r}')
    sys.stdout.flush()
    shutil.rmtree(folder, ignore_errors=True)
  unclean = sum(map(len, problems.values()))
  for words, numbers in sorted(problems.items(), key=lambda item: -len(item[1])):
    print(f'{len(numbers):4} {words!r}, as --seed={numbers[0]}')
  ends = ', '.join(f'{n} with {code}' for code, n in sorted(codes.items()))
  print(f'{kind}: {count} cases, {unclean} unclean; exit codes: {ends}; at most {most >> 20} MiB '
        f'and {longest:.0f} s')  # fmt: skip
  return unclean


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('kind', choices=CASES)
  parser.add_argument('--seed', type=int, default=1_000_000)
  parser.add_argument('--count', type=int)
  parser.add_argument('--jobs', type=int, default=2, help='commands at once')
  parser.add_argument('--verbose', action='store_true', help='show all cases, and how they end')
  given = parser.parse_args()
  count = COUNTS[given.kind] if given.count is None else given.count
  sys.exit(bool(main(given.kind, given.seed, count, given.jobs, given.verbose)))
