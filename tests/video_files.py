"""Video files whose frames can be told apart, for tests of what reads them."""

import av
import numpy as np
from PIL import Image

CODECS = {
  'avi': 'mpeg4',
  'mkv': 'ffv1',
  'mov': 'mpeg4',
  'mp4': 'mpeg4',
  'mpg': 'mpeg1video',
  'webm': 'libvpx-vp9',
}


def frames(count, height=32, width=48, seed=0):
  """Returns uint8 [count, height, width, 3]: a frame has one colour above and one below."""
  colors = np.random.default_rng(seed).integers(0, 256, (count, 2, 3), dtype=np.uint8)
  return np.repeat(np.repeat(colors[:, :, None], height // 2, axis=1), width, axis=2)


def write_video(path, video, pix_fmt=None):
  """Writes uint8 [T, H, W, 3] as a file of the kind that its name tells, or a folder of PNG."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.gif':
    first, *rest = map(Image.fromarray, video)
    first.save(path, save_all=True, append_images=rest, duration=40)
  elif path.suffix:
    options = {'movflags': 'faststart'} if path.suffix == '.mp4' else {}  # the index comes first
    with av.open(str(path), 'w', options=options) as container:
      stream = container.add_stream(CODECS[path.suffix[1:]], rate=25)
      stream.height, stream.width = video.shape[1:3]
      stream.pix_fmt, stream.gop_size = pix_fmt or 'yuv420p', 4
      for frame in video:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
      container.mux(stream.encode())
  else:
    path.mkdir()
    for i, frame in enumerate(video):
      Image.fromarray(frame).save(path / f'frame{i}.png')
  return path
