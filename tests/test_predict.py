"""python -m vit_jax.predict as a user runs it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from accuracies import assert_accuracy
from command_server import command_server
from conftest import ROOT, tiny_config, virtual_devices
from PIL import Image
from small_vits import SQUARE, random_variables

from vit_jax import class_embeddings, weights
from vit_jax.class_embeddings import ClassEmbeddings
from vit_jax.data import load_source
from vit_jax.data.images import decode_image
from vit_jax.models import Preprocessing
from vit_jax.predictor import Predictor
from vit_jax.train import loop


@pytest.fixture(scope='module')
def predict():
  """Runs the command; returns its exit code, output and errors."""
  with command_server('vit_jax.predict', 'IMAGE_OR_FOLDER...') as run:
    yield run


def start(*args, **options):
  """Starts the command in a process of its own."""
  command = [sys.executable, '-m', 'vit_jax.predict', *map(str, args)]
  pipe = subprocess.PIPE
  return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, **options)


@pytest.fixture(scope='module')
def flags(tmp_path_factory):
  """The flag for weights of random numbers, SQUARE's."""
  path = tmp_path_factory.mktemp('weights') / 'm.npz'
  weights.save(random_variables(SQUARE), SQUARE, path, format='augreg')
  return f'--weights={path}'


def save(path, size=(20, 31), mode='RGB', **options):
  """Writes an image of random pixels."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), dtype=np.uint8)
  Image.fromarray(pixels).convert(mode).save(path, **options)
  return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Images of all kinds, six of them, three damaged ones and a pipe, in a folder with a space."""
  root = tmp_path_factory.mktemp('images of all kinds')
  upside_down = Image.Exif()
  upside_down[0x0112] = 3
  save(root / 'cmyk.jpg', mode='CMYK')
  save(root / 'dir.jpg' / 'ü ñ.png', mode='L')
  save(root / 'one.gif', size=(1, 1))
  save(root / 'rgba.webp', mode='RGBA')
  save(root / 'rotated.jpg', exif=upside_down)
  Image.fromarray(np.arange(90, dtype=np.uint16).reshape(9, 10) * 700).save(root / 'sixteen.png')
  (root / 'empty.bmp').touch()
  os.mkfifo(root / 'pipe.jpg')
  (root / 'text.jpg').write_text('no image')
  whole = save(root / 'truncated.jpeg', size=(99, 99)).read_bytes()
  (root / 'truncated.jpeg').write_bytes(whole[: len(whole) // 2])
  save(root / '.hidden.png')
  return root


GOOD = ['cmyk.jpg', 'dir.jpg/ü ñ.png', 'one.gif', 'rgba.webp', 'rotated.jpg', 'sixteen.png']
DAMAGED = ['empty.bmp', 'pipe.jpg', 'text.jpg', 'truncated.jpeg']


def from_json(text):
  """The objects of an output of JSON Lines."""
  return [json.loads(line) for line in text.splitlines()]


def assert_predictions(line, probabilities, names, top=5):
  """A line of JSON says what the library computes."""
  order = np.argsort(-probabilities)[:top]
  assert [p['label'] for p in line['predictions']] == order.tolist()
  assert [p['class'] for p in line['predictions']] == [names[label] for label in order]
  values = [p['probability'] for p in line['predictions']]
  np.testing.assert_allclose(values, probabilities[order], atol=1e-5)


def test_weights_with_nan_are_named(predict, tmp_path, folder):
  variables = random_variables(SQUARE)
  variables['params']['cls'] = np.full_like(variables['params']['cls'], np.nan)
  weights.save(variables, SQUARE, tmp_path / 'w.npz', format='augreg')
  result = predict(f'--weights={tmp_path / "w.npz"}', folder / 'one.gif')
  assert result.returncode == 2
  problem = 'the weights have numbers that are not finite, in cls'
  assert result.stderr == f'predict.py: {tmp_path / "w.npz"}: {problem}\n'


def test_a_folder_in_json(predict, flags, folder):
  result = predict(flags, '--json', folder, '--batch_size=4')
  assert result.returncode == 1, 'some were damaged'
  lines = from_json(result.stdout)
  assert [line['image'] for line in lines] == [str(folder / n) for n in sorted(GOOD + DAMAGED)]
  good = [line for line in lines if 'predictions' in line]
  predictor = Predictor(random_variables(SQUARE), SQUARE)
  probabilities = predictor([decode_image(folder / name) for name in GOOD])
  for line, row in zip(good, probabilities, strict=True):
    assert line.keys() == {'image', 'predictions'}
    assert_predictions(line, row, ['class 0', 'class 1', 'class 2'])
  damaged = [line for line in lines if line not in good]
  assert [line['image'] for line in damaged] == [str(folder / name) for name in DAMAGED]
  assert all(line.keys() == {'image', 'error'} for line in damaged)
  assert result.stderr.splitlines() == [f'{line["image"]}: {line["error"]}' for line in damaged]


def test_a_table_has_a_row_of_each_file(predict, flags, folder, tmp_path):
  path = tmp_path / 'predictions.csv'
  result = predict(flags, f'--csv={path}', '--top=2', folder)
  assert (result.returncode, result.stdout) == (1, ''), 'some were damaged'
  with path.open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['image'] for row in rows] == [str(folder / n) for n in sorted(GOOD + DAMAGED)]
  assert {row['image'] for row in rows if row['error']} == {str(folder / n) for n in DAMAGED}
  good = [row for row in rows if not row['error']]
  predictor = Predictor(random_variables(SQUARE), SQUARE)
  probabilities = predictor([decode_image(folder / name) for name in GOOD])
  for row, expected in zip(good, probabilities, strict=True):
    labels = np.argsort(-expected)[:2]
    assert [row['class_1'], row['class_2']] == [f'class {label}' for label in labels]
    values = [float(row['probability_1']), float(row['probability_2'])]
    np.testing.assert_allclose(values, expected[labels], atol=1e-5)
  assert 'class_3' not in rows[0]


def test_a_table_that_cannot_be_written_is_refused_first(predict, flags, folder):
  result = predict(flags, '--csv=/nowhere/a.csv', folder)
  assert (result.returncode, result.stdout) == (2, '')
  assert result.stderr.endswith(
    '--csv: /nowhere/a.csv cannot be written (No such file or directory)\n'
  )


def test_text_is_the_path_and_a_line_for_each_class(predict, flags, folder, tmp_path):
  (tmp_path / 'names.txt').write_text('\ufeffcat\ndög\nblue whale\n', 'utf-8')
  result = predict(
    flags, '--top=2', f'--class_names={tmp_path}/names.txt', folder / GOOD[1], folder / GOOD[0]
  )
  assert (result.returncode, result.stderr) == (0, '')
  predictor = Predictor(random_variables(SQUARE), SQUARE)
  names, lines = ['cat', 'dög', 'blue whale'], []
  for path in (folder / GOOD[1], folder / GOOD[0]):
    (row,) = predictor([decode_image(path)])
    lines.append(str(path))
    lines += [f'{100 * row[i]:8.2f} %  {names[i]}' for i in np.argsort(-row)[:2]]
  assert result.stdout.splitlines() == lines


def test_names_that_move_the_cursor_are_escaped_in_text_alone(predict, tmp_path):
  names = ('one\ntwo', '\x1b[31mred', 'x' * 100_000)
  config = SQUARE.replace(class_names=names)
  weights.save(random_variables(SQUARE), config, tmp_path / 'm.safetensors', format='timm')
  images = [save(tmp_path / '\x1b]0;.png'), tmp_path / 'damaged\n.png']
  images[1].write_bytes(b'')
  flag = f'--weights={tmp_path}/m.safetensors'
  result = predict(flag, *images)
  first, *rows = result.stdout.splitlines()
  assert first == rf'{tmp_path}/\x1b]0;.png'
  assert sorted(row.split(' %  ')[1] for row in rows)[:2] == [r'\x1b[31mred', r'one\ntwo']
  assert max(map(len, rows)) <= 2000
  assert result.stderr.startswith(rf'{tmp_path}/damaged\n.png: not an image')
  exact = [json.loads(line) for line in predict(flag, '--json', *images).stdout.splitlines()]
  assert [line['image'] for line in exact] == [*map(str, images)]
  assert {entry['class'] for entry in exact[0]['predictions']} == {*names}


def test_damaged_files_are_not_in_text(predict, flags, folder):
  result = predict(flags, folder)
  assert result.returncode == 1
  assert [line for line in result.stdout.splitlines() if line[0] != ' '] == [
    str(folder / name) for name in GOOD
  ]
  assert result.stdout.count(' %  class ') == 3 * len(GOOD)
  unknown = 'not an image in BMP, GIF, JPEG, PNG or WebP'
  truncated, *others = reversed(result.stderr.splitlines())
  assert others == [
    f'{folder}/text.jpg: {unknown}',
    f'{folder}/pipe.jpg: not a regular file',
    f'{folder}/empty.bmp: {unknown}',
  ]
  assert truncated.startswith(f'{folder}/truncated.jpeg: image file is truncated')


def test_flags_win_over_what_a_file_says(predict, tmp_path, folder):
  said = Preprocessing(mean=(0.9,), std=(0.2,))
  config = SQUARE.replace(class_names=('cat', 'dog', 'cow'), preprocess=said)
  weights.save(random_variables(SQUARE), config, tmp_path / 'm.npz', format='augreg')
  (tmp_path / 'names.txt').write_text('a\nb\nc')
  result = predict(
    f'--weights={tmp_path}/m.npz',
    '--mean=0.1,0.2,0.3',
    '--std=0.4',
    '--crop=squash',
    '--crop_fraction=0.5',
    '--interpolation=nearest',
    '--rounding=nearest',
    '--dtype=float32',
    f'--class_names={tmp_path}/names.txt',
    '--json',
    folder / 'cmyk.jpg',
  )
  assert (result.returncode, result.stderr) == (0, '')
  given = {'crop': 'squash', 'interpolation': 'nearest', 'rounding': 'nearest'}
  said = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4,), crop_fraction=0.5, **given)
  predictor = Predictor(random_variables(SQUARE), SQUARE.replace(preprocess=said))
  (row,) = predictor([decode_image(folder / 'cmyk.jpg')])
  assert_predictions(*from_json(result.stdout), row, 'abc')


