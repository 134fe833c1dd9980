"""synth_medvlp.plan counts what the models really compute and what the loops of generation really call."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, ResNetConfig

from synth_medvlp import plan
from synth_medvlp.backends import Reply
from synth_medvlp.diffusion import ImageConfig
from synth_medvlp.encoders import ImageTowerConfig
from synth_medvlp.entities import Mention
from synth_medvlp.model import ModelConfig, VlpModel
from synth_medvlp.plan import PlanConfig, disk_gb, generation, hours, parameters, schedule, training_step
from synth_medvlp.sampler import Request, SamplerConfig
from synth_medvlp.writer import WriterConfig, write_batch
from tests.synth_medvlp import vlp_models

B, L, PX = 4, 7, 32
CFG = PlanConfig(global_batch=B, gpus=2, size_px=PX, text_tokens=L)


@pytest.fixture(scope="module")
def one() -> dict[str, float]:
    return plan.image_flop(PlanConfig(image=ImageConfig(steps=10, guidance=4.0)))


# --- vision-language pre-training ---


def test_parameters_of_the_hub_names():
    """Known counts: ResNet-50 without classifier; BERT-base of 28,996 pieces, 108.3 M with its pooler."""
    sizes = parameters(ModelConfig())
    assert sizes["image tower"] == 23_508_032
    assert sizes["text tower"] == 107_719_680 == 108_310_272 - (768 * 768 + 768)
    assert sizes["heads"] == 2048 * 2048 + 2048 + 2048 * 512 + 512 + 768 * 768 + 768 + 768 * 512 + 512
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    assert sizes["total"] - sizes["trained"] == 6 * layer  # frozen in profile convirt
    gloria = parameters(ModelConfig(profile="gloria"))
    assert gloria["heads"] == 1024 * 768 + 2048 * 768 + 768 and gloria["trained"] == gloria["total"]


def test_another_kind_of_tower_is_not_taken_for_the_known_one(monkeypatch):
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name: ResNetConfig())
    with pytest.raises(ValueError, match="microsoft/resnet-50 is a resnet, not a vit"):
        parameters(ModelConfig(image=ImageTowerConfig(arch="vit")))


@pytest.mark.parametrize("profile", ["convirt", "convirt_mgca", "gloria"])
@pytest.mark.parametrize("text", [{}, {"frozen_layers": 1}])
def test_a_step_equals_a_real_one(profile, text):
    """Operations to the last one; a model of the same config on real tensors."""
    torch.manual_seed(0)
    config = vlp_models.config(profile, text=text)
    words = vlp_models.tokeniser()
    config.text.vocabulary = len(words)
    net = VlpModel.build(config, words).train()
    sizes = parameters(config)
    assert sizes["total"] == sum(p.numel() for p in net.parameters())
    assert sizes["trained"] == sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert sizes["total"] + sum(b.numel() for b in net.buffers()) == sizes["trained"] + sizes["untrained"]
    batch = {name: torch.ones(B, L, dtype=torch.int64) for name in ("attention_mask", "word_ids")}
    batch["input_ids"] = torch.randint(5, len(words), (B, L))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(torch.randn(B, 1, PX, PX), **batch).loss.backward()
    step = training_step(config, PX, CFG)
    assert step["flop"] == counter.get_total_flops() / B > 0
    assert step["tokens"] == L and step["cells"] == (16 if profile == "gloria" else 4)  # 32 px / 4 / 2, / 2


def test_activations_grow_with_pixels_not_with_weights():
    config = vlp_models.config(text={"vocabulary": 90})
    small, large = (training_step(config, px, CFG)["activations"] for px in (PX, 2 * PX))
    assert 2 * small < large < 4 * small  # the text's share stays
    more_words = vlp_models.config(text={"vocabulary": 5000})
    assert training_step(more_words, PX, CFG)["activations"] == small


def test_profiles_decide_about_pixels():
    names = list(plan.variants(PlanConfig()))
    assert names == ["ConVIRT, 256 px", "ConVIRT, 224 px", "ConVIRT as in MGCA, 299 px", "GLoRIA, 299 px"]
    assert list(plan.variants(CFG))[:2] == ["ConVIRT, 32 px", "ConVIRT, 224 px"]
    others = ["ConVIRT as in MGCA, 299 px", "GLoRIA, 299 px"]
    assert plan.of_own_size(names) == ["ConVIRT, 256 px", *others]
    assert plan.of_own_size(list(plan.variants(PlanConfig(size_px=plan.CROP)))) == ["ConVIRT, 224 px", *others]


def test_schedule_and_hours_by_hand():
    cfg = PlanConfig(n_real=1050, n_synthetic=2000, image_pass=1.0, global_batch=100, epochs=3, gpus=2)
    rows = {(row["regime"], row["equal"]): row for row in schedule(cfg)}
    assert {key: row["steps"] for key, row in rows.items()} == {
        ("real", "steps"): 30, ("synthetic", "steps"): 30, ("mix", "steps"): 30,
        ("real", "epochs"): 30, ("synthetic", "epochs"): 60, ("mix", "epochs"): 90,
    }  # fmt: skip
    assert rows["synthetic", "steps"]["epochs"] == 1.5 and rows["mix", "epochs"]["pairs"] == 3050
    assert {row["steps"] for row in schedule(replace(cfg, steps=77)) if row["equal"] == "steps"} == {77}
    cfg = replace(cfg, peak_tflops={"X": 10.0}, utilisation=0.5, workers=4, pairs_per_worker=5)
    computing, loading = hours(3.6e12, 1000, cfg, "X")
    assert computing == pytest.approx(100_000 * 3.6e12 / (2 * 5e12) / 3600) and loading == pytest.approx(2500 / 3600)


# --- generation ---


class Lottery:
    """A writer whose texts pass at given rates, and the reader that sees whether they do."""

    name = prompt_version = "lottery"

    def __init__(self, rates):
        self.rates, self.rng, self.calls = rates, np.random.default_rng(0), Counter()

    def _draw(self, stage, feedback):
        self.calls[stage] += len(feedback)
        self.calls[f"{stage} retry"] += sum(f is not None for f in feedback)
        return [Reply("good" if self.rng.random() < self.rates[stage] else "bad") for _ in feedback]

    def write_findings(self, requests, feedback, seeds):
        return self._draw("findings", feedback)

    def write_impression(self, findings, requests, feedback, seeds):
        return self._draw("impression", feedback)


def test_calls_are_those_of_the_writer():
    """The real loop, with texts that pass by chance."""
    writer = Lottery({"findings": 0.4, "impression": 0.3})
    settings = WriterConfig(attempts=3, impression_attempts=2, rule="strict")
    requests = [Request(i, i, (("edema", "DISEASE"),), ()) for i in range(4000)]
    said = {"good": [Mention("edema", "DISEASE", 0, 4)], "bad": []}
    records = write_batch(requests, writer, lambda texts: [said[t] for t in texts], settings, lambda t: [1] * len(t))
    n = sum(record["status"] == "accepted" for record in records)
    cfg = PlanConfig(writer=settings, findings_pass=0.4, impression_pass=0.3, n_synthetic=n)
    assert plan.text_calls(cfg) == pytest.approx(writer.calls | {"requests": len(requests)}, rel=0.06)


def test_attempts_add_up():
    rng = np.random.default_rng(1)
    needed = rng.geometric(0.4, 40_000)
    assert plan.tries(0.4, 5) == pytest.approx(np.minimum(needed, 5).mean(), rel=0.02)
    assert plan.passed(0.4, 5) == pytest.approx((needed <= 5).mean(), abs=0.01)
    assert plan.tries(1.0, 5) == plan.passed(1.0, 5) == 1


def test_prompts_are_the_real_ones(monkeypatch):
    few, many = (plan.prompt_tokens(PlanConfig(sampler=SamplerConfig(k=k, m=3))) for k in (4, 8))
    added = 4 * (24 + len("-  ()\n")) + len("ABNORMALITYNON-ABNORMALITYDISEASENON-DISEASE")
    assert {key: many[key] - few[key] for key in few} == dict.fromkeys(few, pytest.approx(added / 4))
    per_type = plan.prompt_tokens(PlanConfig(sampler=SamplerConfig(k=2, m=3, joint=False)))
    assert per_type == many
    longer = plan.prompt_tokens(PlanConfig(sampler=SamplerConfig(k=4, m=3), findings_tokens=280))
    grown = {key: longer[key] - few[key] for key in few}
    assert grown == {"findings": 0, "findings retry": 100, "impression": 100, "impression retry": 100}
    said = plan.messages
    monkeypatch.setattr(plan, "messages", lambda *args: [*said(*args), {"role": "user", "content": "x" * 40}])
    assert plan.prompt_tokens(PlanConfig(sampler=SamplerConfig(k=4, m=3)))["findings"] == few["findings"] + 10


def test_operations_of_an_image(one):
    """Stable Diffusion 1.5's UNet has 859.5 M parameters; two passes a step under guidance, one decoder."""
    assert one["parameters"] == 859_520_964
    assert 0.7e12 < one["unet"] < 0.9e12
    assert 2e12 < one["image"] - 20 * one["unet"] < 3e12
    linear = 2 * 1370 * 12 * (4 * 768**2 + 2 * 768 * 3072) + 2 * 1369 * 14 * 14 * 3 * 768
    assert one["features"] == linear + 12 * 2 * 2 * 1370**2 * 768


