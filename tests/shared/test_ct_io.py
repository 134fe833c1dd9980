"""shared/ct/ct_io.py, dicom.py and store.py on sound files: voxels, HU, geometry; the packed store and its recovery."""

import gzip
import json
import pickle

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from ct_files import SPACING, affine_of, bimcv_r, ct_rate, inspect, patch, thorax, write_dicom, write_nifti

from shared import store as packing
from shared.ct import LOADERS, store
from shared.ct.ct_io import TableHeader, check_chest, read_header, read_nifti
from shared.ct.dicom import read_dicom
from shared.ct.geometry import Geometry, prepare
from shared.ct.store import CtStore, StoreError, pack

# ---------------------------------------------------------------------------------------------------------- NIfTI


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("code", ["LPS", "RAS", "LAS", "RPI", "PSL", "SAR"])
def test_any_orientation_comes_out_as_lps(tmp_path, code, suffix):
    path = write_nifti(tmp_path / f"v{suffix}", thorax(), code)
    volume = read_nifti(path, volume_id="v", patient_id="p", study_id="s")
    np.testing.assert_array_equal(volume.hu, thorax())
    assert volume.hu.dtype == np.int16
    assert (volume.orientation, volume.orientation_from) == ("LPS", "header")
    assert (volume.volume_id, volume.patient_id, volume.study_id) == ("v", "p", "s")
    np.testing.assert_allclose(volume.spacing_mm, SPACING)
    expected = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    np.testing.assert_array_equal(volume.hu, sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(volume.origin_mm, expected.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(volume.direction, expected.GetDirection(), atol=1e-6)
    header = read_header(path)
    assert header.orientation == code == "".join(nib.aff2axcodes(affine_of(code)))
    assert sorted(header.shape) == sorted(thorax().shape)


def test_rescale_of_the_header_is_applied_as_nibabel_does(tmp_path):
    raw = (thorax().astype(np.int32) + 1024).astype(np.int16)
    path = write_nifti(tmp_path / "v.nii.gz", raw, scale=(1.0, -1024.0))
    volume = read_nifti(path)
    np.testing.assert_allclose(volume.hu, thorax(), atol=1e-3)
    patch(path, 112, "<2f", 0.12345678, -500.25)
    expected = nib.load(path).get_fdata().transpose(2, 1, 0)
    np.testing.assert_allclose(read_nifti(path).hu, expected, atol=1e-2)
    patch(path, 112, "<2f", 0.0, 99.0)  # slope 0: not scaled, whatever the intercept
    np.testing.assert_array_equal(read_nifti(path).hu, raw)


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f4"])
def test_voxel_types_and_byte_orders(tmp_path, kind):
    values = np.clip(thorax() // 8 + 130, 0, 255).astype(kind)
    image = nib.Nifti1Image(
        values.transpose(2, 1, 0), affine_of("LPS"), nib.Nifti1Header(endianness="<>"[kind[0] == ">"])
    )
    image.set_data_dtype(np.dtype(kind))
    nib.save(image, tmp_path / "v.nii.gz")
    volume = read_nifti(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(volume.hu, values)
    assert volume.hu.dtype in (np.int16, np.float32)


def test_several_gzip_members_and_a_trailing_dimension(tmp_path):
    path = write_nifti(tmp_path / "v.nii.gz", thorax())
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:50_000]) + gzip.compress(content[50_000:]))
    np.testing.assert_array_equal(read_nifti(path).hu, thorax())
    nib.save(nib.Nifti1Image(thorax().transpose(2, 1, 0)[..., None], affine_of("LPS")), path)
    np.testing.assert_array_equal(read_nifti(path).hu, thorax())


def test_table_header_takes_the_place_of_a_blank_one(tmp_path):
    raw = (thorax().astype(np.int32) + 8192).astype(np.int16)
    path = write_nifti(tmp_path / "v.nii.gz", raw, qform=0, sform=0)
    table = TableHeader((1.5, 0.7, 0.8), (1.0, 2.0, 3.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1), 1.0, -8192.0)
    volume = read_nifti(path, table)
    np.testing.assert_array_equal(volume.hu, thorax()[:, ::-1, ::-1])  # its R, A indices turned to L, P
    assert volume.spacing_mm == (1.5, 0.7, 0.8) and volume.orientation_from == "table"


@pytest.mark.parametrize("stored", ["LPS", "LAS"])
def test_form_codes_of_zero_are_decided_by_anatomy(tmp_path, stored):
    path = write_nifti(tmp_path / "v.nii.gz", thorax(), stored, qform=0, sform=0)
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.hu, thorax())
    assert volume.orientation_from == "anatomy"
    assert read_header(path).orientation == ""


def test_chest_passes_and_is_returned():
    from shared.ct.volume import CtVolume

    volume = CtVolume(thorax(), SPACING)
    assert check_chest(volume, "v") is volume


