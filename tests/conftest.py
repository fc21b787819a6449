"""What all tests share: a compilation cache, and train.py as a user runs it."""

import gc
import itertools
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from training_process import TrainingProcess

ROOT = Path(__file__).resolve().parent.parent

# Tracing makes many objects, and few of them are garbage that only a collection finds.
gc.set_threshold(100_000, 50, 1000)

# Started in the background by a shell, tests ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before JAX is imported, and inherited by every process that a test starts.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# A folder for each of pytest's processes: what one is writing, another can't read.
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(
  ROOT / '.pytest_cache' / 'jax' / os.environ.get('PYTEST_XDIST_WORKER', '')
)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'


def _quick_flags():
  """Those with which XLA compiles fast, and to slower code: the second where it knows it."""
  level = '--xla_backend_optimization_level=0'
  both = f'{level} --xla_cpu_use_fusion_emitters=false'
  start = [sys.executable, '-c', 'import jax; jax.devices()']
  started = subprocess.run(start, env={**os.environ, 'XLA_FLAGS': both}, capture_output=True)
  return level if started.returncode else both


if 'QUICK_XLA_FLAGS' not in os.environ:  # nor in a parent process
  os.environ['QUICK_XLA_FLAGS'] = _quick_flags()
os.environ.setdefault('XLA_FLAGS', os.environ['QUICK_XLA_FLAGS'])

# Files and folders that `-m "not slow"` leaves out: commands, whole runs, and much to compile.
SLOW = (
  'comparison',
  'data/augment',
  'data/kinds/test_pictures.py',
  'data/test_loader.py',
  'end_to_end',
  'explain',
  'exporting',
  'models/heads',
  'models/layers/test_vector_neurons.py',
  'models/test_bit.py',
  'models/test_hybrid.py',
  'models/test_models_against_numpy.py',
  'models/test_token_learner.py',
  'models/test_vivit.py',
  'models/test_vnt.py',
  'run/test_checkpoints.py',
  'tasks/test_segmentation.py',
  'tasks/test_task.py',
  'test_benchmark.py',
  'test_cli.py',
  'test_compare.py',
  'test_convert.py',
  'test_experiment_configs.py',
  'test_export.py',
  'test_features.py',
  'test_no_tensorflow.py',
  'test_predict.py',
  'test_predictor.py',
  'test_preview.py',
  'test_windows.py',
  'train',
  'weights/formats/test_run.py',
  'weights/tables',
  'weights/test_adapt.py',
)


# Tests that show in more cases what others show in one; they run with `-m sweep` alone.
SWEEPS = (
  'comparison/test_timm_sides.py',
  'end_to_end/test_bit.py',
  'end_to_end/test_mobilevit.py',
  'end_to_end/test_notebook.py::test_it_runs_to_its_end',
  'explain/test_main.py::test_a_model_that_localizes_is_explained',
  'exporting/test_onnx.py::test_every_model_is_exported',
  'exporting/test_onnx.py::test_what_the_converter',
  'models/test_naflex.py',
  'models/test_swin.py::test_any_image_goes_through_and_has_gradients',
  'run/test_checkpoints.py::test_any_flipped_byte',
  'test_attacks.py::test_what_is_damaged',
  'test_attacks.py::test_a_killed_run',
  'test_benchmark.py::test_a_model_without_logits_has_no_twin',
  'test_benchmark.py::test_the_time_to_the_first_step',
  'test_benchmark.py::test_virtual_devices',
  'test_experiment_configs.py::test_trains_and_cites',
  'train/test_describe.py::test_every_config_is_described',
  'train/test_devices.py::test_eight_devices_stream',
  'train/test_devices.py::test_two_processes_spread_the_state_and_resume',
  'train/test_devices.py::test_two_processes_start_from_the_weights_of_a_run_and_stream',
  'train/test_dino_runs.py::test_eight_devices',
  'train/test_label_runs.py::test_several_classes_an_image_of_tfds',
  'train/test_loop.py::test_named_configs_train',
  'train/test_model_state.py::test_eight_devices_train_a_mobilevit',
  'train/test_peers.py::test_killed_while_training',
  'train/test_point_runs.py::test_a_run_is_explained',
  'train/test_segmentation_runs.py::test_eight_devices',
  'train/test_shard.py::test_a_run_goes_on_with_another_number_of_devices',
  'train/test_shard.py::test_any_optimiser_model_and_task_is_spread',
  'train/test_simmim_runs.py::test_eight_devices',
  'weights/test_hostile.py::test_every_change',
  'weights/tables/test_hf_models.py::test_every_field_of_config_json_counts',
  'weights/tables/test_hf_models.py::test_variants_agree_both_ways',
  'weights/tables/test_timm_vit.py::test_generated_outputs_and_facts_are_those_of_timm',
  'weights/tables/test_timm_vit.py::test_timm_computes_the_same_and_takes_it_back',
  'weights/formats/test_image_processors.py::test_all_that_is_read',
  'weights/formats/test_timm_pixels.py::test_all_that_is_published',
)


