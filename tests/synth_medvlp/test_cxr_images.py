"""Pixels of PNG, JPG and DICOM files, and the arrays a model is given, against values computed by hand."""

import math

import numpy as np
import pydicom
import pytest
from cxr_trees import film, save, save_dicom

from synth_medvlp.datasets.images import read_pixels, windowed
from synth_medvlp.datasets.reading import equalised, fit_mask, fitted, read_image, to_uint8
from synth_medvlp.record import CxrReadError, CxrRecord


def record(image, dataset="x") -> CxrRecord:
    return CxrRecord("i", "s", "p", dataset, image, "PA")


# ------------------------------------------------------------------------------------------------ PNG and JPG


@pytest.mark.parametrize(("high", "dtype"), [(255, np.uint8), (4095, np.uint16), (65_535, np.uint16)])
def test_png_of_8_and_16_bits_keep_their_values(tmp_path, high, dtype):
    pixels = film(1, (20, 30), high, dtype)
    read, view = read_pixels(save(tmp_path / "a.png", pixels))
    assert (read.dtype, view) == (dtype, "")
    np.testing.assert_array_equal(read, pixels)


def test_jpg_rgb_rgba_and_palette_become_one_channel(tmp_path):
    smooth = np.add.outer(np.arange(40), np.arange(30)).astype(np.uint8) * 3
    read, _ = read_pixels(save(tmp_path / "a.jpg", smooth, quality=95))
    assert read.shape == (40, 30) and np.abs(read.astype(int) - smooth).max() <= 4
    rgb = np.stack([smooth] * 3, axis=-1)
    np.testing.assert_array_equal(read_pixels(save(tmp_path / "rgb.png", rgb))[0], smooth)
    rgba = np.dstack([rgb, np.full(smooth.shape, 255, np.uint8)])
    np.testing.assert_array_equal(read_pixels(save(tmp_path / "rgba.png", rgba))[0], smooth)
    np.testing.assert_array_equal(read_pixels(save(tmp_path / "bits.png", smooth > 50))[0], 255 * (smooth > 50))


# ------------------------------------------------------------------------------------------------------ DICOM


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_monochrome2_is_as_stored_and_monochrome1_its_inverse_at_the_stored_depth(tmp_path, bits):
    stored = film(2, (16, 24), 2**bits - 1, np.uint8 if bits == 8 else np.uint16)
    plain, view = read_pixels(save_dicom(tmp_path / "2.dcm", stored, bits=bits, ViewPosition="PA"))
    assert view == "PA" and plain.dtype == stored.dtype
    np.testing.assert_array_equal(plain, stored)
    tags = {"PhotometricInterpretation": "MONOCHROME1"}
    inverse, _ = read_pixels(save_dicom(tmp_path / "1.dcm", stored, bits=bits, **tags))
    np.testing.assert_array_equal(inverse, 2**bits - 1 - stored.astype(int))


def linear_by_hand(x: float, centre: float, width: float) -> float:
    """DICOM PS3.3 C.11.2.1.2.1, its three branches."""
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if x > centre - 0.5 + (width - 1) / 2:
        return 1.0
    return (x - (centre - 0.5)) / (width - 1) + 0.5


@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (1000, 300), (0, 100), (2048.5, 1), (100, 2)])
def test_window_follows_the_three_branches_of_the_standard(centre, width):
    values = np.arange(-50, 4100, 7).astype(float)
    expected = [linear_by_hand(x, centre, width) for x in values] if width > 1 else values > centre - 0.5
    np.testing.assert_allclose(windowed(values, centre, width), expected)


def test_window_functions_exact_and_sigmoid():
    values = np.linspace(-10, 10, 41)
    np.testing.assert_allclose(windowed(values, 0, 10, "LINEAR_EXACT"), np.clip(values / 10 + 0.5, 0, 1))
    expected = [1 / (1 + math.exp(-4 * x / 10)) for x in values]
    np.testing.assert_allclose(windowed(values, 0, 10, "SIGMOID"), expected)


