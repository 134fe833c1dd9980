"""One chest CT in, report and picture out: NIfTI in any orientation, DICOM, and what cannot be read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ct_files import bimcv_r, head, thorax, write_dicom, write_nifti

from argus import predict
from argus.config import Config, DataConfig
from argus.data import train_tokenizer
from argus.model import ArgusModel, ModelConfig
from shared.ct import LOADERS
from shared.ct.geometry import Geometry
from shared.ct.store import CtStore, pack
from shared.runs.config import dump

SHAPE = [16, 32, 32]
SMALL = ModelConfig(
    patch=[4, 8, 8], width=24, depth=1, heads=2, mlp=48, lora_r=4,
    llm={"hidden_size": 32, "layers": 2, "heads": 2},
)  # fmt: skip
REPORTS = ["No nodule is seen. The heart is normal.", "1. Nodule of 3.5 mm. 2. Effusion"]


def make_run(folder: Path, **settings) -> Path:
    """The checkpoint of a random model, and its run's config."""
    torch.manual_seed(0)
    cfg, tokenizer = replace(SMALL, **settings), train_tokenizer(REPORTS, 300)
    model = ArgusModel.build(cfg, SHAPE, tokenizer)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim >= 2:
                p.normal_(0, 0.3)
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    config = Config(data=DataConfig(sources=["inspect"], shape=SHAPE), model=cfg)
    config.eval.max_new_tokens = 24
    (folder / "config.yaml").write_text(dump(config))
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def test_every_file_of_a_volume_gives_the_same_report(checkpoint, tmp_path, capsys):
    hu = thorax()
    files = [write_nifti(tmp_path / f"{code}.nii.gz", hu, code) for code in ("LPS", "RAI", "SLP")]
    files.append(write_dicom(tmp_path / "series", hu))
    texts, pictures = set(), set()
    for k, file in enumerate(files):
        out = tmp_path / f"{k}.png"
        texts.add(predict.main([str(file), "--checkpoint", str(checkpoint), "--out", str(out)]))
        _, seen, parts = predict.report(predict.read(file), checkpoint)
        pictures.add((seen.hu.tobytes(), *(a.tobytes() for _, a in parts if a is not None)))
        assert out.stat().st_size > 20_000
    assert len(texts) == len(pictures) == 1 and texts != {""}
    assert f"picture: {tmp_path / '0.png'}" in capsys.readouterr().out
    other = write_nifti(tmp_path / "other.nii.gz", np.flip(hu, 0), "LPS")
    assert predict.report(predict.read(other), checkpoint)[1].hu.tobytes() not in {p[0] for p in pictures}


def test_the_prompt_is_that_of_the_section(checkpoint, tmp_path):
    volume = predict.read(write_nifti(tmp_path / "a.nii.gz", thorax()))
    by_default = predict.report(volume, checkpoint)[0]
    assert by_default == predict.report(volume, checkpoint, "impression")[0]  # the run's source is INSPECT
    assert by_default != predict.report(volume, checkpoint, "findings")[0]