def test_classes_are_told_by_their_embeddings(predict, tmp_path, folder):
  tower = SQUARE.replace(pre_norm=True, patch_bias=False, num_classes=6)
  variables = random_variables(tower)
  variables['params']['output_projection']['bias'] *= 0
  weights.save(variables, tower, tmp_path / 'clip', format='huggingface')
  path, names = tmp_path / 'classes.npz', ['cat', 'dog', 'cow']
  embeddings = np.random.default_rng(0).normal(size=(3, 6))
  np.savez(path, embeddings=embeddings, names=names, logit_scale=1.5)
  given = f'--weights={tmp_path / "clip"}', f'--class_embeddings={path}'
  result = predict(*given, '--json', folder / GOOD[0])
  assert result.returncode == 0, result.stderr
  classes = ClassEmbeddings(embeddings, logit_scale=1.5)
  predictor = Predictor(*class_embeddings.classify(variables, tower, classes))
  (row,) = predictor([decode_image(folder / GOOD[0])])
  assert_predictions(*from_json(result.stdout), row, names)

  (tmp_path / 'names.txt').write_text('a\nb\nc\n')
  result = predict(*given, f'--class_names={tmp_path / "names.txt"}', folder / GOOD[0])
  assert {line.split()[-1] for line in result.stdout.splitlines()[1:]} == {'a', 'b', 'c'}

  np.savez(path, embeddings=embeddings)
  for flags, message in (
    (given, f'--class_embeddings: neither {path} nor {tmp_path / "clip"} has logit_scale'),
    (given[1:], 'give one of --workdir=RUN and --weights=PATH'),
    (
      given[:1],
      f'--class_embeddings: needed, since {tmp_path / "clip"} has no classes of its own',
    ),
  ):
    result = predict(*flags, folder)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [f'predict.py: {message}']


