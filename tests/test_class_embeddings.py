"""Zero-shot classifiers: the logits that transformers gives for the same embeddings of classes."""

import json

import numpy as np
import pytest
from small_vits import SQUARE, logits, random_images, random_variables

from vit_jax import class_embeddings, weights
from vit_jax.class_embeddings import ClassEmbeddings
from vit_jax.errors import FieldError, UsageError
from vit_jax.predictor import Predictor
from vit_jax.weights import files

SIZES = {
  'hidden_size': 16,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'intermediate_size': 24,
}
VISION = SIZES | {'image_size': 8, 'patch_size': 4}
TEXT = SIZES | {'vocab_size': 20, 'max_position_embeddings': 8}


@pytest.mark.parametrize('kind', ['CLIP', 'Siglip'])
def test_logits_are_those_of_transformers(tmp_path, kind):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  torch.manual_seed(0)
  config = getattr(transformers, f'{kind}Config')(vision_config=VISION, text_config=TEXT)
  model = getattr(transformers, f'{kind}Model')(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.1 * torch.randn(parameter.shape)
  model.save_pretrained(tmp_path)
  variables, config = weights.load(tmp_path)
  images, tokens = random_images(config), torch.randint(3, 20, (3, 8))
  with torch.no_grad():
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    expected = model(pixel_values=pixels, input_ids=tokens).logits_per_image.numpy()
    embeddings = model.get_text_features(tokens).pooler_output.numpy()
  path = tmp_path / 'classes.npz'
  np.savez(path, embeddings=embeddings, names=['cat', 'dög', 'cow'])
  classes = class_embeddings.complete(class_embeddings.read(path), tmp_path)
  assert (classes.logit_bias is not None) == (kind == 'Siglip')
  variables, config = class_embeddings.classify(variables, config, classes)
  found = logits(variables, config, images)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

  predictor = Predictor(variables, config)
  assert predictor.class_names == ('cat', 'dög', 'cow')
  pixels = np.uint8(np.clip(128 + 50 * images, 0, 255))
  scores = logits(variables, config, (pixels / 255 - 0.5).astype(np.float32) / 0.5)
  odds = np.exp(scores)
  likely = odds / (1 + odds if kind == 'Siglip' else odds.sum(-1, keepdims=True))
  np.testing.assert_allclose(predictor(list(pixels)), likely, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  ('own', 'expected'),
  [
    ({}, (2.0, -10.0)),
    ({'logit_scale': 1.5}, (1.5, -10.0)),
    ({'logit_bias': -3.0}, (2.0, -3.0)),
    ({'logit_scale': 0.0, 'logit_bias': 0.0}, (0.0, 0.0)),
  ],
)
def test_values_of_the_file_stand_before_the_checkpoint_s_each_by_itself(tmp_path, own, expected):
  scaling = {'logit_scale': np.float32(2), 'logit_bias': np.float32([-10])}
  path = tmp_path / 'siglip.safetensors'
  path.write_bytes(files.format_safetensors(scaling))
  classes = ClassEmbeddings(np.ones((2, 3), np.float32), **own)
  for format in (None, 'huggingface'):
    found = class_embeddings.complete(classes, path, format)
    assert (found.logit_scale, found.logit_bias) == expected
  _, config = class_embeddings.classify(random_variables(SQUARE), SQUARE, found)
  assert config.task['options'] == {'name': 'sigmoid'}


def test_values_that_a_checkpoint_of_another_format_lacks_stay_unknown(tmp_path):
  path = tmp_path / 'vit.npz'
  weights.save(random_variables(SQUARE), SQUARE, path, format='augreg')
  classes = ClassEmbeddings(np.ones((2, 3), np.float32), logit_scale=1.5)
  assert class_embeddings.complete(classes, path).logit_bias is None


@pytest.mark.parametrize('names', [None, ['a', 'b']])
def test_a_file_may_have_all_of_it(tmp_path, names):
  rng = np.random.default_rng(0)
  embeddings = rng.normal(size=(2, 3)).astype(np.float32)
  scaling = {'logit_scale': np.float32(2.5), 'logit_bias': np.float32([-1])}
  metadata = {} if names is None else {'names': json.dumps(names)}
  path = tmp_path / 'c.safetensors'
  path.write_bytes(files.format_safetensors({'embeddings': embeddings, **scaling}, **metadata))
  found = class_embeddings.read(path)
  np.testing.assert_array_equal(found.embeddings, embeddings)
  assert found.names == (names and tuple(names))
  assert (found.logit_scale, found.logit_bias) == (2.5, -1.0)


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({}, "no 'embeddings' of the shape"),
    ({'embeddings': np.ones(3)}, "no 'embeddings' of the shape"),
    ({'embeddings': np.ones((0, 3))}, "no 'embeddings' of the shape"),
    ({'embeddings': np.full((2, 3), np.nan)}, 'not finite'),
    ({'embeddings': np.zeros((2, 3))}, 'a row of zeros'),
    ({'embeddings': np.array([['a']])}, 'not numbers'),
    ({'embeddings': np.ones((2, 3)), 'names': ['a']}, '1 names for 2 embeddings'),
    ({'embeddings': np.ones((2, 3)), 'names': [1, 2]}, 'names is not a list of texts'),
    (
      {'embeddings': np.ones((2, 3)), 'logit_scale': np.ones(2)},
      r'logit_scale has the shape \(2,\)',
    ),
    ({'embeddings': np.ones((2, 3)), 'scale': np.ones(())}, 'scale: not embeddings, names'),
  ],
)
def test_mistakes_in_a_file_are_one_line(tmp_path, arrays, message):
  path = tmp_path / 'classes.npz'
  np.savez(path, **arrays)
  with pytest.raises(UsageError, match=rf'^{path}: .*{message}') as error:
    class_embeddings.read(path)
  assert '\n' not in str(error.value)


def test_other_files_and_other_widths_are_refused(tmp_path):
  with pytest.raises(UsageError, match=r'c\.txt: class embeddings are in \.npz or'):
    class_embeddings.read(tmp_path / 'c.txt')
  (tmp_path / 'c.npz').write_bytes(b'PK')
  with pytest.raises(UsageError, match=r'c\.npz: cannot be read as'):
    class_embeddings.read(tmp_path / 'c.npz')
  classes = ClassEmbeddings(np.ones((2, 5), np.float32), logit_scale=0.0)
  with pytest.raises(FieldError, match=r'class_embeddings: of width 5, but those of images have 3'):
    class_embeddings.classify(random_variables(SQUARE), SQUARE, classes)
