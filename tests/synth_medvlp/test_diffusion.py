"""`synth_medvlp.diffusion`, `oracle` and `train_diffusion`: any pipeline by seed, what is refused, what is remade."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from image_models import TEXTS, tiny_pipeline

from synth_medvlp import train_diffusion
from synth_medvlp.anatomy import draw_exposure
from synth_medvlp.diffusion import Generator, ImageConfig, generator, grey, shows_nothing
from synth_medvlp.findings import NAMES, conditional_rates, draw_findings
from synth_medvlp.oracle import Oracle, parse
from synth_medvlp.pairs import write_pairs
from synth_medvlp.simulate_reports import write_report

LONG = "Large left pleural effusion and moderate cardiomegaly. " * 20


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("pipeline"))


def _generator(pipeline, **options):
    return Generator(ImageConfig(checkpoint=str(pipeline), **({"steps": 3, "batch": 4} | options)), 8)


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver", "saved"])
def test_an_image_depends_on_its_seed_and_prompt_not_on_its_batch(pipeline, scheduler):
    make = _generator(pipeline, scheduler=scheduler)
    together, told = make([*TEXTS, TEXTS[0], TEXTS[0]], [5, 6, 7, 5, 8])
    assert together.shape == (5, 8, 8) and together.dtype == np.uint8 and told["made"] == 5
    alone = np.concatenate([make([text], [seed])[0] for text, seed in zip(TEXTS, (5, 6, 7), strict=True)])
    assert np.abs(together[:3].astype(int) - alone).max() <= 1  # other kernels for other batch sizes
    assert (together[0] == together[3]).all()
    assert (together[0] != together[4]).any()
    assert (
        type(make.pipeline.scheduler)
        .__name__.lower()
        .startswith({"ddim": "ddim", "dpmsolver": "dpmsolver", "saved": "ddim"}[scheduler])
    )


def test_prompts_behind_the_text_encoder_s_limit_are_counted(pipeline):
    make = _generator(pipeline)
    _, told = make([TEXTS[0], LONG, ""], [1, 2, 3])
    n = len(make.pipeline.tokenizer(LONG)["input_ids"])
    assert told["lost"] == [0, n - 77, 0] and told["prompts_truncated"] == 1 and told["tokens_lost"] == n - 77 > 0


def test_what_shows_nothing_is_named(pipeline):
    make = _generator(pipeline)
    with torch.no_grad():
        for parameter in make.pipeline.vae.decoder.conv_out.parameters():
            parameter.zero_()
    assert make(TEXTS[:2], [1, 2])[1]["constant"] == 2
    with torch.no_grad():
        make.pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # no cast of NaN to uint8
        images, told = make(TEXTS[:2], [1, 2])
    assert told["reasons"] == ["nan", "nan"] and told["nan"] == 2 and not images.any()
    faint = np.full((8, 8), 100, np.uint8)
    faint[0] = 103
    assert [shows_nothing(x) for x in (faint, np.zeros_like(faint), faint * np.eye(8, dtype=np.uint8))] == [
        "blank", "constant", "",
    ]  # fmt: skip


def test_grey_levels_and_size():
    picture = np.zeros((4, 4, 3), np.float32)
    picture[:2, :2] = [0.0, 0.5, 1.0]
    image, reason = grey(picture, 2)
    assert image.tolist() == [[128, 0], [0, 0]] and reason == ""
    assert grey(picture, 8)[0].shape == (8, 8)


def test_a_wrong_config_is_named(pipeline, tmp_path):
    with pytest.raises(ValueError, match=r"image\.dtype='float8'"):
        _generator(pipeline, dtype="float8")
    with pytest.raises(ValueError, match=r"image\.scheduler='euler'"):
        _generator(pipeline, scheduler="euler")
    with pytest.raises(ValueError, match=r"image\.checkpoint=.*nowhere"):
        _generator(tmp_path / "nowhere")(TEXTS[:1], [1])
    with pytest.raises(ValueError, match="2 prompts but 1 seeds"):
        _generator(pipeline)(TEXTS[:2], [1])
    assert isinstance(generator(ImageConfig(checkpoint="oracle"), 32), Oracle)


# --- the oracle ---


def test_the_oracle_reads_what_reports_say():
    rates = conditional_rates(dict.fromkeys(NAMES, 0.12), 0.5)
    said = right = n_extra = 0
    for k in range(150):
        rng = np.random.default_rng([3, k])
        findings = draw_findings(rates, "AP", rng)
        found = {f.name: f for f in parse(write_report(findings, rng).findings, np.random.default_rng(0))[0]}
        n_extra += len(set(found) - {f.name for f in findings})
        for f in findings:
            said += 1
            there = found.get(f.name)
            no_side_said = f.name == "scoliosis"
            right += there is not None and (no_side_said or there.side == f.side)
    assert said > 300 and right == said and n_extra == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No pleural effusion or pneumothorax.", []),
        ("Severe emphysema. Severe cardiomegaly.", [("emphysema", "bilateral")]),  # the second cannot stand beside it
        ("Opacity in the left mid lung and a small right effusion.",
         [("consolidation", "left"), ("pleural_effusion", "right")]),
        ("Right effusion. Large effusion.", [("pleural_effusion", "right")]),
        ("", []),
    ],
)  # fmt: skip
def test_the_oracle_draws_what_can_be_drawn(text, expected):
    findings, left_out = parse(text, np.random.default_rng(0))
    assert [(f.name, f.side) for f in findings] == expected
    assert left_out["excluded"] == ("emphysema" in text) and left_out["repeated"] == (text.count("ffusion") > 1)


def test_the_oracle_s_images_show_the_side(monkeypatch):
    """Left minus right brightness of the lower chest, the patient's left being on the right of the picture."""
    make, seeds = Oracle(32), list(range(12))
    left, right = (make([f"Large {side} pleural effusion."] * 12, seeds)[0].astype(float) for side in ("left", "right"))
    tilt = [(x[:, 16:26, 18:27].mean((1, 2)) - x[:, 16:26, 5:14].mean((1, 2))) for x in (left, right)]
    assert (tilt[0] > tilt[1] + 10).all()
    again, told = make(["Large left pleural effusion."] * 2, [0, 1])
    assert (again == left[:2]).all() and told["reasons"] == ["", ""]
    assert draw_exposure(np.random.default_rng(0), "PA").view == "PA"


