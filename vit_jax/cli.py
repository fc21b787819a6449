"""What the commands share: flags in, one line and an exit code out where it goes wrong."""

import contextlib
import functools
import gc
import importlib.machinery
import importlib.util
import itertools
import logging
import math
import os
import re
import select
import shlex
import signal
import sys
import textwrap
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from vit_jax import host_memory, interrupts, requirements
from vit_jax.errors import (
  UsageError,
  UsageWarning,
  check_choice,
  field_prefix,
  nearest,
  printable,
)
from vit_jax.run.ending import Interrupted, NonFiniteError

_HELP = ('h', 'help', 'helpshort', 'helpfull')
_WIDTH = 100  # columns of --help
_SIGPIPE = 13  # which `signal` has not on Windows


class _ExperimentParser(ConfigFileFlagParser):
  """Loads a config file, and gives it the fields of what other flags name: model, task, data set.

  So --config.task=localization brings --config.model.head.hidden_size along.
  """

  def __init__(self, name: str, words: Sequence[str] = ()):
    """Takes the flag's name, and words that may stand in place of a file."""
    super().__init__(name)
    self._words = words

  def parse(self, path: str) -> ConfigDict:
    """Returns the configuration that `path`, 'FILE.py' or 'FILE.py:ARG', stands for.

    Of a word it is one with `word` alone.
    """
    if path in self._words:
      return ConfigDict({'word': path})
    file, *argument = path.split(':', 1)
    if not os.path.isfile(file):
      there = [str(p) for p in sorted(Path('configs').glob('*.py'))]
      raise UsageError(f'--{self.name}: {file or repr(file)} does not exist{nearest(file, there)}')
    try:
      module = _load_module(file)
      if not hasattr(module, 'get_config'):
        raise UsageError(f'--{self.name}: {file} has no get_config()')
      config = module.get_config(*argument)
    except UsageError:
      raise
    except Exception as e:
      if isinstance(e, ModuleNotFoundError) and requirements.advice(e.name or ''):
        raise
      _print_frames(e, file)
      text = ' '.join(''.join(traceback.format_exception_only(e)[-1:]).split())
      raise UsageError(f'--{self.name}: {file}: {text}') from None
    if not isinstance(config, ConfigDict):
      found = type(config).__name__
      raise UsageError(f'--{self.name}: {file}: get_config() returned {found}, not a ConfigDict')
    with config.unlocked():
      self._complete(config)
    return config.lock()

  def _complete(self, config: ConfigDict) -> None:
    # They import JAX and the models, which not every command needs.
    from vit_jax import config_fields, user_code

    fields = ('model.name', 'task', 'data.name', 'model.head.name')
    model, task, data, head = (_flag_value(f'{self.name}.{field}') for field in fields)
    with field_prefix(f'{self.name}.'):
      # Of a config that leaves its model open, the fields of all of ours are there.
      is_open = config.model.name is None and not user_code.is_reference(model)
      if not is_open and model not in (None, config.model.name):
        with field_prefix('model.'):
          config_fields.set_model(config, model)
      if task is not None and task != config.task:
        config_fields.set_task(config, task)
      if data is not None and data != config.data.name:
        config_fields.set_data(config, data)
      if head is not None and 'head' in config.model:
        with field_prefix('model.head.'):
          config_fields.set_head(config, head)


def _load_module(file: str) -> types.ModuleType:
  """Runs a file of Python, and returns it as a module."""
  loader = importlib.machinery.SourceFileLoader('config_file', file)
  spec = importlib.util.spec_from_loader(loader.name, loader)
  # What the file defines, dataclasses for one, may look for its module there.
  sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
  loader.exec_module(module)
  return module