@pytest.mark.parametrize("spacing", [None, [9.0, 13.0, 13.0]])
def test_the_model_sees_what_it_would_see_of_the_store(tmp_path, spacing):
    root = bimcv_r(tmp_path / "bimcv-r", 1)
    index = LOADERS["bimcv-r"].read_index(root).assign(source="bimcv-r")
    geometry = Geometry(tuple(SHAPE), None if spacing is None else tuple(spacing), (-1000.0, 400.0))
    pack(index, {"bimcv-r": root}, tmp_path / "store", geometry)
    data = vars(DataConfig(shape=SHAPE, spacing_mm=spacing, clip_hu=[-1000, 400]))
    volume = predict.read(root / index.path[0])
    np.testing.assert_array_equal(predict.prepared_as(volume, data).hu, CtStore(tmp_path / "store").hu(0))
    flat = predict.prepared_as(volume, data | {"slice_only": True}).hu
    assert (flat == CtStore(tmp_path / "store").hu(0)[SHAPE[0] // 2]).all()


def test_sentences_and_their_tokens():
    text = " 1. Nodule of 3.5 mm. Is it new?\nNo effusion"
    parts = [text[a:b] for a, b in predict.sentences(text)]
    assert parts == ["1. Nodule of 3.5 mm.", "Is it new?", "No effusion"]
    assert predict.sentences("  ") == []
    rng = np.random.default_rng(0)
    for _ in range(20):  # any cut into tokens: each belongs to the sentence in which it ends or begins
        cuts = sorted(rng.choice(np.arange(1, len(text)), 12, replace=False).tolist())
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        spans = predict.spans(pieces, text)
        assert spans[0][0] == 0 and spans[-1][1] == len(pieces)
        for (first, last), (_, end), part in zip(spans, predict.sentences(text), parts, strict=True):
            assert len("".join(pieces[: last - 1])) < end <= len("".join(pieces[:last])), part
            assert 0 <= first < last and (first == 0 or len("".join(pieces[:first])) < end)
    assert predict.spans([" 1. Nodule of 3.5 mm. Is it new?", "\nNo effusion"], text) == [(0, 1), (0, 1), (1, 2)]


def test_pieces_join_to_the_text_also_where_characters_span_tokens():
    tokenizer = train_tokenizer(REPORTS, 300)
    ids = [*tokenizer("Größe 3 µm. No nodule.", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    pieces = predict.pieces_of(ids, tokenizer)
    assert len(pieces) == len(ids) and "".join(pieces) == "Größe 3 µm. No nodule." and pieces[-1] == ""


@pytest.mark.parametrize("name", ["pixel_shuffle_3d", "avgpool", "none", "hilt", "attn_pool", "concat_1d"])
def test_attention_lies_where_the_visual_token_is(name):
    model = ArgusModel.build(replace(SMALL, compressor=name), SHAPE, train_tokenizer(REPORTS, 300))
    grid = (4, 4, 4) if name == "none" else (2, 2, 2)
    weights = torch.zeros(1, model.compressor.n_tokens)
    weights[0, np.ravel_multi_index((1, 0, 1), grid)] = 1
    found = predict.place_of(model, weights, SHAPE)
    if name in ("attn_pool", "concat_1d"):
        assert found is None
        return
    peak = np.unravel_index(int(found[0].argmax()), SHAPE)
    block = [n // g for n, g in zip(SHAPE, grid, strict=True)]
    assert tuple(p // b for p, b in zip(peak, block, strict=True)) == (1, 0, 1)


def test_arms_without_places_are_drawn_without_attention(tmp_path):
    file = write_nifti(tmp_path / "a.nii.gz", thorax())
    for name in ("attn_pool", "no_image"):
        run = make_run(tmp_path / name, compressor=name)
        shown = predict.report(predict.read(file), run)[2]
        assert shown and all(attention is None for _, attention in shown)
        predict.main([str(file), "--checkpoint", str(run), "--out", str(tmp_path / f"{name}.png")])
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000


def test_model_and_inputs_are_where_the_evaluation_has_them(checkpoint, tmp_path, monkeypatch):
    """`meta` stands for a GPU: whatever stayed behind is refused, and nothing is computed."""
    seen = {}

    def generate(model, volume, max_new_tokens, **prompt):
        seen.update({"volume": volume, "weights": next(model.parameters())} | prompt)
        return torch.zeros(1, 1, dtype=torch.long)  # a special token: an empty report

    monkeypatch.setattr(predict, "device", lambda: torch.device("meta"))
    monkeypatch.setattr(ArgusModel, "generate", generate)
    predict.report(predict.read(write_nifti(tmp_path / "a.nii.gz", thorax())), checkpoint)
    assert len(seen) > 2 and {x.device.type for x in seen.values()} == {"meta"}


def test_what_cannot_be_read_is_named(checkpoint, tmp_path, capsys):
    found = {
        "not a chest CT": write_nifti(tmp_path / "head.nii.gz", head()),
        "missing file": tmp_path / "nothing.nii.gz",
        "no series": tmp_path,
        "no trained run": write_nifti(tmp_path / "chest.nii.gz", thorax()),
    }
    for reason, path in found.items():
        run = tmp_path / "none" / "checkpoint" if reason == "no trained run" else checkpoint
        with pytest.raises(SystemExit):
            predict.main([str(path), "--checkpoint", str(run)])
        assert reason in capsys.readouterr().err
    config = checkpoint.parent / "config.yaml"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(config.read_text().replace("objective: report", "objective: mae"))
    with pytest.raises(SystemExit):
        predict.main([str(found["no trained run"]), "--checkpoint", str(tmp_path / "run" / "checkpoint")])
    assert "objective 'mae', which writes no reports" in capsys.readouterr().err
