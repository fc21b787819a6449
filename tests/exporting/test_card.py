"""Cards, as huggingface_hub reads them."""

import json
import shutil

import pytest
from conftest import ROOT
from huggingface_hub import ModelCard
from PIL import Image
from small_vits import SQUARE, random_variables

from vit_jax import weights
from vit_jax.exporting import card

RUN = ROOT / 'tests' / 'kept_runs' / 'resnet'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run whose configuration names places of its user."""
  run = shutil.copytree(RUN, tmp_path_factory.mktemp('private') / 'run')
  config = json.loads((run / 'config.json').read_text())
  config['data']['dir'] = '/home/somebody/pictures'
  config['init_from'] = '~/weights/m.npz'
  (run / 'config.json').write_text(json.dumps(config))
  results = json.loads((run / 'results.json').read_text())
  results['command'] = (
    "python /home/somebody/train.py '--config=configs/resnet.py:resnet18,/home/somebody/my images' "
    '--workdir=~/runs/a --config.init_from=../somebody/m.npz --config.batch_size=16'
  )
  (run / 'results.json').write_text(json.dumps(results))
  return run


def test_the_card_of_a_run_has_metrics_curves_and_configuration(run, tmp_path):
  variables, config = weights.load(run)
  assert card.write(tmp_path, variables, config, str(run), 'owner/digits', 'apache-2.0') == ''
  read = ModelCard.load(tmp_path / 'README.md')
  best = json.loads((run / 'results.json').read_text())['best']
  measured = {f'{r.dataset_split}/{r.metric_type}': r.metric_value for r in read.data.eval_results}
  assert measured == {name: value for name, value in best.items() if name.startswith('test/')}
  assert {r.dataset_name for r in read.data.eval_results} == {'digits'}
  assert read.data.pipeline_tag == 'image-classification'
  assert (read.data.license, read.data.library_name) == ('apache-2.0', 'transformers')
  assert "ResNetForImageClassification.from_pretrained('owner/digits')" in read.text
  stated = json.loads(read.text.split('```json\n')[1].split('```')[0])
  assert stated['batch_size'] == json.loads((run / 'config.json').read_text())['batch_size']
  assert stated['data']['dir'] == 'pictures'
  assert Image.open(tmp_path / 'curves.png').width > 300
  assert not (tmp_path / 'attention.png').exists(), 'which a ResNet has not'
  command = "python train.py '--config=configs/resnet.py:resnet18,my images' --workdir=a "
  assert f'```sh\n{command}--config.init_from=m.npz --config.batch_size=16\n```' in read.text
  for private in ('somebody', '~', str(run)):
    assert private not in read.content


def test_the_card_of_weights_has_what_is_known(tmp_path):
  weights.save(random_variables(SQUARE), SQUARE, tmp_path / 'm.npz', format='augreg')
  variables = random_variables(SQUARE)
  assert card.write(tmp_path, variables, SQUARE, str(tmp_path / 'm.npz'), 'm', None) == ''
  read = ModelCard.load(tmp_path / 'README.md')
  assert read.data.license is None
  assert read.data.eval_results is None
  assert '2 layers of width 8, 2 heads, 4x4 patches, for images of 8x8, 3 classes' in read.text
  assert [line for line in read.text.splitlines() if line.startswith('## ')] == ['## Use']
  assert not list(tmp_path.glob('*.png'))


# Digits, of which a ViT sees one channel; its test split is no longer there in the second case.
@pytest.mark.parametrize(
  ('data', 'images', 'remark'),
  [
    ({}, True, 'attention.png: shows images of digits, test'),
    ({'test_split': 'gone'}, True, 'attention.png: not drawn (config.data.test_split: '),
    ({}, False, ''),
  ],
)
def test_the_card_of_a_run_shows_its_attention(tmp_path, data, images, remark):
  config = SQUARE.replace(channels=1, model=SQUARE.model.clone(num_classes=10))
  data = {'name': 'digits', 'train_split': 'train', 'test_split': 'test', 'dir': '', **data}
  (tmp_path / 'model.json').write_text('{}')
  fields = {'seed': 0, 'data': data, 'loss': {'name': 'softmax'}}
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  folder = tmp_path / 'new'
  folder.mkdir()
  found = card.write(
    folder, random_variables(config), config, str(tmp_path), 'm', None, images=images
  )
  assert remark in found
  assert bool(remark) == bool(found)
  is_drawn = (folder / 'attention.png').exists()
  assert is_drawn == (images and data['test_split'] != 'gone')
  text = (folder / 'README.md').read_text()
  assert ('![Attention over images of digits, test](attention.png)' in text) == is_drawn
  if is_drawn:
    assert 500 < Image.open(folder / 'attention.png').width < 1000