def _print_frames(error: Exception, file: str) -> None:
  """Prints where in a user's file, and in what else of the user's it calls, an error came up."""
  package = os.path.dirname(os.path.abspath(__file__))
  report = traceback.TracebackException.from_exception(error)
  frames = itertools.dropwhile(lambda frame: frame.filename != file, report.stack)
  report.stack[:] = [f for f in frames if not f.filename.startswith((package, '<frozen '))]
  report.__context__ = report.__cause__ = None
  if report.stack or isinstance(error, SyntaxError):
    print(''.join(report.format()), end='', file=sys.stderr)


def DEFINE_experiment(
  name: str, help_string: str, words: Sequence[str] = ()
) -> flags.FlagHolder[ConfigDict]:
  """Defines a flag for a config file, whose fields are set by --NAME.FIELD.

  Of the `words`, which stand for something else, the value is a configuration with `word` alone.
  """
  holder = config_flags.DEFINE_config_file(name, help_string=help_string)
  flags.FLAGS[name].parser = _ExperimentParser(name, words)
  return holder


def _flag_value(name: str) -> str | None:
  """Returns what the command line gives a flag: of several values the last, of none None."""
  found = re.findall(rf'(?:^|\n)--?{re.escape(name)}[=\n](.*)', '\n'.join(sys.argv[1:]))
  return found[-1] if found else None


def _fields(config: ConfigDict, prefix: str) -> dict[str, object]:
  """Returns all fields, those that are groups of others as well, by their dotted names."""
  fields = {}
  for key, value in config.items():
    fields[f'{prefix}.{key}'] = value
    if isinstance(value, ConfigDict):
      fields |= _fields(value, f'{prefix}.{key}')
  return fields


def _experiments() -> list[str]:
  """Returns the names of the flags of `DEFINE_experiment`."""
  return [name for name in flags.FLAGS if isinstance(flags.FLAGS[name].parser, _ExperimentParser)]


def _check_config_flags(argv: list[str]) -> None:
  """Raises UsageError for config files that aren't there and for fields that they don't have."""
  for name in _experiments():
    if (path := _flag_value(name)) is not None:
      fields = _fields(flags.FLAGS[name].parser.parse(path), name)
      for arg in argv:
        override = re.match(rf'--?(?:no)?({name}\.[\w.]*)', arg)
        if override and override[1] not in fields:
          raise UsageError(f'--{override[1]}: no such field{nearest(override[1], fields)}')


def _usage(doc: str) -> str:
  """Returns how a command is called, as its module's docstring says it."""
  line = re.search('python .*', doc)[0]
  return line if line.endswith('...') else line.removesuffix('.')


def _help(command: Callable[..., int | None]) -> str:
  """Returns what --help prints: what the command is for, its flags, and fields of its config."""
  lines = [sys.modules[command.__module__].__doc__.strip(), '', 'Flags:']
  owners = flags.FLAGS.flags_by_module_dict()
  own = [name for name in (sys.argv[0], command.__module__) if name in owners]
  shared = [name for name in owners if name.startswith('vit_jax.') and name not in own]
  lines += [_describe(flag) for name in own + shared for flag in owners[name]]
  for name in _experiments():
    lines += ['', f'--{name}.FIELD=VALUE sets a field; docs/configuration.md says what they are.']
    if path := _flag_value(name):
      fields = _fields(flags.FLAGS[name].parser.parse(path), name)
      lines[-1] += f' Those of {path}:'
      plain = {k: v for k, v in fields.items() if not isinstance(v, ConfigDict)}
      lines += [f'  --{field}={shlex.quote(str(value))}' for field, value in plain.items()]
    else:
      lines[-1] += f' With --{name}=FILE, all are listed.'
  return '\n'.join(lines)


def _describe(flag: flags.Flag) -> str:
  """Returns the lines of --help on one flag."""
  name = f'--[no]{flag.name}' if flag.boolean else f'--{flag.name}'
  text, default = flag.help, flag.default_as_str
  if isinstance(flag.parser, flags.EnumParser):  # whose help absl begins with '<A|B>: '
    choices = '|'.join(flag.parser.enum_values)
    name, text = f'{name}={choices}', text.removeprefix(f'<{choices}>: ')
  default = '' if default is None else f'Default: {default}.'.replace("'", '')
  return textwrap.fill(
    f'{name}: {text} {default}',
    _WIDTH,
    initial_indent='  ',
    subsequent_indent='      ',
    break_on_hyphens=False,
  )


