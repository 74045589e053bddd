"""The region taken out of a predicted sample, compared with plain indexing."""

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmseg_ignite.engine.hooks.prediction_hooks import predicted_roi
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import CLASSES


@pytest.mark.parametrize('classes', [CLASSES, (CLASSES[7], CLASSES[2], CLASSES[15])])
def test_region_has_the_class_ids_of_the_release(tmp_path, classes):
    rng = np.random.default_rng()
    image = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
    truth, prediction = rng.integers(0, len(classes), (2, 30, 40))
    truth[rng.random(truth.shape) < 0.2] = 255
    np.save(tmp_path / 'a_with_context.npy', image)
    sample = SegDataSample(metainfo=dict(img_path=str(tmp_path / 'a_with_context.npy'), roi_box=(3, 5, 21, 38)))
    sample.gt_sem_seg, sample.pred_sem_seg = (PixelData(data=torch.from_numpy(x)[None]) for x in (truth, prediction))
    found = predicted_roi(sample, classes)
    ids = np.array([*map(CLASSES.index, classes)] + [255] * (256 - len(classes)))
    for array, expected in zip(found, (image, ids[truth], ids[prediction])):
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, expected[3:21, 5:38])
    with pytest.raises(IgniteError, match='meta_keys'):
        predicted_roi(SegDataSample(metainfo=dict(img_path=sample.img_path)), classes)
