"""Boxes stay round their objects, wherever images are cropped, resized, flipped, moved, batched."""

import jax
import numpy as np
import pytest
import yolo_folders
from image_files import augmentations, corners
from image_files import keys as make_keys

from vit_jax.data import augment, load_source, loader, make_preprocess
from vit_jax.data.kinds import box as boxes
from vit_jax.errors import FieldError


def drawn(count, size=(24, 32), seed=0):
  rng = np.random.default_rng(seed)
  images, labels, drawn_boxes = zip(
    *[yolo_folders.draw(rng, *size) for _ in range(count)], strict=True
  )
  return np.stack(images), np.array(labels), np.stack(drawn_boxes)


@pytest.mark.parametrize(
  ('window', 'expected'),
  [
    ((0, 0, 1, 1), (0.5, 0.4, 0.2, 0.4)),
    ((0.4, 0.2, 0.6, 0.6), (0.5, 0.5, 1, 1)),
    ((0, 0, 0.5, 1), (0.9, 0.4, 0.2, 0.4)),  # the right half of it is outside
    ((-0.5, 0, 1.5, 1), (0.5, 0.4, 0.1, 0.4)),
    ((0.7, 0, 1, 1), (0, 0.4, 0, 0.4)),  # all of it is
  ],
)
def test_a_box_in_fractions_of_a_window(window, expected):
  box = np.float32((0.5, 0.4, 0.2, 0.4))
  inside = boxes.into_window(box, window)
  assert inside.dtype == np.float32
  np.testing.assert_allclose(inside, expected, atol=1e-6)
  share = expected[2] * (window[2] - window[0]) * expected[3] * (window[3] - window[1]) / 0.08
  assert boxes.visible_share(box, window) == pytest.approx(share, abs=1e-6)


def test_out_of_a_window_is_the_inverse():
  window, (_, _, drawn_boxes) = (-0.25, -0.5, 1.5, 1.25), drawn(20)
  inside = np.stack([boxes.into_window(box, window) for box in drawn_boxes])
  np.testing.assert_allclose(boxes.out_of_window(inside, window), drawn_boxes, atol=1e-6)


@pytest.mark.parametrize(
  ('crop', 'train'), [('resize', True), ('central', False), ('inception', True)]
)
@pytest.mark.parametrize('size', [(40, 60), (80, 30)])
def test_preprocessing_moves_the_box_with_its_object(crop, train, size):
  preprocess = make_preprocess((96, 64), 3, crop, train)
  cut = 0
  for i, (image, label, box) in enumerate(zip(*drawn(40, size), strict=True)):
    record = preprocess({'image': image, 'label': label, 'box': box}, np.random.default_rng(i))
    assert record['label'] == label
    assert record['box'].dtype == np.float32
    cut += not np.array_equal(record['box'], box)
    if record['box'][2:].min() > 0.1:
      found = yolo_folders.bounds(record['image'])
      np.testing.assert_allclose(corners(record['box']), corners(found), atol=1.5 / 64)
  assert cut == 0 if crop == 'resize' else cut > 35


GOOD, POOR, NONE = (16, 16, 32, 32), (22, 0, 32, 32), (0, 0, 10, 32)  # of the box below


@pytest.mark.parametrize(
  ('parts', 'expected'),
  [
    ([GOOD], (0, 0, 0.5, 0.5)),
    ([NONE, POOR, NONE, GOOD], (0, 0, 0.5, 0.5)),
    ([POOR] * 9 + [GOOD], (0, 0, 0.5, 0.5)),
    ([POOR] * 10, (16 / 32, 16 / 32, 24 / 32, 24 / 32)),  # the whole image
  ],
)
def test_random_parts_that_show_less_than_half_of_the_object_are_drawn_again(
  monkeypatch, parts, expected
):
  drawn_parts = iter(parts)
  monkeypatch.setattr('vit_jax.data.preprocess.inception_box', lambda *_: next(drawn_parts))
  box = np.float32((20 / 32, 20 / 32, 8 / 32, 8 / 32))
  record = {'image': np.zeros((32, 32, 3), np.uint8), 'label': 0, 'box': box}
  preprocess = make_preprocess((8, 8), 3, 'inception', train=True)
  moved = preprocess(record, np.random.default_rng(0))['box']
  np.testing.assert_allclose(corners(moved), expected, atol=1e-6)
  assert next(drawn_parts, None) is None


AUGMENTATIONS = {
  'crop': {'crop_padding': 6},
  'flip': {'flip': True},
  'shift': {'shift': 9},
  'all': {'crop_padding': 4, 'flip': True, 'shift': 5},
  'colours': {'flip': True, 'color_jitter': {'brightness': 0.2, 'contrast': 0.2, 'hue': 0.02}},
}