def test_generation_by_hand(one, monkeypatch):
    monkeypatch.setattr(plan, "image_flop", lambda cfg: one)
    cfg = PlanConfig(n_real=50, n_synthetic=100, findings_pass=1.0, impression_pass=1.0, image_pass=0.5,
                     image=ImageConfig(attempts=2, dtype="bfloat16"), peak_tflops={"X": 100.0})  # fmt: skip
    rows = {row["stage"].split(",")[0]: row for row in generation(cfg)}
    assert {stage: row["calls"] for stage, row in rows.items()} == {
        "A2 six questions": 50, "A3 features": 50, "S2 FINDINGS": 100, "S4 IMPRESSION": 100, "S5 images": 150,
        "S6 six questions": 150, "S6 features": 150,
    }  # fmt: skip
    text = rows["S2 FINDINGS"]
    assert text["read"] == 100 * plan.prompt_tokens(cfg)["findings"] and text["written"] == 100 * 180
    assert text["flop"] == pytest.approx(2 * 70.6e9 * (text["read"] + text["written"]))
    assert text["hours_X"] == pytest.approx(text["flop"] / 10e12 / 3600)
    asked = rows["S6 six questions"]
    assert asked["read"] == 150 * (256 + len(plan.PROMPT) / 4) and asked["written"] == 150 * 40
    slow = {row["stage"]: row for row in generation(replace(cfg, image=ImageConfig(attempts=2)))}
    assert slow["S5 images, float32"]["hours_X"] == pytest.approx(4 * rows["S5 images"]["hours_X"])