def _explain_value(e: flags.IllegalFlagValueError) -> str:
  """Returns in one line which flag has a value that it can't have, and what it could have."""
  found = re.match(r'flag --([\w.]+)=(.*?): ', str(e), re.DOTALL)
  flag = flags.FLAGS[found[1]]
  with field_prefix('--'):
    if isinstance(flag.parser, flags.EnumParser):
      check_choice(found[1], found[2], flag.parser.enum_values)
  wanted = 'true or false' if flag.boolean else flag.parser.syntactic_help
  return f'--{found[1]}: {found[2]!r} is not {wanted}' if wanted else str(e)


def parse_flags(argv: list[str], arguments: Sequence[str], doc: str) -> list[str]:
  """absl's parser, its complaints as one line; unknown fields are told before it sees them.

  `arguments` are as for `run`; `doc` is the docstring of the command's module.
  """
  _check_config_flags(argv[1:])  # a bug in the config's own code is raised here
  try:
    rest = flags.FLAGS(argv)
  except flags.IllegalFlagValueError as e:
    fail(_explain_value(e))
  except (flags.Error, ValueError) as e:
    fail(' '.join(str(e).split()))
  fields = tuple(f'{name}.' for name in _experiments())  # '' is a value of some
  for flag in (flag for own in flags.FLAGS.flags_by_module_dict().values() for flag in own):
    is_empty = flag.present and flag.value == '' and flag.default is None
    if is_empty and not flag.name.startswith(fields):
      fail(f'--{flag.name}: empty; give a value, or leave it out')
    if isinstance(flag.value, float) and math.isnan(flag.value):  # which no bound keeps out
      fail(f'--{flag.name}: nan is not a number')
  if '' in rest:
    fail("'' is not a name; give one, or leave it out")
  given, open_ended = rest[1:], bool(arguments) and arguments[-1].rstrip(']').endswith('...')
  required = [name for name in arguments if not name.startswith('[')]
  if len(given) > len(arguments) and not open_ended:
    fail(f'{given[len(arguments)]!r} is not a flag; flags are given as --name=value')
  if len(given) < len(required):
    fail(missing(required[len(given)], doc))
  return rest


def missing(name: str, doc: str) -> str:
  """Returns in one line that a command lacks an argument; `doc` is its module's docstring."""
  return f'{name} is missing, as in: {_usage(doc)} (--help tells more)'


def _line(message: object) -> str:
  """Returns a message, which may have names from files in it, after the name of the command."""
  lines = message.lines if isinstance(message, UsageError) else [message]
  return f'{interrupts.command_name()}: ' + '\n'.join(map(printable, lines))


def _format_warning(
  message: Warning | str, category: type[Warning], *args: object, others: Callable[..., str]
) -> str:
  """Returns what is printed of a warning: of our own a line, and else what `others` returns."""
  if issubclass(category, UsageWarning):
    return f'{_line(message)}\n'
  return others(message, category, *args)


def _escape(record: logging.LogRecord) -> bool:
  """Makes what this project logs, as names of files that are skipped, a line for a terminal."""
  if record.name.startswith('vit_jax'):
    record.msg, record.args = printable(record.getMessage()), ()
  return True


def fail(message: object, code: int = 2) -> NoReturn:
  """Ends the process with a line, from any thread."""
  print(_line(message), file=sys.stderr, flush=True)
  sys.stdout.flush()
  # All is closed. A normal exit would wait for other processes, which wait for this one, and run
  # the hooks of libraries that complain once more about a full disk.
  os._exit(code)