def test_a_lower_precision_is_another_number(predict, flags, folder):
  fine, coarse = (
    from_json(predict(flags, '--json', folder / 'cmyk.jpg', *dtype).stdout)[0]['predictions']
    for dtype in ((), ('--dtype=bfloat16',))
  )
  difference = abs(fine[0]['probability'] - coarse[0]['probability'])
  assert 0 < difference < 0.05


def test_of_several_classes_those_from_the_threshold_on_are_shown(predict, tmp_path, folder):
  """Of a run with the sigmoid loss: its own threshold, unless a flag gives another."""
  run = shutil.copytree(ROOT / 'tests' / 'kept_runs' / 'run', tmp_path / 'run')
  config = json.loads((run / 'config.json').read_text())
  config['loss'] |= {'name': 'sigmoid', 'threshold': 0.3}
  (run / 'config.json').write_text(json.dumps(config))
  (row,) = Predictor(*weights.load(run), loss='sigmoid')([decode_image(folder / 'cmyk.jpg')])
  counts = []
  for least in (0.3, float(np.median(row))):
    flag = [] if least == 0.3 else [f'--threshold={least}']
    result = predict(f'--workdir={run}', '--json', '--top=1', *flag, folder / 'cmyk.jpg')
    (line,) = from_json(result.stdout)
    expected = [i for i in np.argsort(-row).tolist() if row[i] >= least]
    assert line['classes'] == [f'{i}' for i in expected]
    assert [p['label'] for p in line['predictions']] == (expected or [row.argmax()])
    assert line['threshold'] == least
    counts.append(len(expected))
  assert counts == [10, 5]


