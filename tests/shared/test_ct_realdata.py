"""A real CT crop (TotalSegmentator, Apache-2.0; Wasserthal et al. 2023): reading, geometry and plausibility."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from shared.ct.ct_io import check_chest, read_header, read_nifti
from shared.ct.geometry import Geometry, prepare, reorient
from shared.ct.volume import CtReadError

FOLDER = Path(os.environ.get("DATA_ROOT", "data/official")) / "totalseg-chest-ct" / "pulmonary"
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="no totalseg-chest-ct under DATA_ROOT"),
]


@pytest.fixture(scope="module")
def volume():
    return read_nifti(FOLDER / "ct_cropped.nii.gz", volume_id="pulmonary")


def test_voxels_spacing_and_orientation_as_nibabel_reads_them(volume):
    image = nib.load(FOLDER / "ct_cropped.nii.gz")
    assert "".join(nib.aff2axcodes(image.affine)) == read_header(FOLDER / "ct_cropped.nii.gz").orientation == "LPS"
    np.testing.assert_array_equal(volume.hu, image.get_fdata().transpose(2, 1, 0))
    assert volume.hu.dtype == np.int16 and volume.hu.shape == (112, 102, 122)
    assert volume.spacing_mm == (1.5, 1.5, 1.5)
    ras = reorient(volume, "RAS")
    expected = nib.as_closest_canonical(image)
    np.testing.assert_array_equal(ras.hu, expected.get_fdata().transpose(2, 1, 0))
    np.testing.assert_allclose(np.array(ras.origin_mm) * [-1, -1, 1], expected.affine[:3, 3], atol=1e-3)


def test_anatomy_is_where_lps_says(volume):
    """As seen in three planes: vertebrae behind and in the middle, liver below on the right, contrast in the mask."""
    hu, mask = volume.hu, read_nifti(FOLDER / "pulmonary_artery.nii.gz").hu > 0
    middle = (hu > 100).mean(axis=0)[:, 41:81]  # share of slices, [y, x]
    assert (middle[-25:] > 0.7).mean() > 0.05 > 10 * (middle[:12] > 0.7).mean()
    right, left = hu[:10, :51, :40], hu[:10, :51, -40:]
    assert (right > -100).mean() > 0.95 > (left > -100).mean()
    assert hu[mask].mean() > 300
    lung = (hu < -600).mean(axis=(0, 1))
    assert lung[:20].mean() > 0.3 and lung[-20:].mean() > 0.3


@pytest.mark.parametrize("stored", ["LPS", "LAS"])
@pytest.mark.parametrize("part", [slice(None), slice(0, 40), slice(40, 80), slice(72, None)], ids=str)
def test_without_form_codes_the_spine_tells_front_from_back(volume, tmp_path, stored, part):
    """Orientation codes of 0, with a heart as dense as bone in front; in every part of the crop."""
    hu = volume.hu[part] if stored == "LPS" else volume.hu[part, ::-1]
    blank = nib.Nifti1Image(np.ascontiguousarray(hu.transpose(2, 1, 0)), None)
    blank.header.set_zooms((1.5, 1.5, 1.5))
    blank.set_qform(None, 0)
    blank.set_sform(None, 0)
    nib.save(blank, tmp_path / "blank.nii.gz")
    found = read_nifti(tmp_path / "blank.nii.gz")
    assert found.orientation_from == "anatomy"
    np.testing.assert_array_equal(found.hu, volume.hu[part])


@pytest.mark.parametrize(
    "geometry",
    [Geometry((64, 256, 256)), Geometry((32, 64, 64)), Geometry((240, 120, 96), (0.75, 2.0, 2.0))],
    ids=["A, larger", "A, smaller", "B"],
)
def test_geometry_equals_torch_on_the_real_volume(volume, geometry):
    found = prepare(volume, geometry).hu
    hu = np.clip(volume.hu.astype(np.float32), -1000, 1000)
    sizes = geometry.shape
    if geometry.spacing_mm:
        sizes = [int(n * (1.5 / t)) for n, t in zip(hu.shape, geometry.spacing_mm, strict=True)]
    tensor = torch.from_numpy(hu)[None, None]
    expected = torch.nn.functional.interpolate(tensor, size=sizes, mode="trilinear", align_corners=False)[0, 0].numpy()
    low = [(k - n) // 2 for k, n in zip(geometry.shape, sizes, strict=True)]
    assert min(low) >= 0  # this crop is smaller than the target: padding only
    inside = found[tuple(slice(a, a + n) for a, n in zip(low, sizes, strict=True))]
    assert np.abs(inside - expected).max() <= 1e-4 * 2000
    assert np.isclose(found.sum() - inside.sum(), -1000.0 * (found.size - inside.size), rtol=1e-4)


def test_a_crop_inside_the_body_is_no_scan(volume):
    """The plausibility rule asks for air around the body, which this crop cuts away: refused by name."""
    with pytest.raises(CtReadError, match=r"not HU \(1% of voxels below -900 HU, 44%"):
        check_chest(volume, "ct_cropped.nii.gz")