def _nobody_reads() -> bool:
  """Whether stdout is a pipe to a process that has closed it, as `head` does."""
  if not hasattr(select, 'poll'):  # on Windows, where only such a pipe is told as broken
    return True
  poll = select.poll()
  poll.register(sys.stdout, 0)
  return bool(poll.poll(0))


@contextlib.contextmanager
def _endings() -> Iterator[None]:
  """Ends the process with a line for every way to end that a person can cause."""
  try:
    yield
  except UsageError as e:
    fail(e)
  except ModuleNotFoundError as e:
    if advice := requirements.advice(e.name or ''):
      fail(advice)
    raise
  except NonFiniteError as e:
    fail(e, 1)
  except Interrupted as e:
    fail(f'{e}; to go on: {shlex.join(["python", *sys.argv])}', 128 + e.signum)
  except KeyboardInterrupt:
    fail('interrupted', 128 + signal.SIGINT)
  except BrokenPipeError:
    if not _nobody_reads():
      raise
    os._exit(128 + _SIGPIPE)


def _compile_faster() -> None:
  """Has XLA compile for CPU as LLVM's -O2 does, unless $XLA_FLAGS says how.

  Its default, -O3, takes up to a fourth more time, and its programs are as fast.
  """
  given = os.environ.get('XLA_FLAGS', '')
  if 'xla_backend_optimization_level' not in given:
    os.environ['XLA_FLAGS'] = f'{given} --xla_backend_optimization_level=2'.strip()


def _quieten_tracker() -> None:
  """Has Python not warn of semaphores of workers, which it frees, where a command ends early."""
  given = os.environ.get('PYTHONWARNINGS')
  os.environ['PYTHONWARNINGS'] = ','.join(filter(None, (given, 'ignore:resource_tracker')))


def run(command: Callable[..., int | None], arguments: Sequence[str] = ()) -> None:
  """Runs `command`, with every way to end that a person can cause as a line.

  It is called with what comes beside flags: a word for each of `arguments`, and any number from one
  on for a last name that ends in '...', or from none on where it stands in brackets. The docstring
  of its module, which --help shows with all flags, says how it is called: 'python ...'.

  Exit codes: what `command` returns, 2 for mistakes (UsageError), 1 for a loss that isn't finite,
  128 plus the signal's number for SIGTERM, SIGHUP, Ctrl-C and a closed pipe, 75 where another
  process of the run was lost. Everything unforeseen keeps its traceback, and has 1.
  """
  # Names of files and classes may be none that the terminal's encoding has.
  sys.stdout.reconfigure(errors='backslashreplace')
  warnings.formatwarning = functools.partial(_format_warning, others=warnings.formatwarning)
  # Pillow's, of images that are within the bound that `vit_jax.data.decoding` sets.
  warnings.filterwarnings('ignore', 'Image size .* exceeds limit')
  _quieten_tracker()
  # By default Python looks for garbage after each 700 new objects; JAX makes millions that stay.
  gc.set_threshold(10_000)

  def main(argv):
    from vit_jax import compilation_cache  # imports JAX, which --help needs not

    compilation_cache.use()
    if host_memory.runs_on_cpu():
      host_memory.run_in_calling_thread()
    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.get_absl_handler().addFilter(_escape)
    # Orbax tells its every move to absl's logger, and raises its errors besides.
    logging.getLogger('absl').setLevel(logging.CRITICAL)
    interrupts.raise_exceptions()
    return command(*argv[1:])

  with _endings():
    if any(arg.lstrip('-') in _HELP for arg in sys.argv[1:] if arg.startswith('-')):
      print(_help(command), flush=True)
      sys.exit()
    if host_memory.runs_on_cpu():
      host_memory.reuse_freed_memory(in_calling_thread=True)
      _compile_faster()
    doc = sys.modules[command.__module__].__doc__
    app.run(main, flags_parser=functools.partial(parse_flags, arguments=arguments, doc=doc))