MISTAKES = {
  'no image': (
    ['WEIGHTS'],
    'IMAGE_OR_FOLDER... is missing, as in: python -m vit_jax.predict --workdir=',
  ),
  'no weights': (['IMAGE'], 'give one of --workdir=RUN and --weights=PATH'),
  'both': (['WEIGHTS', '--workdir=x', 'IMAGE'], 'give one of --workdir=RUN and --weights=PATH'),
  'no such path': (['WEIGHTS', 'IMAGE', 'TMP/nowhere'], 'TMP/nowhere: no such image or folder'),
  'no images': (['WEIGHTS', 'TMP/empty'], 'TMP/empty: no images in this folder (.bmp, '),
  'no such weights': (['--weights=TMP/m.npz', 'IMAGE'], 'TMP/m.npz: no such file'),
  'lacking weights': (
    ['--weights=TMP/lacking.npz', '--allow=.*norm/bias', 'IMAGE'],
    '--allow: TMP/lacking.npz: without Transformer/encoder_norm/bias nothing is computed',
  ),
  'no head': (['--weights=TMP/headless.npz', 'IMAGE'], 'the model has no classification head'),
  'no run': (
    ['--workdir=TMP/empty', 'IMAGE'],
    'TMP/empty holds no run (no config.json)',
  ),
  'weights as a run': (
    ['--workdir=TMP/huggingface', 'IMAGE'],
    'TMP/huggingface holds no run (config.json names no loss); weights go to --weights',
  ),
  'top': (['WEIGHTS', 'IMAGE', '--top=0'], "--top: '0' is not a positive integer"),
  'threshold': (
    ['WEIGHTS', 'IMAGE', '--threshold=0.4'],
    "--threshold: 0.4, but 'softmax' predicts one class",
  ),
  'batch': (['WEIGHTS', 'IMAGE', '--batch_size=0'], "--batch_size: '0' is not a positive"),
  'crop': (['WEIGHTS', 'IMAGE', '--crop=centre'], "--crop: 'centre' is not one of resize, central"),
  'no margin': (
    ['WEIGHTS', 'IMAGE', '--crop_fraction=0.9'],
    '--crop_fraction: only --crop=central, squash, border leave a margin out',
  ),
  'no fraction': (
    ['WEIGHTS', 'IMAGE', '--crop=central', '--crop_fraction=2.5'],
    '--crop_fraction: 2.5 is not a number above 0 and up to 2',
  ),
  'no number': (['WEIGHTS', 'IMAGE', '--mean=0.5,x'], "--mean: '0.5,x' is not a number or one per"),
  'not finite': (['WEIGHTS', 'IMAGE', '--std=inf'], "--std: 'inf' is not a number"),
  'channels': (['WEIGHTS', 'IMAGE', '--std=1,2'], '--std: 2 values, but images have 3 channels'),
  'names': (
    ['WEIGHTS', 'IMAGE', '--class_names=TMP/names.txt'],
    '--class_names: TMP/names.txt has 2 lines, and the model 3 classes',
  ),
  'no names': (['WEIGHTS', 'IMAGE', '--class_names=TMP/x'], 'TMP/x: no such file'),
  'names in bytes': (
    ['WEIGHTS', 'IMAGE', '--class_names=TMP/headless.npz'],
    '--class_names: TMP/headless.npz is not text in UTF-8',
  ),
  'flag': (['WEIGHTS', 'IMAGE', '--jsn'], "Unknown command line flag 'jsn'. Did you mean: json"),
}


