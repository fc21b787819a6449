"""What the commands share: flags in, one line and an exit code out where it goes wrong."""

import functools
import logging
import os
import re
import select
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from vit_jax import host_memory, requirements
from vit_jax.errors import UsageError, field_prefix, nearest
from vit_jax.run.ending import Interrupted, NonFiniteError


class _ExperimentParser(ConfigFileFlagParser):
  """Loads a config file, and gives it the fields of what other flags name: model, task, data set.

  So --config.task=localization brings --config.model.head.hidden_size along.
  """

  def parse(self, path: str) -> ConfigDict:
    """Returns the configuration that `path`, 'FILE.py' or 'FILE.py:ARG', stands for."""
    file = path.split(':')[0]
    if not os.path.isfile(file):
      there = [str(p) for p in sorted(Path('configs').glob('*.py'))]
      raise UsageError(f'--{self.name}: {file} does not exist{nearest(file, there)}')
    try:
      config = super().parse(path)
    except (TypeError, ValueError) as e:
      if isinstance(e.__context__, UsageError):  # a config's own, under what the loader wraps it in
        raise e.__context__ from None
      raise
    with config.unlocked():
      self._complete(config)
    return config

  def _complete(self, config: ConfigDict) -> None:
    from vit_jax import (
      config_fields,
      user_code,
    )  # imports JAX and the models, which not every command needs

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


def DEFINE_experiment(name: str, help_string: str) -> flags.FlagHolder[ConfigDict]:
  """Defines a flag for a config file, whose fields are set by --NAME.FIELD."""
  holder = config_flags.DEFINE_config_file(name, help_string=help_string)
  flags.FLAGS[name].parser = _ExperimentParser(name)
  return holder


def _flag_value(name: str) -> str | None:
  """Returns what the command line gives a flag: of several values the last, of none None."""
  found = re.findall(rf'(?:^|\n)--?{re.escape(name)}[=\n](.*)', '\n'.join(sys.argv[1:]))
  return found[-1] if found else None


def _fields(config: ConfigDict, prefix: str) -> list[str]:
  """Returns the dotted names of all fields."""
  names = []
  for key, value in config.items():
    names.append(f'{prefix}.{key}')
    if isinstance(value, ConfigDict):
      names += _fields(value, names[-1])
  return names


def _check_config_flags(argv: list[str]) -> None:
  """Raises UsageError for config files that aren't there and for fields that they don't have."""
  for name in flags.FLAGS:
    parser, path = flags.FLAGS[name].parser, _flag_value(name)
    if isinstance(parser, _ExperimentParser) and path:
      fields = _fields(parser.parse(path), name)
      for arg in argv:
        override = re.match(rf'--?(?:no)?({name}\.[\w.]*)', arg)
        if override and override[1] not in fields:
          raise UsageError(f'--{override[1]}: no such field{nearest(override[1], fields)}')


def _parse_flags(argv: list[str], arguments: Sequence[str]) -> list[str]:
  """absl's parser, its complaints as one line; unknown fields are told before it sees them.

  `arguments` are as for `run`.
  """
  try:
    _check_config_flags(argv[1:])
    rest = flags.FLAGS(argv)
  except (flags.Error, ValueError, TypeError) as e:
    mistake = e
    while mistake is not None and not isinstance(
      mistake, UsageError
    ):  # under what absl wraps it in
      mistake = mistake.__context__
    if mistake is None and not isinstance(e, flags.Error):
      raise  # a bug in the config's own code
    _fail(mistake or ' '.join(str(e).split()))
  given, open_ended = rest[1:], bool(arguments) and arguments[-1].rstrip(']').endswith('...')
  required = [name for name in arguments if not name.startswith('[')]
  if len(given) > len(arguments) and not open_ended:
    _fail(f'{given[len(arguments)]!r} is not a flag; flags are given as --name=value')
  if len(given) < len(required):
    _fail(f'{required[len(given)]} is missing; give {" ".join(arguments)}')
  return rest


def _fail(message: object, code: int = 2) -> NoReturn:
  path = Path(sys.argv[0])
  name = path.parent.name if path.name == '__main__.py' else path.name  # of a package
  print(f'{name}: {message}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  # All is closed. A normal exit would wait for other processes, which wait for this one, and run
  # the hooks of libraries that complain once more about a full disk.
  os._exit(code)


def _nobody_reads() -> bool:
  """Whether stdout is a pipe to a process that has closed it, as `head` does."""
  poll = select.poll()
  poll.register(sys.stdout, 0)
  return bool(poll.poll(0))


def run(command: Callable[..., int | None], arguments: Sequence[str] = ()) -> None:
  """Runs `command`, with every way to end that a person can cause as a line.

  It is called with what comes beside flags: a word for each of `arguments`, and any number from one
  on for a last name that ends in '...', or from none on where it stands in brackets.

  Exit codes: what `command` returns, 2 for mistakes (UsageError), 1 for a loss that isn't finite,
  128 plus the signal's number for SIGTERM, Ctrl-C and a closed pipe. Everything unforeseen keeps
  its traceback.
  """

  def main(argv):
    from vit_jax import compilation_cache  # imports JAX, which --help needs not

    compilation_cache.use()
    # Names of files and classes may be none that the terminal's encoding has.
    sys.stdout.reconfigure(errors='backslashreplace')
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Orbax tells its every move to absl's logger, and raises its errors besides.
    logging.getLogger('absl').setLevel(logging.CRITICAL)
    try:
      return command(*argv[1:])
    except UsageError as e:
      _fail(e)
    except ModuleNotFoundError as e:
      if advice := requirements.advice(e.name or ''):
        _fail(advice)
      raise
    except NonFiniteError as e:
      _fail(e, 1)
    except Interrupted as e:
      _fail(f'{e}; to go on: {shlex.join(["python", *sys.argv])}', 128 + e.signum)
    except KeyboardInterrupt:
      _fail('interrupted', 128 + signal.SIGINT)
    except BrokenPipeError:
      if not _nobody_reads():
        raise
      os._exit(128 + signal.SIGPIPE)

  if host_memory.runs_on_cpu():
    host_memory.reuse_freed_memory()
  app.run(main, flags_parser=functools.partial(_parse_flags, arguments=arguments))
