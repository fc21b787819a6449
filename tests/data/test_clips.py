"""Which frames of a video are taken, against DMVR's rules stated by loops."""

import numpy as np
import pytest

from vit_jax.data.clips import Clips


def frames_of(start, num_frames, stride, stored):
  """Goes through a video that starts again at its end."""
  video = [*range(stored)] * (1 + (start + num_frames * stride) // stored)
  return [video[start + i * stride] for i in range(num_frames)]


@pytest.mark.parametrize(('num_frames', 'stride'), [(1, 1), (4, 1), (3, 5), (8, 2)])
@pytest.mark.parametrize('stored', [1, 3, 16, 31])
def test_evaluation_takes_the_middle_or_clips_from_start_to_end(num_frames, stride, stored):
  last = max(0, stored - num_frames * stride)
  middle = Clips(num_frames, stride).indices(stored)
  assert middle.tolist() == [frames_of(last // 2, num_frames, stride, stored)]
  four = Clips(num_frames, stride, count=4).indices(stored)
  starts = [int(last * i / 3) for i in range(4)]
  assert four.tolist() == [frames_of(start, num_frames, stride, stored) for start in starts]


@pytest.mark.parametrize(('stored', 'starts'), [(12, 6), (7, 1), (5, 1)])
def test_training_starts_at_each_place_where_a_clip_fits_alike_often(stored, starts):
  clips, rng = Clips(4, 2, random=True), np.random.default_rng(0)
  drawn = np.concatenate([clips.indices(stored, rng) for _ in range(600)])
  assert {tuple(row) for row in drawn.tolist()} == {
    tuple(frames_of(start, 4, 2, stored)) for start in range(starts)
  }
  assert np.bincount(drawn[:, 0], minlength=starts).min() > 0.7 * 600 / starts


def test_zero_frames_are_the_whole_video():
  assert Clips().indices(5).tolist() == [[0, 1, 2, 3, 4]]