@pytest.fixture(scope='module')
def surroundings(tmp_path_factory):
  """A folder with what the mistakes above need."""
  root = tmp_path_factory.mktemp('mistakes')
  (root / 'empty').mkdir()
  (root / 'names.txt').write_text('cat\ndog\n')
  headless = SQUARE.replace(num_classes=0)
  weights.save(random_variables(headless), headless, root / 'headless.npz', format='augreg')
  weights.save(random_variables(SQUARE), SQUARE, root / 'huggingface', format='huggingface')
  weights.save(random_variables(SQUARE), SQUARE, root / 'whole.npz', format='augreg')
  tensors = dict(np.load(root / 'whole.npz'))
  del tensors['Transformer/encoder_norm/bias']
  np.savez(root / 'lacking.npz', **tensors)
  return root


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_end_in_one_line_and_exit_code_2(predict, flags, folder, surroundings, mistake):
  args, message = MISTAKES[mistake]
  image = str(folder / 'cmyk.jpg')
  args = [{'WEIGHTS': flags, 'IMAGE': image}.get(arg, arg) for arg in args]
  result = predict(*(arg.replace('TMP', str(surroundings)) for arg in args))
  assert (result.returncode, result.stdout) == (2, '')
  lines = [line for line in result.stderr.splitlines() if 'left out, as allowed' not in line]
  assert len(lines) == 1
  assert lines[0].startswith('predict.py: ')
  assert message.replace('TMP', str(surroundings)) in lines[0]


def test_help_shows_all_flags(predict):
  result = predict('--help')
  assert (result.returncode, result.stderr) == (0, '')
  for text in (
    'python -m vit_jax.predict',
    '--top: Classes to show of each image. Default: 5.',
    '--mean: ',
  ):
    assert text in result.stdout


# What needs a process of its own.


def test_eight_devices_give_the_numbers_of_one(predict, flags, folder):
  eight = start(
    flags,
    '--json',
    folder,
    '--batch_size=3',
    env=virtual_devices(8),
  )
  out, err = eight.communicate(timeout=120)
  assert eight.returncode == 1
  one = predict(flags, '--json', folder)
  assert err == one.stderr
  for line, expected in zip(from_json(out), from_json(one.stdout), strict=True):
    assert line['image'] == expected['image']
    assert line.get('error') == expected.get('error')
    for prediction, other in zip(
      line.get('predictions', []), expected.get('predictions', []), strict=True
    ):
      assert prediction['class'] == other['class']
      assert prediction['probability'] == pytest.approx(other['probability'], abs=1e-6)