def run_augment(fields, images, labels, drawn_boxes, seed=0):
  config = augmentations(**fields)
  batch = {'image': images, 'label': labels, 'id': np.arange(len(images))}
  if drawn_boxes is not None:
    batch['box'] = drawn_boxes
  keys = make_keys(len(images), seed)
  return jax.jit(lambda keys, batch: augment.augment(config, keys, batch, 3, (0.0,), (1.0,)))(
    keys, batch
  )


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_augmented_boxes_bound_their_objects(name):
  images, labels, drawn_boxes = drawn(300)
  batch = run_augment(AUGMENTATIONS[name], images, labels, drawn_boxes)
  moved, ends = np.asarray(batch['box']), corners(np.asarray(batch['box']))
  assert moved.dtype == np.float32
  assert -1e-6 <= ends.min() <= ends.max() <= 1 + 1e-6
  found = np.stack([yolo_folders.bounds(np.asarray(i), threshold=0.35) for i in batch['image']])
  np.testing.assert_allclose(ends, corners(found), atol=1e-5)
  assert (np.abs(moved - drawn_boxes).max(-1) > 1e-3).mean() > 0.3
  np.testing.assert_array_equal(batch['id'], np.arange(300))


def test_objects_at_the_border_keep_their_centre_in_the_image():
  image = np.zeros((10, 10, 3), np.uint8)
  image[:2, 8:] = 255
  count = 400
  box = np.tile(np.float32((0.9, 0.1, 0.2, 0.2)), (count, 1))
  images = np.tile(image, (count, 1, 1, 1))
  batch = run_augment({'shift': 6}, images, np.zeros(count, np.int32), box)
  sizes = np.asarray(batch['box'])[:, 2:]
  assert sizes.min() == pytest.approx(0.1)  # never less than half of a side
  bright = (np.asarray(batch['image'])[..., 0] > 0.5).sum((1, 2))
  np.testing.assert_allclose(bright, 100 * sizes.prod(-1), atol=1e-3)
  # Moves that keep it whole are all there, as without boxes.
  whole = np.asarray(batch['box'])[sizes.min(-1) > 0.15, :2]
  assert len(np.unique(whole.round(3), axis=0)) > 30


def test_images_are_augmented_alike_with_boxes_and_without():
  images, labels, _ = drawn(20, seed=1)
  inside = np.tile(np.float32((0.5, 0.5, 0.1, 0.1)), (20, 1))  # nothing gives way to it
  fields = AUGMENTATIONS['all']
  with_boxes = run_augment(fields, images, labels, inside)['image']
  batch = run_augment(fields, images, labels, None)
  assert batch.keys() == {'image', 'label', 'id'}
  np.testing.assert_allclose(batch['image'], with_boxes, atol=1e-6)  # they are two programs


NO_BOXES = {
  'rand_augment.num_ops': {'rand_augment': {'num_ops': 2}},
  'mixup_alpha': {'mixup_alpha': 0.2},
  'cutmix_alpha': {'cutmix_alpha': 1.0},
}


@pytest.mark.parametrize('field', NO_BOXES)
def test_what_leaves_no_boxes_drops_them_or_is_refused(field):
  batch = run_augment(NO_BOXES[field], *drawn(4))
  assert 'box' not in batch
  config = augmentations(**NO_BOXES[field])
  augment.validate(config, ['label'])
  with pytest.raises(FieldError, match=rf'^{field}: .*, but the task has boxes'):
    augment.validate(config, ['label', 'box'])


def test_erasing_leaves_boxes_alone():
  images, labels, drawn_boxes = drawn(8)
  fields = {'random_erasing': {'probability': 1.0}}
  batch = run_augment(fields, images, labels, drawn_boxes)
  np.testing.assert_array_equal(batch['box'], drawn_boxes)
  assert (np.asarray(batch['image']) == 0).any()


OPTIONS = {
  'num_devices': 1,
  'process_index': 0,
  'process_count': 1,
  'num_workers': 0,
  'num_threads': 2,
  'prefetch': 1,
}


def test_loaders_carry_boxes(tmp_path):
  source = load_source('yolo', 'train', str(yolo_folders.write(tmp_path / 'set', {'train': 7})))
  preprocess = make_preprocess((), 0, 'resize', train=False)
  resident, streamed = (
    loader.train_loader(source, preprocess, batch_size=4, seed=0, resident=r, **OPTIONS)
    for r in (True, False)
  )
  index = resident.indices(0, 3)['index']
  batches = streamed.batches()
  for step in range(3):
    batch = next(batches)
    assert batch['box'].shape == (1, 4, 4)
    assert batch['box'].dtype == np.float32
    for name in ('image', 'label', 'box'):
      np.testing.assert_array_equal(batch[name], resident.arrays[name][index[:, step]])
    for image, box in zip(batch['image'][0], batch['box'][0], strict=True):
      np.testing.assert_allclose(box, yolo_folders.bounds(image), atol=1e-6)
  batches.close()
