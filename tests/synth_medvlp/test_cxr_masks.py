"""SIIM's run-length code against a pixel-by-pixel reading of its documented rule, boxes and resizing."""

import numpy as np
import pytest

from synth_medvlp.datasets.masks import boxes_mask, decode_rle, encode_rle, resized, union
from synth_medvlp.record import CxrReadError


def decode_by_hand(code: str, height: int, width: int) -> np.ndarray:
    """The rule in words: walk down the columns; skip `offset` pixels from where the last run ended, mark `length`."""
    mask = np.zeros((height, width), bool)
    if code.strip() == "-1":
        return mask
    position, numbers = 0, [int(word) for word in code.split()]
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        position += offset
        for _ in range(length):
            mask[position % height, position // height] = True
            position += 1
    return mask


@pytest.mark.parametrize("seed", range(30))
def test_decoding_and_encoding_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    mask = rng.random((height, width)) < rng.choice([0.02, 0.5, 0.98])
    code = encode_rle(mask)
    np.testing.assert_array_equal(decode_rle(code, (height, width)), mask)
    np.testing.assert_array_equal(decode_by_hand(code, height, width), mask)
    numbers = [int(word) for word in rng.integers(1, 6, 10)]
    text = " ".join(map(str, numbers))
    np.testing.assert_array_equal(decode_rle(text, (9, 9)), decode_by_hand(text, 9, 9))


def test_columns_run_first_and_offsets_are_relative():
    expected = np.zeros((4, 3), bool)
    expected[1:3, 0] = True  # 1 from the start, 2 long: rows 1 and 2 of column 0
    expected[1, 1] = True  # 2 further from the end of that run: row 1 of column 1
    np.testing.assert_array_equal(decode_rle(" 1 2 2 1", (4, 3)), expected)
    absolute = np.zeros((4, 3), bool)
    absolute.ravel(order="F")
    assert encode_rle(expected) == "1 2 2 1"
    adjacent = decode_rle("0 2 0 2", (4, 3))  # an offset of 0 continues
    np.testing.assert_array_equal(adjacent[:, 0], [True] * 4)
    assert not decode_rle(" -1", (4, 3)).any()
    assert encode_rle(np.zeros((4, 3), bool)) == "-1"
    assert decode_rle("0 12", (4, 3)).all()  # the last pixel belongs to the image


@pytest.mark.parametrize(
    "code", ["0 13", "12 1", "5 2 6 1", "1", "1 2 3", "1 0", "", "1 -2", "a b", "1.5 2", "-1 -1", "99999999999999 1"]
)
def test_codes_that_are_not_masks(code):
    with pytest.raises(CxrReadError, match="row 7: bad mask"):
        decode_rle(code, (4, 3), "row 7")


def test_several_codes_are_one_mask():
    codes = ("0 3", "2 3")
    np.testing.assert_array_equal(union(codes, 4, "x"), decode_by_hand("0 5", 4, 4))


def test_boxes_are_truncated_as_published_and_never_empty():
    mask = boxes_mask([("a", 2.9, 1.2, 3.9, 2.0), ("b", 7.5, 7.5, 0.4, 0.4), ("c", 8, 8, 99, 99)], (10, 10))
    expected = np.zeros((10, 10), bool)
    expected[1:3, 2:5] = expected[7, 7] = True
    expected[8:, 8:] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(("old", "new"), [((8, 8), (4, 4)), ((4, 6), (12, 3)), ((5, 5), (7, 7))])
def test_nearest_neighbour_by_pixel_centres(old, new):
    mask = np.random.default_rng(1).random(old) < 0.5
    result = resized(mask, new)
    for r in range(new[0]):
        for c in range(new[1]):
            row, column = int((r + 0.5) * old[0] / new[0]), int((c + 0.5) * old[1] / new[1])
            assert result[r, c] == mask[row, column]