@pytest.fixture(scope='module')
def many(tmp_path_factory):
  """A folder of more images than a pipe holds the results of."""
  root = tmp_path_factory.mktemp('many')
  first = save(root / '0000.png')
  for i in range(1, 1000):
    os.link(first, root / f'{i:04}.png')
  return root


def test_a_closed_pipe_and_ctrl_c_end_it_quietly(flags, many):
  closed, interrupted = (start(flags, '--json', many, '--batch_size=1') for _ in range(2))
  for process in (closed, interrupted):
    assert json.loads(process.stdout.readline())['image'] == str(many / '0000.png')
  closed.stdout.close()
  interrupted.send_signal(signal.SIGINT)
  _, err = interrupted.communicate(timeout=60)
  assert (interrupted.returncode, err) == (130, 'predict.py: interrupted\n')
  assert closed.wait(timeout=60) == 128 + signal.SIGPIPE
  assert closed.stderr.read() == ''
  closed.stderr.close()


# Runs.


def write_digits(root, counts):
  """Writes scikit-learn's digits as a folder of images, with splits."""
  for split, count in counts.items():
    source = load_source('digits', split)
    for i in range(count):
      record = source[i]
      path = root / split / f'digit {record["label"]}' / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(record['image'][:, :, 0]).save(path)


MODELS = {
  # The images as they are stored, and what is evaluated is a moving average.
  'vit': {'ema_decay': 0.5, 'num_steps': 30},
  # All that a run can say about its images, and a loss that makes other probabilities.
  'sigmoid': {
    'data.image_size': (8, 12),
    'data.channels': 3,
    'data.crop': 'central',
    'data.crop_fraction': 0.7,
    'data.mean': (0.3, 0.4, 0.5),
    'data.std': (0.5, 0.6, 0.7),
    'loss.name': 'sigmoid',
    'num_steps': 400,
  },
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """The folder of images, and of a run of each model on them."""
  root = tmp_path_factory.mktemp('runs')
  write_digits(root / 'images', {'train': 300, 'test': 70})
  common = {'data.name': 'folder', 'data.dir': str(root / 'images'), 'eval_every': 100}
  for name, changes in MODELS.items():
    config = tiny_config(**common, **changes, **{'optimizer.learning_rate': 1e-2})
    loop.train_and_evaluate(config, root / name)
  return root


@pytest.mark.parametrize('name', MODELS)
def test_a_run_predicts_with_the_accuracy_that_it_reported(predict, runs, name):
  images, workdir = runs / 'images', runs / name
  accuracy = json.loads((workdir / 'results.json').read_text())['best']['test/accuracy']
  assert 0.2 < accuracy < 1, 'something was learnt, and not all'

  outputs = []
  for flag in ('--workdir', '--weights'):
    result = predict(f'{flag}={workdir}', '--json', '--top=99', images / 'test')
    assert (result.returncode, result.stderr) == (0, '')
    outputs.append(result.stdout)
  assert outputs[0] == outputs[1]
  lines = from_json(outputs[0])
  assert len(lines) == 70
  said = [{p['class']: p['probability'] for p in line['predictions']} for line in lines]
  classes = [f'digit {i}' for i in range(10)]
  assert all(sorted(probabilities) == classes for probabilities in said)
  scores = [[probabilities[name] for name in classes] for probabilities in said]
  assert_accuracy(accuracy, scores, [classes.index(line['image'].split('/')[-2]) for line in lines])
  sums = np.sum(scores, axis=1)
  if name == 'sigmoid':
    assert max(abs(total - 1) for total in sums) > 0.01
  else:
    np.testing.assert_allclose(sums, 1, atol=1e-5)
