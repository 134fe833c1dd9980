"""shared/ct/geometry.py: orientation, clip and the two geometries against SimpleITK, torch and arithmetic by hand."""

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from ct_files import SPACING, thorax

from shared.ct.geometry import Geometry, clip, crop_pad, orientation_code, prepare, reorient, resize, respace, trilinear
from shared.ct.volume import CtVolume

RANGE_HU = 2000.0  # -1000 .. 1000
CODES = ["".join(letters[k] for letters, k in zip(axes, sides, strict=True))
         for axes in permutations(("LR", "PA", "SI")) for sides in product((0, 1), repeat=3)]  # fmt: skip


def image_of(volume: CtVolume) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.hu))
    image.SetSpacing(volume.spacing_mm[::-1])
    image.SetOrigin(volume.origin_mm)
    image.SetDirection(volume.direction)
    return image


def volume_of(image: sitk.Image) -> CtVolume:
    direction = image.GetDirection()
    hu = sitk.GetArrayFromImage(image)
    return CtVolume(hu, image.GetSpacing()[::-1], image.GetOrigin(), direction, orientation_code(direction))


def noise(shape, seed=0, scale=1500) -> CtVolume:
    hu = np.random.default_rng(seed).uniform(-scale, scale, shape).astype(np.float32)
    return CtVolume(hu, SPACING, (-200.5, 33.0, 1201.25))


def torch_trilinear(hu, shape):
    tensor = torch.from_numpy(np.ascontiguousarray(hu)).float()[None, None]
    return torch.nn.functional.interpolate(tensor, size=shape, mode="trilinear", align_corners=False)[0, 0].numpy()


# ---------------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("code", CODES)
def test_every_orientation_as_simpleitk(code):
    volume = noise((5, 6, 7))
    expected = volume_of(sitk.DICOMOrient(image_of(volume), code))
    found = reorient(volume, code)
    assert found.orientation == code == expected.orientation
    np.testing.assert_array_equal(found.hu, expected.hu)
    np.testing.assert_allclose(found.spacing_mm, expected.spacing_mm)
    np.testing.assert_allclose(found.origin_mm, expected.origin_mm)
    np.testing.assert_allclose(found.direction, expected.direction)
    back = reorient(found)
    np.testing.assert_array_equal(back.hu, volume.hu)
    np.testing.assert_allclose(back.origin_mm, volume.origin_mm)


def test_tilted_direction_stays_tilted_as_in_simpleitk():
    angle = np.deg2rad(20)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    turn = turn @ np.diag([-1, -1, 1])
    volume = noise((5, 6, 7))
    volume = CtVolume(volume.hu, SPACING, volume.origin_mm, tuple(turn.ravel()), orientation_code(tuple(turn.ravel())))
    assert volume.orientation == "RAS"
    expected, found = volume_of(sitk.DICOMOrient(image_of(volume), "LPS")), reorient(volume)
    np.testing.assert_array_equal(found.hu, expected.hu)
    np.testing.assert_allclose(found.direction, expected.direction, atol=1e-12)
    np.testing.assert_allclose(found.origin_mm, expected.origin_mm)


def test_unknown_code_is_refused():
    for code in ("LPX", "LRS", "LP", "lps"):
        with pytest.raises(ValueError, match="one letter each"):
            reorient(noise((3, 3, 3)), code)


# ----------------------------------------------------------------------------------------------------- resampling

SIZES = [
    ((24, 32, 28), (12, 16, 14)),
    ((24, 32, 28), (9, 33, 17)),
    ((10, 16, 12), (23, 31, 40)),
    ((7, 9, 8), (7, 9, 8)),
    ((5, 20, 20), (11, 10, 10)),
    ((30, 8, 9), (4, 16, 5)),
    ((6, 6, 6), (1, 1, 1)),
    ((2, 2, 2), (7, 5, 3)),
]


@pytest.mark.parametrize(("shape", "target"), SIZES)
def test_resize_equals_torch_and_simpleitk(shape, target):
    volume = noise(shape)
    found = resize(volume, target)
    assert found.hu.dtype == np.float32
    limit = 1e-4 * 3000  # of the value range; borders included
    assert np.abs(found.hu - torch_trilinear(volume.hu, target)).max() <= limit
    image = image_of(volume)
    grid = (found.spacing_mm[::-1], found.direction, -5000.0, sitk.sitkFloat32)
    expected = sitk.Resample(image, target[::-1], sitk.Transform(), sitk.sitkLinear, found.origin_mm, *grid)
    assert np.abs(found.hu - sitk.GetArrayFromImage(expected)).max() <= limit
    # Outer corners stay where they are.
    for v, n in ((volume, shape), (found, target)):
        low = np.array(v.origin_mm)[::-1] - 0.5 * np.array(v.spacing_mm)
        high = low + np.array(v.spacing_mm) * n
        np.testing.assert_allclose(low, np.array(volume.origin_mm)[::-1] - 0.5 * np.array(SPACING))
        np.testing.assert_allclose(high - low, np.array(SPACING) * shape)