def test_disk_by_hand():
    sizes = disk_gb(
        PlanConfig(size_px=1000, n_real=1000, n_synthetic=400, image_pass=0.5, image=ImageConfig(attempts=2))
    )
    assert sizes["packed real pairs"] == 1 and sizes["MIMIC-CXR-JPG"] == pytest.approx(565.665)
    assert sizes["images of S6, accepted"] == sizes["packed synthetic pairs"] == 0.3
    assert sizes["images of S6, rejected"] == pytest.approx(0.1)


# --- the command ---


def test_the_paper_config_is_planned_without_network(capsys, monkeypatch, one):
    monkeypatch.setattr(plan, "image_flop", lambda cfg: one)
    last = list(plan.variants(PlanConfig()).items())[-1:]  # one of them at full size
    monkeypatch.setattr(plan, "variants", lambda cfg: dict(last))
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network was asked"))
    plan.main(["--config", "synth_medvlp/configs/paper.yaml", "--global_batch", "8", "--text_tokens", "8"])
    out = capsys.readouterr().out
    assert "23.5M" in out and "107.7M" in out and "on 8 GPUs (A100 / H100), batch 8" in out
    assert "GLoRIA, 299 px" in out and "333,000" in out and "S5 images, float32" in out and "MIMIC-CXR-JPG 565.7" in out


def test_settings_come_from_the_run_config():
    found = plan.from_run_config("synth_medvlp/configs/paper.yaml")
    assert found["model.image.name"] == "microsoft/resnet-50" and found["global_batch"] == 32
    assert (found["sampler.k"], found["image.steps"], found["writer.attempts"], found["size_px"]) == (9, 75, 5, 224)


def test_unknown_options_are_errors(capsys):
    with pytest.raises(SystemExit):
        plan.main(["--model.imgae.stem", "2"])
    assert "imgae" in capsys.readouterr().err