# --- training ---

SMALL = (
    "--text-steps 4 --steps 4 --width 16 --text-width 16 --text-layers 1 --vocabulary 280 --text-batch 2 --batch 2 "
    "--size 16 --save-steps 2"
).split()


def _pairs(folder):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"id": list("abcd"), "patient": list("abcd"), "study": "1", "view": "PA", "source": "x"})
    table["findings"] = ["There is edema. The heart is normal."] * 4
    table["impression"] = [*TEXTS, ""]
    return write_pairs(folder, rng.integers(0, 256, (4, 16, 16), np.uint8), table, {})


def test_training_makes_a_pipeline_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    _pairs(tmp_path / "pairs")
    whole, cut = (["--out", str(tmp_path / name), "--work", str(tmp_path / f"work-{name}"),
                   "--pairs", str(tmp_path / "pairs"), *SMALL] for name in ("whole", "cut"))  # fmt: skip
    train_diffusion.main(whole)
    average = train_diffusion.Denoiser.average

    def killed(self, step):
        average(self, step)
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_diffusion.Denoiser, "average", killed)
    with pytest.raises(KeyboardInterrupt):
        train_diffusion.main(cut)
    assert (tmp_path / "cut" / "model_index.json").exists()  # usable from the first checkpoint on
    monkeypatch.setattr(train_diffusion.Denoiser, "average", average)
    out = train_diffusion.main(cut)
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        a, b = ((tmp_path / name / f"{part}.safetensors").read_bytes() for name in ("whole", "cut"))
        assert a == b, part
    make = Generator(ImageConfig(checkpoint=str(out), steps=2), 16)
    assert make(["Edema.", LONG], [0, 1])[0].shape == (2, 16, 16)
    assert "sha256" in (out / "README.md").read_text() and "--text-layers 1 " in (out / "README.md").read_text()
    with pytest.raises(ValueError, match="other arguments"):
        train_diffusion.main([*cut, "--lr", "0.1"])
    assert json.loads((tmp_path / "work-cut" / "arguments.json").read_text())["steps"] == "4"


def test_prompts_are_impressions_or_sentences_that_stand_in_the_report():
    tokenizer = train_diffusion.train_tokenizer(TEXTS, 300)
    table = pd.DataFrame({"findings": ["A one. B 2.5 cm two. C three."], "impression": ["1. D four. 2. E five."]})
    prompts, rng = train_diffusion.Prompts(table, tokenizer), np.random.default_rng(0)
    texts = [prompts.text(0, rng) for _ in range(200)]
    assert 60 < sum(text == table.impression[0] for text in texts) < 140
    sentences = {"A one.", "B 2.5 cm two.", "C three.", "D four.", "E five."}
    parts = [set(train_diffusion._sentences(text)) for text in texts]
    assert set().union(*parts) == sentences
    assert prompts.ids("A one.").shape == (77,) and prompts.ids("A one.")[0] == tokenizer.bos_token_id
    empty = pd.DataFrame({"findings": ["A one."], "impression": [""]})
    assert {train_diffusion.Prompts(empty, tokenizer).text(0, rng) for _ in range(20)} == {"A one."}
