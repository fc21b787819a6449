"""Which frames of a video are taken: a clip of some frames, each a stride after the one before."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Clips:
  """Takes clips out of videos, as github.com/google-deepmind/dmvr does, which ViViT's code uses.

  A video that is too short for a clip starts again at its end, as often as it has to.

  Attributes:
    num_frames: of a clip; 0 takes the whole video as it is stored.
    stride: of the video's frames, from each of the clip's to the next.
    random: whether a clip starts at random, as in training; if not, in the middle of the video.
    count: clips of each video, where they don't start at random: several begin from the start to
      the end at even distances.
  """

  num_frames: int = 0
  stride: int = 1
  random: bool = False
  count: int = 1

  def indices(self, stored: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Returns which of a video's frames its clips consist of, int [count, num_frames].

    Args:
      stored: frames of the video.
      rng: draws the start; may be None where it isn't `random`.
    """
    if not self.num_frames:
      return np.arange(stored)[None]
    span = (self.num_frames - 1) * self.stride + 1
    last = max(stored - self.num_frames * self.stride, 0)  # the reference wants a stride after it
    if self.random:
      starts = rng.integers(max(stored - span, 0) + 1, size=1)
    elif self.count == 1:
      starts = np.array([last // 2])
    else:
      starts = np.linspace(0, last, self.count).astype(int)
    steps = np.arange(self.num_frames) * self.stride
    return (starts[:, None] + steps) % stored
