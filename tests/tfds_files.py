"""Data sets on disk as TFDS prepares them, for tests of what reads them."""

import io
import json
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2


def write_tfds(
  root, examples, features, *, name='tiny', version='1.0.0', keys=None, form='array_record'
):
  """Writes a prepared data set as TFDS does, split 'train', of {key: bytes or [int]} examples."""
  folder = Path(root, name, version)
  folder.mkdir(parents=True)
  base = name.split('/')[0]
  writer = ArrayRecordWriter(
    str(folder / f'{base}-train.array_record-00000-of-00001'), 'group_size:1'
  )
  for example in examples:
    proto = tf_example_pb2.Example()
    for key, value in example.items():
      feature = proto.features.feature[key]
      if isinstance(value, bytes) or (value and isinstance(value[0], bytes)):
        feature.bytes_list.value.extend([value] if isinstance(value, bytes) else value)
      else:
        feature.int64_list.value.extend(value)
    writer.write(proto.SerializeToString())
  writer.close()
  info = {
    'name': base,
    'version': version,
    'fileFormat': form,
    'moduleName': 'a.module.that.is.not.here',
    'splits': [
      {
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
        'name': 'train',
        'numBytes': '1',
        'shardLengths': [str(len(examples))],
      }
    ],
  }
  if keys:
    info['supervisedKeys'] = {'tuple': {'items': [{'featureKey': k} for k in keys]}}
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  if features is not None:
    prefix = 'tensorflow_datasets.core.features.'
    (folder / 'features.json').write_text(
      json.dumps(
        {
          'pythonClassName': f'{prefix}features_dict.FeaturesDict',
          'featuresDict': {'features': {k: make(prefix) for k, make in features.items()}},
        }
      )
    )
  return str(root)


def image_feature(*shape):
  return lambda prefix: {
    'pythonClassName': f'{prefix}image_feature.Image',
    'image': {'dtype': 'uint8', 'shape': {'dimensions': [str(n) for n in shape]}},
  }


def video_feature(*shape):
  return lambda prefix: {
    'pythonClassName': f'{prefix}video_feature.Video',
    'video': {'dtype': 'uint8', 'shape': {'dimensions': [str(n) for n in shape]}},
  }


def label_feature(num_classes):
  return lambda prefix: {
    'pythonClassName': f'{prefix}class_label_feature.ClassLabel',
    'classLabel': {'numClasses': str(num_classes)},
  }


def labels_feature(num_classes):
  return lambda prefix: {
    'pythonClassName': f'{prefix}sequence_feature.Sequence',
    'sequence': {'feature': label_feature(num_classes)(prefix), 'length': '-1'},
  }


def png(array, **kwargs):
  file = io.BytesIO()
  Image.fromarray(array).save(file, 'PNG', **kwargs)
  return file.getvalue()