def test_rescale_comes_before_the_window_and_inversion_after_it(tmp_path):
    stored = film(3, (16, 16), 4095, np.uint16)
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [1500, 1], "WindowWidth": [900, 1]}
    share = np.vectorize(linear_by_hand)(stored.astype(float) * 2 - 1000, 1500.0, 900.0)
    read, _ = read_pixels(save_dicom(tmp_path / "a.dcm", stored, bits=12, **tags))
    np.testing.assert_array_equal(read, np.rint(share * 65_535))
    dark = tags | {"PhotometricInterpretation": "MONOCHROME1"}
    read, _ = read_pixels(save_dicom(tmp_path / "b.dcm", stored, bits=12, **dark))
    np.testing.assert_array_equal(read, np.rint((1 - share) * 65_535))


def test_signed_values_fill_the_range_and_a_negative_slope_inverts(tmp_path):
    stored = film(4, (8, 8), 2000, np.int16) - np.int16(1000)
    read, _ = read_pixels(save_dicom(tmp_path / "a.dcm", stored, bits=12))
    np.testing.assert_array_equal(read, np.rint((stored.astype(float) + 2048) / 4095 * 65_535))
    stored = film(4, (8, 8))
    read, _ = read_pixels(save_dicom(tmp_path / "b.dcm", stored, RescaleSlope=-1, RescaleIntercept=255))
    np.testing.assert_array_equal(read, 255 - stored)


def test_voi_table_and_bits_above_those_stored(tmp_path):
    stored = film(5, (16, 16), 255, np.uint16)
    curve = (np.arange(256) ** 2 // 255).astype(np.uint16)
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 8], curve.tobytes()
    tags = {"VOILUTSequence": [table], "PhotometricInterpretation": "MONOCHROME1"}
    read, _ = read_pixels(save_dicom(tmp_path / "a.dcm", stored, bits=8, **tags))
    np.testing.assert_array_equal(read, 255 - curve[stored])
    overlay = film(6, (16, 16), 4095, np.uint16)
    read, _ = read_pixels(save_dicom(tmp_path / "b.dcm", overlay | 0xF000, bits=12))
    np.testing.assert_array_equal(read, overlay)


def test_jpeg_inside_dicom_as_the_challenges_ship_it(tmp_path):
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    read, view = read_pixels(save_dicom(tmp_path / "a.dcm", smooth, jpeg=True, ViewPosition="AP"))
    assert view == "AP" and np.abs(read.astype(int) - smooth).max() <= 4


# ---------------------------------------------------------------------------------------------- model's array


def test_squash_ignores_the_aspect_and_pad_keeps_it_between_zeros():
    image = np.full((100, 50), 200, np.uint8)
    np.testing.assert_array_equal(read_image(record(image), "squash", 32), np.full((32, 32), 200))
    padded = read_image(record(image), "pad", 32)
    expected = np.zeros((32, 32), np.uint8)
    expected[:, 8:24] = 200
    np.testing.assert_array_equal(padded, expected)
    assert fitted((100, 50), "pad_crop", 224) == ((256, 128), (0, 64), 256)  # GLoRIA: 256 with zeros, then 224
    cropped = read_image(record(image), "pad_crop", 224)
    assert cropped.shape == (224, 224) and set(np.unique(cropped[:, 48:176])) == {200}
    assert cropped[:, :48].max() == 0 == cropped[:, 176:].max()


@pytest.mark.parametrize("rule", ["squash", "pad", "pad_crop"])
@pytest.mark.parametrize("shape", [(64, 64), (90, 61), (40, 128)])
def test_a_mask_lies_where_its_image_lies(rule, shape):
    mask = np.zeros(shape, bool)
    mask[10:30, 15:40] = True
    seen = read_image(record(255 * mask.astype(np.uint8)), rule, 56) > 127
    fitted_mask = fit_mask(mask, rule, 56)
    assert (seen & fitted_mask).sum() / (seen | fitted_mask).sum() > 0.85
    with pytest.raises(ValueError, match="unknown rule"):
        fit_mask(mask, "stretch")


def test_sixteen_bits_to_eight_by_each_rule():
    pixels = np.array([[100, 600], [1100, 2100]], np.uint16)
    np.testing.assert_array_equal(to_uint8(pixels, "max"), [[12, 72], [133, 255]])  # truncated as published
    np.testing.assert_array_equal(to_uint8(pixels), [[0, 64], [128, 255]])  # 127.5 rounds to even
    assert to_uint8(np.full((4, 4), 9, np.uint16)).max() == 0
    full = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    assert to_uint8(full).max() == 255 and (np.diff(to_uint8(full).ravel().astype(int)) >= 0).all()  # nothing wraps
    eight = film(1)
    assert to_uint8(eight) is eight
    with pytest.raises(ValueError, match="unknown rule"):
        to_uint8(eight, "z-score")


