import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import CLASSES, ENCODINGS, IGNORE, PALETTE, count_classes, decode_mask, encode_mask

LABELS = hnp.arrays(
    np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([*range(16), IGNORE])
)


@given(LABELS, st.sampled_from(ENCODINGS))
def test_every_mask_survives_both_encodings(labels, encoding):
    decoded = decode_mask(encode_mask(labels, encoding))
    np.testing.assert_array_equal(decoded.labels, labels)
    assert decoded.stray == 0
    assert decoded.encoding == ('empty' if (labels == IGNORE).all() else encoding)


def test_encodings_match_the_release():
    labels = np.array([[0, 1, 15, IGNORE]], np.uint8)
    assert encode_mask(labels, 'direct').tolist() == [[1, 2, 16, 0]]
    assert encode_mask(labels, 'complement').tolist() == [[255, 254, 240, 0]]


def test_few_stray_pixels_become_unannotated_and_are_counted():
    mask = np.full((200, 200), 254, np.uint8)
    mask[0, 0] = 1  # decodes to 255, as in patient69_he_roi3
    decoded = decode_mask(mask)
    assert decoded.stray == 1 and decoded.labels[0, 0] == IGNORE and decoded.labels[1, 1] == 1


@pytest.mark.parametrize(
    'mask',
    [
        np.full((20, 20), 100, np.uint8),
        np.array([[1] * 10 + [100] * 10], np.uint8),
        np.array([[1, 255]], np.uint8),
        np.array([[2] * 60 + [77] * 20], np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.ones((4, 4), np.uint16),
    ],
)
def test_invalid_masks_are_named(mask):
    with pytest.raises(IgniteError, match='roi7.png'):
        decode_mask(mask, 'roi7.png')


@given(LABELS)
def test_count_classes_matches_a_plain_count(labels):
    assert count_classes(labels).tolist() == [int((labels == i).sum()) for i in range(16)]


def test_table_has_16_distinct_classes_and_colours():
    assert len(set(CLASSES)) == len(set(PALETTE)) == 16