def test_the_half_voxel_rule_is_what_makes_it_equal():
    volume = noise((24, 32, 28))
    found = resize(volume, (12, 16, 14))
    grid = (found.spacing_mm[::-1], found.direction, 0.0, sitk.sitkFloat32)
    kept = sitk.Resample(image_of(volume), (14, 16, 12), sitk.Transform(), sitk.sitkLinear, volume.origin_mm, *grid)
    assert np.abs(found.hu - sitk.GetArrayFromImage(kept)).max() > 100


def test_a_straight_line_stays_one_and_int16_equals_float32():
    z, y, x = np.meshgrid(*(np.arange(n) for n in (20, 24, 22)), indexing="ij")
    ramp = (30 * z - 20 * y + 7 * x).astype(np.int16)
    found = trilinear(ramp, (10, 12, 11))
    centre = [2 * np.arange(n) + 0.5 for n in (10, 12, 11)]
    expected = 30 * centre[0][:, None, None] - 20 * centre[1][:, None] + 7 * centre[2]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_array_equal(found, trilinear(ramp.astype(np.float32), (10, 12, 11)))


def test_constant_stays_constant_and_input_is_untouched():
    hu = np.full((9, 8, 7), 137.0, np.float32)
    hu.flags.writeable = False
    for target in ((4, 5, 3), (20, 17, 9), (9, 8, 7)):
        assert (trilinear(hu, target) == 137).all()
    assert trilinear(hu, (9, 8, 7), (-1000, 1000)).base is not hu


def test_fixed_spacing_truncates_then_crops_and_pads_as_the_common_chain():
    """The CT-CLIP chain by hand: scale, int(), trilinear, centred crop, pad with -1000 (reference, rules 5, 6)."""
    for shape, target in (((30, 40, 36), (16, 64, 30)), ((9, 11, 13), (12, 12, 12)), ((21, 25, 23), (60, 20, 41))):
        volume = noise(shape)
        spacing = (3.7, 8.1, 5.3)
        sizes = [int(n * (s / t)) for n, s, t in zip(shape, SPACING, spacing, strict=True)]
        expected = torch_trilinear(np.clip(volume.hu, -1000, 1000), sizes)
        for axis, wanted in enumerate(target):
            n = expected.shape[axis]
            start = max((n - wanted) // 2, 0)
            expected = expected.take(range(start, min(start + wanted, n)), axis)
            short = wanted - expected.shape[axis]
            pad = [(0, 0)] * 3
            pad[axis] = (short // 2, short - short // 2)
            expected = np.pad(expected, pad, constant_values=-1000)
        found = prepare(volume, Geometry(target, spacing))
        assert found.hu.shape == target
        assert np.abs(found.hu - expected).max() <= 1e-4 * RANGE_HU


def test_crop_and_pad_keep_every_voxel_in_its_place():
    volume = noise((10, 11, 12))
    found = crop_pad(volume, (7, 20, 12))
    image, padded = image_of(volume), image_of(found)
    for index in ((0, 5, 0), (11, 14, 6), (6, 9, 3)):  # x, y, z
        point = padded.TransformIndexToPhysicalPoint(index)
        assert padded[index] == image[image.TransformPhysicalPointToIndex(point)]
    assert (found.hu[:, 0] == -1000).all()


def test_smaller_than_a_voxel_is_refused():
    with pytest.raises(ValueError, match="smaller than one voxel"):
        respace(noise((3, 3, 3)), (100.0, 1.0, 1.0))


# ----------------------------------------------------------------------------------------------------------- clip


def test_clip_before_or_after():
    volume = noise((12, 12, 12), scale=3000)
    before, after = (prepare(volume, Geometry((5, 5, 5), clip=when)) for when in ("before", "after"))
    assert np.abs(before.hu - torch_trilinear(np.clip(volume.hu, -1000, 1000), (5, 5, 5))).max() < 0.2
    assert np.abs(after.hu - np.clip(torch_trilinear(volume.hu, (5, 5, 5)), -1000, 1000)).max() < 0.2
    assert np.abs(before.hu - after.hu).max() > 50
    assert np.abs(before.hu).max() <= 1000 and np.abs(after.hu).max() <= 1000


def test_clip_keeps_int16_and_rounds_no_window():
    hu = thorax()
    found = clip(CtVolume(hu, SPACING), (-900, 100))
    assert found.hu.dtype == np.int16
    np.testing.assert_array_equal(found.hu, np.clip(hu, -900, 100))
    fine = clip(CtVolume(hu, SPACING), (-900.5, 100))
    assert fine.hu.min() == -900.5
    wide = clip(CtVolume(hu, SPACING), (-1e6, 1e6))
    np.testing.assert_array_equal(wide.hu, hu)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (0, 4, 4)}, "shape"),
        ({"shape": (4, 4)}, "shape"),
        ({"shape": (4, 4, 4), "spacing_mm": (1, 1, 0)}, "spacing_mm"),
        ({"shape": (4, 4, 4), "clip_hu": (1000, -1000)}, "clip_hu"),
        ({"shape": (4, 4, 4), "clip": "never"}, "clip"),
    ],
)
def test_broken_geometry_names_its_field(arguments, message):
    with pytest.raises(ValueError, match=message):
        Geometry(**arguments)