def test_padchest_and_rsna_use_the_published_intensities():
    pixels = film(9, (30, 30), 4095, np.uint16)
    assert not np.array_equal(read_image(record(pixels, "padchest"), size=30), read_image(record(pixels), size=30))
    np.testing.assert_array_equal(read_image(record(pixels, "padchest"), size=30), to_uint8(pixels, "max"))
    np.testing.assert_array_equal(read_image(record(film(2), "rsna-pneumonia"), size=32), to_uint8(film(2), "equalise"))


def test_equalisation_is_the_share_of_pixels_at_most_as_bright():
    pixels = (np.random.default_rng(0).beta(2, 5, (64, 64)) * 255).astype(np.uint8)
    by_hand = np.array([(pixels <= value).mean() for value in pixels.ravel()]).reshape(pixels.shape)
    assert np.abs(equalised(pixels) - by_hand).max() < 0.03  # half a bin
    even = equalised(pixels)
    assert abs(even.mean() - 0.5) < 0.03


# ----------------------------------------------------------------------------------------------- broken files


def _cut(path, keep: float):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def _noise(tmp_path, name, **tags):
    return save_dicom(tmp_path / name, film(8, (64, 64), 4095, np.uint16), bits=12, **tags)


BROKEN = {
    "no file": (lambda t: t / "a.png", "missing file"),
    "a folder": (lambda t: t, "missing file"),
    "empty png": (lambda t: _cut(save(t / "a.png", film()), 0), "truncated"),
    "png cut in the header": (lambda t: _cut(save(t / "a.png", film()), 0.01), "unreadable"),
    "png cut in half": (lambda t: _cut(save(t / "a.png", film(0, (200, 200))), 0.5), "truncated"),
    "16-bit png cut in half": (lambda t: _cut(save(t / "a.png", film(0, (99, 99), 999, np.uint16)), 0.5), "truncated"),
    "jpg cut in half": (lambda t: _cut(save(t / "a.jpg", film(0, (200, 200))), 0.5), "truncated"),
    "text called png": (lambda t: (t / "a.png").write_text("<html>404</html>") and t / "a.png", "unreadable"),
    "float tiff called png": (
        lambda t: save(t / "a.png", np.full((4, 4), 0.5, np.float32), format="TIFF"),
        "bit depth",
    ),
    "dicom cut in the pixels": (lambda t: _cut(_noise(t, "a.dcm"), 0.7), "truncated"),
    "dicom cut in the header": (lambda t: _cut(_noise(t, "a.dcm"), 0.03), "truncated"),
    "dicom without preamble": (lambda t: (t / "a.dcm").write_text("hello " * 99) and t / "a.dcm", "unreadable"),
    "dicom jpeg cut": (lambda t: _cut(save_dicom(t / "a.dcm", film(0, (99, 99)), jpeg=True), 0.6), "truncated"),
    "colour dicom": (lambda t: _noise(t, "a.dcm", PhotometricInterpretation="RGB"), "not greyscale"),
    "several frames": (lambda t: _noise(t, "a.dcm", NumberOfFrames=3), "not greyscale"),
    "width zero": (lambda t: _noise(t, "a.dcm", WindowCenter=5, WindowWidth=0), "unreadable"),
    "unknown window": (
        lambda t: _noise(t, "a.dcm", WindowCenter=5, WindowWidth=9, VOILUTFunction="GAMMA"),
        "unreadable",
    ),
    "bits": (lambda t: _noise(t, "a.dcm", BitsStored=32), "bit depth"),
}


@pytest.mark.filterwarnings("ignore")  # pydicom warns of what the error then names
@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_a_named_error(tmp_path, name):
    make, reason = BROKEN[name]
    path = make(tmp_path)
    with pytest.raises(CxrReadError) as error:
        read_pixels(path)
    assert error.value.reason == reason
    assert error.value.path == str(path)
