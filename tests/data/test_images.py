"""Image files of every kind, decoded."""

import contextlib

import numpy as np
import pytest
from image_files import make_folder, pixels, save, smooth
from PIL import Image

from vit_jax.data import decode_image, load_source
from vit_jax.errors import UsageError


@pytest.mark.parametrize('suffix', ['png', 'bmp', 'webp'])
def test_lossless_colour(tmp_path, suffix):
  image = pixels(5, 9)
  kwargs = {'lossless': True} if suffix == 'webp' else {}
  np.testing.assert_array_equal(
    decode_image(save(tmp_path / f'a.{suffix}', image, **kwargs)), image
  )


def test_grey_is_one_channel_and_palette_is_colour(tmp_path):
  grey = pixels(4, 6, 1)
  np.testing.assert_array_equal(decode_image(save(tmp_path / 'a.png', grey))[..., 0], grey)
  Image.fromarray(smooth(16, 16)).quantize(16).save(tmp_path / 'p.gif')
  assert decode_image(tmp_path / 'p.gif').shape == (16, 16, 3)
  Image.fromarray(grey > 99).save(tmp_path / 'one_bit.png')
  np.testing.assert_array_equal(
    decode_image(tmp_path / 'one_bit.png')[..., 0], np.where(grey > 99, 255, 0)
  )


def test_channels_convert(tmp_path):
  grey, colour = pixels(4, 6, 1), pixels(4, 6)
  path = save(tmp_path / 'grey.png', grey)
  np.testing.assert_array_equal(decode_image(path, 3), np.repeat(grey[..., None], 3, -1))
  luma = decode_image(save(tmp_path / 'colour.png', colour), 1)[..., 0]
  np.testing.assert_allclose(luma, colour @ [0.299, 0.587, 0.114], atol=1)


def test_16_bit_png_keeps_the_high_byte(tmp_path):
  deep = np.array([[0, 255, 256], [32767, 32768, 65535]], np.uint16)
  decoded = decode_image(save(tmp_path / 'a.png', deep))
  np.testing.assert_array_equal(decoded[..., 0], [[0, 0, 1], [127, 128, 255]])


def test_cmyk_jpeg(tmp_path):
  image = smooth(32, 48)
  root = make_folder(tmp_path, splits=('.',))
  path = tmp_path / 'cat/cmyk.jpg'
  Image.fromarray(image).convert('CMYK').save(path, quality=98)
  np.testing.assert_allclose(decode_image(path).astype(int), image, atol=12)
  assert 'cat/cmyk.jpg' in load_source('folder', 'train', root).files


def test_a_jpeg_of_endless_scans_is_not_decoded(tmp_path):
  path = save(tmp_path / 'a.jpg', smooth(16, 16), progressive=True)
  content = path.read_bytes()
  last = content[content.rindex(b'\xff\xda') : -2]
  for more, is_refused in ((200, False), (300, True)):
    path.write_bytes(content[:-2] + more * last + content[-2:])
    with pytest.raises(UsageError, match='scans') if is_refused else contextlib.nullcontext():
      decode_image(path)


def test_transparency_is_laid_on_white(tmp_path):
  image = pixels(4, 5, 4)
  alpha = image[..., 3:] / 255
  expected = alpha * image[..., :3] + (1 - alpha) * 255
  decoded = decode_image(save(tmp_path / 'a.png', image))
  np.testing.assert_allclose(decoded, expected, atol=1)
  palette = Image.new('P', (3, 2), 1)
  palette.putpalette([255, 0, 0, 0, 0, 255])
  palette.save(tmp_path / 'p.png', transparency=1)
  np.testing.assert_array_equal(decode_image(tmp_path / 'p.png'), np.full((2, 3, 3), 255))


def oriented(image, orientation):
  """The stored pixels of which `image` is the upright view, by the definition of EXIF."""
  transposed = image.swapaxes(0, 1)
  return {
    1: image,
    2: image[:, ::-1],
    3: image[::-1, ::-1],
    4: image[::-1],
    5: transposed,
    6: transposed[::-1],
    7: transposed[::-1, ::-1],
    8: transposed[:, ::-1],
  }[orientation]


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(tmp_path, orientation):
  image = pixels(6, 11)
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = np.ascontiguousarray(oriented(image, orientation))
  path = save(tmp_path / 'train/a/a.png', stored, exif=exif)
  np.testing.assert_array_equal(decode_image(path), image)
  np.testing.assert_array_equal(decode_image(path, exif=False), stored)
  save(tmp_path / 'train/b/b.png', image)
  assert load_source('folder', 'train', str(tmp_path)).image_shape == (6, 11, 3)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp'])
@pytest.mark.parametrize('exif', [b'garbage', b'MM\x00*\x00\x00\x00\x08', b'\x00'])
def test_damaged_exif_is_ignored(tmp_path, suffix, exif):
  image = smooth(16, 24)
  path = save(tmp_path / f'a.{suffix}', image, quality=98, exif=b'Exif\x00\x00' + exif)
  np.testing.assert_allclose(decode_image(path).astype(int), image, atol=16)