# ---------------------------------------------------------------------------------------------------------- DICOM


@pytest.mark.parametrize("upside_down", [False, True])
def test_dicom_series(tmp_path, upside_down):
    def change(k, tags):
        if upside_down:  # feet-first order of files, columns running forwards
            tags.ImageOrientationPatient = [1, 0, 0, 0, -1, 0]

    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("no DICOM")
    volume = read_dicom(write_dicom(tmp_path / "d", thorax(), change=change), volume_id="v")
    expected = thorax()[:, ::-1] if upside_down else thorax()
    np.testing.assert_array_equal(volume.hu, expected)
    assert volume.hu.dtype == np.int16 and volume.orientation == "LPS" and volume.volume_id == "v"
    np.testing.assert_allclose(volume.spacing_mm, SPACING)
    assert volume.origin_mm[2] == 100.0


def test_dicom_series_is_chosen_and_slopes_may_differ_between_slices(tmp_path):
    def change(k, tags):
        if k % 2:
            tags.RescaleSlope, tags.RescaleIntercept = 0.5, -512.25

    write_dicom(tmp_path / "d", thorax()[:8], series="1.2.3", change=change)
    for k, path in enumerate(sorted((tmp_path / "d").iterdir())):
        path.rename(path.with_name(f"a{k}.dcm"))
    write_dicom(tmp_path / "d", thorax()[:9], series="1.2.4")
    assert read_dicom(tmp_path / "d", "1.2.4").hu.shape[0] == 9
    volume = read_dicom(tmp_path / "d", "1.2.3")
    assert volume.hu.dtype == np.float32
    expected = thorax()[:8].astype(np.float32)
    expected[1::2] = (expected[1::2] + 1024) * 0.5 - 512.25
    np.testing.assert_array_equal(volume.hu, expected)


# ---------------------------------------------------------------------------------------------------------- store

