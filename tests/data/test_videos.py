"""Video files and folders of frames: which frames they have, in which order, and damaged ones."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image
from video_files import CODECS, frames, write_video

from vit_jax.data import videos
from vit_jax.errors import UsageError


@pytest.mark.parametrize('name', [*(f'a.{suffix}' for suffix in CODECS), 'a.gif', 'folder'])
def test_frames_are_those_written_whichever_are_taken(tmp_path, name):
  written = frames(11)
  video = videos.open_video(write_video(tmp_path / name, written))
  assert video.shape == (11, 32, 48, 3)
  assert len(pickle.loads(pickle.dumps(video))) == 11
  read = np.asarray(video)
  assert read.dtype == np.uint8
  assert np.abs(read.astype(int) - written).mean() < 4, 'compressed'
  for indices in ([0], [10, 3, 3], [7]):
    np.testing.assert_array_equal(video[np.array(indices)], read[indices])
  assert videos.probe_video(tmp_path / name) == video.shape


def test_grey_and_colour(tmp_path):
  grey = np.repeat(frames(3)[..., :1], 3, axis=-1)
  write_video(tmp_path / 'grey.mkv', grey, pix_fmt='gray')
  np.testing.assert_array_equal(videos.open_video(tmp_path / 'grey.mkv'), grey[..., :1])
  np.testing.assert_array_equal(videos.open_video(tmp_path / 'grey.mkv', 3), grey)
  colour = write_video(tmp_path / 'colour.gif', frames(3))
  luma = [np.asarray(Image.fromarray(f).convert('L'))[..., None] for f in frames(3)]
  assert np.abs(np.asarray(videos.open_video(colour, 1)).astype(int) - luma).max() <= 2


def test_a_display_matrix_turns_frames_upright(tmp_path):
  """Phones store videos as the sensor sees them, and a matrix beside."""
  path, written = tmp_path / 'a.mp4', frames(2)
  data = bytearray(write_video(path, written).read_bytes())
  matrix = data.index(b'tkhd') + 44
  one = 1 << 16
  clockwise = np.array([0, one, 0, -one, 0, 0, 0, 0, 1 << 30], '>i4')
  data[matrix : matrix + 36] = clockwise.tobytes()
  path.write_bytes(data)
  video = videos.open_video(path)
  assert video.shape == (2, 48, 32, 3)
  turned = np.rot90(written, -1, axes=(1, 2)).astype(int)
  assert np.abs(np.asarray(video) - turned).mean() < 4


def test_frames_in_a_folder_are_in_the_order_of_their_numbers(tmp_path):
  written = frames(12)
  folder = write_video(tmp_path / 'clip', written)
  (folder / '.hidden.png').write_text('no frame')
  (folder / 'notes.txt').write_text('no frame')
  assert sorted(folder.glob('frame*'))[1].name == 'frame1.png'
  assert sorted(folder.glob('frame*'))[2].name == 'frame10.png'
  np.testing.assert_array_equal(videos.open_video(folder), written)
  Image.fromarray(written[0, :8]).save(folder / 'frame12.png')
  with pytest.raises(UsageError, match='frames differ in size'):
    videos.probe_video(folder)
  with pytest.raises(UsageError, match='clip: its frames differ in size'):
    np.asarray(videos.open_video(folder))


@pytest.mark.parametrize('name', ['a.mkv', 'a.avi', 'a.mp4'])
def test_a_video_that_breaks_off_ends_with_its_last_frame(tmp_path, name):
  noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
  path = write_video(tmp_path / name, noise)
  whole, data = np.asarray(videos.open_video(path)), path.read_bytes()
  video = videos.open_video(path)
  path.write_bytes(data[: int(0.6 * len(data))])
  read = np.asarray(video)
  good = int((read == whole).all(axis=(1, 2, 3)).sum())
  assert 2 <= good < 7
  np.testing.assert_array_equal(read[:good], whole[:good])
  # Of a frame that is cut in two, FFmpeg may show what there is.
  assert (read[good + 1 :] == read[-1]).all()
  assert (read[-1] == read[good]).all() or (read[-1] == read[good - 1]).all()
  assert len(videos.open_video(path)) < 9


@pytest.mark.parametrize('content', ['', 'no video'])
def test_what_is_no_video_is_refused(tmp_path, content):
  (tmp_path / 'a.mp4').write_text(content)
  with pytest.raises(Exception, match=r'Invalid data|no video|End of file'):
    videos.open_video(tmp_path / 'a.mp4')


def test_videos_are_found_below_a_folder_and_a_folder_of_frames_is_one(tmp_path):
  written = frames(2)
  for name in ('b/x.MP4', 'a/y.gif', 'a/clip/deep', 'b/.hidden.mp4', '.trash/x.mp4'):
    path = tmp_path / name
    write_video(path.with_suffix(path.suffix.lower()), written).rename(path)
  (tmp_path / 'a' / 'notes.txt').touch()
  found = [path.relative_to(tmp_path).as_posix() for path in videos.find_videos(tmp_path)]
  assert found == ['a/clip/deep', 'a/y.gif', 'b/x.MP4']
  assert videos.find_videos(tmp_path / 'a/clip/deep') == [tmp_path / 'a/clip/deep']
  assert videos.find_videos(tmp_path / 'a/y.gif') == [tmp_path / 'a/y.gif']
  Image.fromarray(written[0]).save(tmp_path / 'b' / 'thumbnail.png')
  with pytest.raises(UsageError, match='b: has images and videos; a folder with images is one'):
    videos.find_videos(tmp_path)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UsageError, match=r'empty: no videos in this folder \(.*\.mp4'):
    videos.find_videos(tmp_path / 'empty')
  with pytest.raises(UsageError, match='missing: no such video or folder'):
    videos.find_videos(tmp_path / 'missing')


def test_pipes_are_not_waited_for_and_lists_of_files_are_not_played(tmp_path):
  write_video(tmp_path / 'a.mp4', frames(2))
  (tmp_path / 'list.mp4').write_text('ffconcat version 1.0\nfile a.mp4\n')
  os.mkfifo(tmp_path / 'pipe.mp4')
  for name, problem in (('pipe', 'not a regular file'), ('list', '')):
    with pytest.raises(UsageError, match=rf'{name}\.mp4: {problem}'):
      videos.open_video(tmp_path / f'{name}.mp4')


def test_a_clip_that_takes_too_much_is_refused(tmp_path):
  video = videos.open_video(write_video(tmp_path / 'a.gif', frames(2)))
  size = 32 * 48 * 3
  count = videos.decoding.MOST // size + 1
  with pytest.raises(UsageError, match=rf'a\.gif: {count:,} frames: takes {count * size:,} bytes'):
    video[np.zeros(count, int)]


def test_frames_that_are_too_large_are_not_decoded(tmp_path, monkeypatch):
  path = write_video(tmp_path / 'a.mp4', frames(2))
  monkeypatch.setattr(videos.images, 'MOST_PIXELS', 32 * 48 - 1)
  with pytest.raises(UsageError, match=r'a\.mp4: '):
    videos.open_video(path)