def pytest_collection_modifyitems(config, items):
  """Marks the tests in `SLOW` and `SWEEPS`, and leaves the latter out unless `-m` names them."""
  slow = [ROOT / 'tests' / name for name in SLOW]
  wanted = 'sweep' in config.option.markexpr
  for item in items:
    name = f'{item.path.relative_to(ROOT / "tests").as_posix()}::{item.originalname}'
    if any(item.path.is_relative_to(path) for path in slow):
      item.add_marker('slow')
    if name.startswith(SWEEPS):
      item.add_marker('sweep')
  if not wanted:
    items[:] = [item for item in items if item.get_closest_marker('sweep') is None]


# A model and a run that take no time, on real digits.
TINY = (
  '--config=configs/digits.py',
  '--config.model.hidden_size=16',
  '--config.model.mlp_dim=16',
  '--config.model.num_layers=1',
  '--config.model.num_heads=2',
  '--config.model.patches.size=(4,4)',
  '--config.schedule.warmup_steps=0',
  '--config.batch_size=64',
)


def tiny_config(**changes):
  """The configuration of such a run, for tests in this process."""
  from configs import digits

  config = digits.get_config()
  config.model.update(hidden_size=16, mlp_dim=16, num_layers=1, num_heads=2)
  config.model.patches.size = (4, 4)
  config.schedule.warmup_steps = 0
  config.batch_size = 64
  config.update_from_flattened_dict(changes)
  return config


def virtual_devices(count):
  """The environment of a process with so many CPU devices."""
  flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={count}'
  return {**os.environ, 'XLA_FLAGS': flags}


def start_training(*args, tiny=True, devices=1, quick=True):
  """Starts train.py in the repository's root, with `devices` virtual CPU devices.

  Unless `quick`, it is compiled as users' runs are.
  """
  environment = virtual_devices(devices)
  if not quick:
    environment['XLA_FLAGS'] = environment['XLA_FLAGS'].replace(os.environ['QUICK_XLA_FLAGS'], '')
  return TrainingProcess([*(TINY if tiny else ()), *map(str, args)], environment, cwd=ROOT)


def free_port():
  """A port of this machine at which nobody serves."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


_FILES = itertools.count(1)


@pytest.fixture(autouse=True, scope='module')
def _forget_what_was_compiled():
  """Keeps memory down; files have traces of jax.numpy's functions in common, but little else."""
  yield
  if next(_FILES) % 8 == 0:
    import jax  # which reads the environment above

    jax.clear_caches()


@pytest.fixture
def brief_ends(monkeypatch):
  """Runs in this process end without counting operations and drawing curves.

  For files with many runs; those that fixtures of modules keep count and draw.
  """
  from vit_jax.run.writers import MetricWriter
  from vit_jax.train.experiment import Experiment

  monkeypatch.setattr(Experiment, 'flops_per_image', lambda *_: {})
  monkeypatch.setattr(MetricWriter, 'draw', lambda *_: None)


@pytest.fixture(scope='session')
def train():
  """Runs train.py to its end; returns its exit code, output and errors."""

  def run(*args, **options):
    process = start_training(*args, **options)
    out, err = process.communicate()
    return subprocess.CompletedProcess(args, process.returncode, out, err)

  return run


@pytest.fixture(scope='session')
def tfds_dir():
  """The folder of prepared TFDS data sets."""
  path = os.environ.get('TFDS_DATA_DIR')
  if not path or not (Path(path) / 'mnist').is_dir() or not (Path(path) / 'cifar10').is_dir():
    pytest.skip('needs mnist and cifar10, prepared by TFDS, in $TFDS_DATA_DIR')
  return path