GEOMETRY = Geometry((16, 24, 20))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Roots and one index over three sources; volume 2 is truncated, volume 5 is gone."""
    base = tmp_path_factory.mktemp("official")
    names = ["train_1_a_1", "train_1_a_2", "train_2_a_1", "valid_1_a_1"]
    roots = {
        "ct-rate": ct_rate(base / "ct-rate", names, fixed=False, intercept=-8192),
        "bimcv-r": bimcv_r(base / "bimcv-r", 3),
        "inspect": inspect(base / "inspect", 3),
    }
    index = pd.concat([LOADERS[s].read_index(root).assign(source=s) for s, root in roots.items()], ignore_index=True)
    broken = roots["ct-rate"] / index.path[2]
    broken.write_bytes(broken.read_bytes()[:-2000])
    (roots["bimcv-r"] / index.path[5]).unlink()
    return index, roots


@pytest.fixture(scope="module")
def packed(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "store"
    pack(*sources, out, GEOMETRY, workers=1)
    return out


def digest(folder):
    return {name: (folder / name).read_bytes() for name in ("volumes.npy", "volumes.parquet", "manifest.json")}


def test_store_holds_what_the_loaders_read(sources, packed):
    index, roots = sources
    opened = CtStore(packed)
    opened.verify()
    assert len(opened) == len(index) - 2 == len(opened.volumes)
    assert opened.manifest["counts"]["skipped_by_reason"] == {"missing file": 1, "truncated": 1}
    assert [skip["volume_id"] for skip in opened.manifest["skips"]] == [index.volume_id[2], index.volume_id[5]]
    kept = index.drop([2, 5]).reset_index(drop=True)
    assert opened.volumes.volume_id.tolist() == kept.volume_id.tolist()
    assert opened.volumes.labels.tolist() == kept.labels.tolist()
    for i, row in kept.iterrows():
        expected = prepare(LOADERS[row.source].read_volume(roots[row.source], row), GEOMETRY)
        assert np.abs(opened.hu(i) - expected.hu).max() <= 0.5
        np.testing.assert_allclose(opened.volumes.spacing_mm[i], expected.spacing_mm)
        assert opened.volumes.source_shape[i].tolist() == list(thorax().shape)
    batch = opened.batch_hu([4, 0, 4])
    assert batch.dtype == np.float32 and batch.shape == (3, *GEOMETRY.shape)
    np.testing.assert_array_equal(batch[0], opened.hu(4))
    with pytest.raises(IndexError, match="volume 99"):
        opened.hu(99)
    with pytest.raises(ValueError, match="read-only"):
        opened.hu(0)[0] = 0
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened)).hu(1), opened.hu(1))  # noqa: S301


def test_volume_below_one_voxel_is_a_counted_skip(sources, tmp_path):
    index, roots = sources
    small = roots["inspect"] / index.path[8]
    whole = small.read_bytes()
    write_nifti(small, thorax(), spacing=(0.1, 0.1, 0.1))
    try:
        manifest = pack(index, roots, tmp_path / "store", Geometry((8, 8, 8), (20.0, 20.0, 20.0)))
    finally:
        small.write_bytes(whole)
    assert manifest["counts"]["skipped_by_reason"]["too small"] == 1
    assert manifest["counts"]["packed"] == len(index) - 3
    assert "20.0" in next(skip["detail"] for skip in manifest["skips"] if skip["reason"] == "too small")


def test_bytes_do_not_depend_on_the_number_of_workers(sources, packed, tmp_path):
    pack(*sources, tmp_path / "store", GEOMETRY, workers=3)
    assert digest(tmp_path / "store") == digest(packed)


def test_finished_store_is_not_packed_again_unless_something_changed(sources, packed, tmp_path, monkeypatch):
    index, roots = sources
    pack(index, roots, tmp_path / "store", GEOMETRY)
    with monkeypatch.context() as patch_:
        patch_.setattr(store, "_pack", lambda *a: pytest.fail("packed again"))
        assert pack(index, roots, tmp_path / "store", GEOMETRY)["counts"]["packed"] == len(index) - 2
    other = pack(index, roots, tmp_path / "store", Geometry((8, 8, 8)))
    assert other["geometry"]["shape"] == [8, 8, 8]
    assert CtStore(tmp_path / "store").hu(0).shape == (8, 8, 8)
    assert pack(index[:2], roots, tmp_path / "store", Geometry((8, 8, 8)))["counts"]["found"] == 2


@pytest.mark.parametrize("moment", range(11))
def test_every_moment_of_death(sources, packed, tmp_path, monkeypatch, moment):
    """Die before the k-th step that touches the disk, then continue to the same bytes without reading twice."""
    steps = []

    def dying(function):
        def wrapped(*arguments, **keywords):
            steps.append(function.__name__)
            if len(steps) > 2 + moment:
                raise MemoryError("killed here")
            return function(*arguments, **keywords)

        return wrapped

    monkeypatch.setattr(store, "CHUNK_VOLUMES", 4)  # ten volumes: 3 chunks of two syncs each, then 8 steps
    with monkeypatch.context() as patch_:
        for of, name in ((packing, "sync"), (packing, "sha256_of"), (store._Partial, "write_table")):
            patch_.setattr(of, name, dying(getattr(of, name)))
        patch_.setattr(packing.os, "replace", dying(packing.os.replace))
        with pytest.raises(MemoryError):
            pack(*sources, tmp_path / "store", GEOMETRY, workers=1)
    with pytest.raises(StoreError, match="no finished store"):
        CtStore(tmp_path / "store")
    lines = [json.loads(line) for line in (tmp_path / "store" / "journal.jsonl").read_text().splitlines()]
    done = sum(len(line["records"]) + len(line["skips"]) for line in lines[1:])
    again = []
    prepared = store._prepared
    monkeypatch.setattr(store, "_prepared", lambda *a: again.append(a[3]) or prepared(*a))
    pack(*sources, tmp_path / "store", GEOMETRY, workers=1)
    assert again == [done]
    assert digest(tmp_path / "store") == digest(packed)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == sorted([*digest(packed), ".lock"])


def test_damaged_store_is_refused(sources, packed, tmp_path):
    import shutil

    shutil.copytree(packed, tmp_path / "store")
    path = tmp_path / "store" / "volumes.npy"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"volumes\.npy: SHA-256 differs"):
        CtStore(tmp_path / "store").verify()
    path.write_bytes(content[:-10])
    with pytest.raises(StoreError, match="damaged; pack it again"):
        CtStore(tmp_path / "store")


def test_pack_errors_name_what_is_wrong(sources, tmp_path, monkeypatch):
    index, roots = sources
    with pytest.raises(StoreError, match=r"none of 1 volumes can be used: \{'truncated': 1\}"):
        pack(index[2:3], roots, tmp_path / "a", GEOMETRY)
    with pytest.raises(ValueError, match="no root for source 'inspect'"):
        pack(index, {s: roots[s] for s in ("ct-rate", "bimcv-r")}, tmp_path / "b", GEOMETRY)
    with pytest.raises(StoreError, match="names no volume"):
        pack(index[:0], roots, tmp_path / "c", GEOMETRY)
    monkeypatch.setattr(LOADERS["inspect"], "read_volume", lambda *a: 1 / 0)
    with pytest.raises(RuntimeError, match=r"inspect: volume PE000 .*ZeroDivisionError"):
        pack(index, roots, tmp_path / "d", GEOMETRY)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "sync", full)
    with pytest.raises(StoreError, match="no room to write"):
        pack(index[:2], roots, tmp_path / "e", GEOMETRY)
