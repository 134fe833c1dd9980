"""`synth_medvlp.mllm`: replies of language models, a misbehaving endpoint, tiny random checkpoints."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from chat_server import ChatServer, running
from image_models import tiny_encoder, tiny_llava
from PIL import Image

from shared.chat import EndpointError
from synth_medvlp.mllm import API_KEY, PROMPT, REMINDER, Encoder, read
from synth_medvlp.screening import QUESTIONS, UNREAD, AuditConfig, screener

YES6 = [1] * 6


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"1": "YES", "2": "yes", "3": "Yes.", "4": "NO", "5": true, "6": false}', [1, 1, 1, 0, 1, 0]),
        ('Sure!\n```json\n{"q1":"YES","q2":"YES","q3":"YES","q4":"YES","q5":"YES","q6":"YES"}\n```', YES6),
        (str({name: "NO" for name in QUESTIONS}).replace("'", '"'), [0] * 6),
        ('["YES","YES","YES","YES","YES","NO"]', [1, 1, 1, 1, 1, 0]),
        ("1. YES\n2) NO\nQ3: yes\nQuestion 4 - No\n5. Is it upright? YES\n**6.** NO", [1, 0, 1, 0, 1, 0]),
        ("1. No, this is a frontal view. YES\n2. YES\n3. YES\n4. YES\n5. YES\n6. YES", YES6),
        ("YES YES NO YES YES YES", [1, 1, 0, 1, 1, 1]),
        ("Yes.", None), ("", None), ("1. YES\n2. YES\n3. YES\n4. YES\n5. YES", None),
        ("1. YES\n1. NO\n2. YES\n3. YES\n4. YES\n5. YES\n6. YES", None),
        ('{"1": "YES", "2": "MAYBE", "3": "YES", "4": "YES", "5": "YES", "6": "YES"}', None),
        ("YES or NO? YES YES YES YES YES YES", None),
    ],
)  # fmt: skip
def test_replies(reply, expected):
    assert read(reply) == expected


def _images(*rows):
    images = np.full((len(rows), 6, 6), 90, np.uint8)
    for image, (which, bits) in zip(images, rows, strict=True):
        image[0, :2] = which, bits
    return images


TEXTS = {
    "prose": "This looks like a normal chest X-ray of an adult.",
    "five": "1. YES\n2. YES\n3. YES\n4. NO\n5. YES",
    "cut": '{"1": "YES", "2": "Y',
    "empty": "",
}


class ScreenServer(ChatServer):
    """Looks at the image: pixel (0, 0) names it, bit i of pixel (0, 1) is NO to question i."""

    broken = TEXTS
    slow_s = 1.0

    def pixels(self, body) -> list[int]:
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))
        return image[0, :2, 0].tolist()

    def asked(self, body):
        return self.pixels(body)[0]

    def good(self, body):
        answers = {str(i + 1): "NO" if self.pixels(body)[1] >> i & 1 else "YES" for i in range(6)}
        return f"Here you are:\n```json\n{json.dumps(answers)}\n```"


@pytest.fixture
def server():
    with running(ScreenServer()) as server:
        server.retry_after = "0"
        yield server


def _screener(server, **options):
    options = {"retries": 2, "timeout_s": 0.4, "backoff_s": 0.01, "workers": 4, "reasks": 2, "batch": 4} | options
    return screener(AuditConfig(screener="endpoint", model="m", base_url=server.base_url, **options), 6)


def test_an_endpoint_that_misbehaves(server, monkeypatch):
    monkeypatch.setenv(API_KEY, "secret")
    server.script = {
        1: ["prose"], 2: ["five", "cut"], 3: ["429", "503"], 4: ["slow"], 5: ["nojson"],
        6: ["prose", "empty", "five"], 7: ["nojson"] * 9,
    }  # fmt: skip
    asked = _screener(server)
    answers = asked.answers(_images((0, 0), (1, 5), (2, 32), (3, 1), (4, 2), (5, 4), (6, 0), (7, 0)))
    expected = [[1 - (bits >> i & 1) for i in range(6)] for bits in (0, 5, 32, 1, 2, 4)]
    assert answers.tolist() == [*expected, [UNREAD] * 6, [UNREAD] * 6]
    assert asked.counts == {"replies": 8 + 1 + 2 + 2 + 2, "reasks": 7, "unread": 2}
    headers, body = server.requests[0]
    assert headers["authorization"] == "Bearer secret" and body["temperature"] == 0.0
    assert body["messages"][0]["content"][1]["text"] == PROMPT and all(q in PROMPT for q in QUESTIONS.values())
    again = [b["messages"] for _, b in server.requests if len(b["messages"]) > 1]
    assert all(m[-1]["content"] == REMINDER and m[-2]["role"] == "assistant" for m in again) and again


@pytest.mark.parametrize("status", ["401", "404", "422"])
def test_an_endpoint_that_refuses_stops_the_run(server, status, monkeypatch):
    monkeypatch.delenv(API_KEY, raising=False)
    server.script = {1: [status] * 9}
    with pytest.raises(EndpointError, match=status):
        _screener(server).answers(_images((1, 0)))
    assert server.requests[0][0]["authorization"] == "Bearer none"  # never the user's hub token


def test_an_endpoint_that_stays_busy_or_is_absent_stops_the_run(server):
    server.script = {1: ["503"] * 9}
    with pytest.raises(EndpointError, match="run again"):
        _screener(server).answers(_images((1, 0)))
    server.server_close()
    absent = _screener(server, retries=0)
    with pytest.raises(EndpointError, match="nobody answers"):
        absent.answers(_images((0, 0)))


# --- tiny random checkpoints ---


def test_features_are_the_normalised_class_token(tmp_path):
    from transformers import AutoImageProcessor, AutoModel

    folder = tiny_encoder(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 20), np.uint8)
    found = Encoder(AuditConfig(encoder=str(folder), batch=2))(images)
    assert found.shape == (5, 16) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    pixels = AutoImageProcessor.from_pretrained(folder)(
        images=[np.repeat(images[3][..., None], 3, 2)], return_tensors="pt"
    )
    token = AutoModel.from_pretrained(folder).eval()(**pixels).last_hidden_state[0, 0].detach().numpy()
    assert np.allclose(found[3], token / np.linalg.norm(token), atol=1e-4)


def test_a_local_model_answers_and_what_it_babbles_is_unread(tmp_path, monkeypatch):
    folder = tiny_llava(tmp_path, [PROMPT, REMINDER])
    cfg = AuditConfig(screener="mllm", model=str(folder), encoder="none", batch=2, reasks=1, max_new_tokens=5)
    asked = screener(cfg, 16)
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16), np.uint8)
    assert (asked.answers(images) == UNREAD).all() and asked.counts == {"replies": 6, "reasks": 3, "unread": 3}
    together = asked.ask(list(images), [[], ["babble"], []])
    alone = [asked.ask([image], [said])[0] for image, said in zip(images, [[], ["babble"], []], strict=True)]
    assert together == alone  # left padding
    monkeypatch.setattr(asked, "ask", lambda images, earlier: ["YES NO YES YES YES YES"] * len(images))
    assert asked.answers(images).tolist() == [[1, 0, 1, 1, 1, 1]] * 3


def test_a_repository_with_code_of_its_own_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "internvl_chat", "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}}'
    )
    cfg = AuditConfig(screener="mllm", model=str(tmp_path), encoder="none")
    with pytest.raises(ValueError, match=r"audit\.screener endpoint"):
        screener(cfg, 16)


def test_of_internvl_transformers_knows_its_own_format_only(tmp_path):
    from transformers import (
        AutoModelForImageTextToText,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLVisionConfig,
        Qwen2Config,
    )  # fmt: skip

    torch.manual_seed(0)
    vision = InternVLVisionConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                                  image_size=[28, 28], patch_size=[14, 14])  # fmt: skip
    text = Qwen2Config(vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                       num_key_value_heads=2, pad_token_id=0, eos_token_id=1)  # fmt: skip
    config = InternVLConfig(vision_config=vision, text_config=text, image_seq_length=1, image_token_id=19)
    InternVLForConditionalGeneration(config).save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    asked = {"input_ids": torch.tensor([[5, 19, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    out = model.generate(pixel_values=torch.rand(1, 3, 28, 28), max_new_tokens=2, do_sample=False, **asked)
    assert isinstance(model, InternVLForConditionalGeneration) and 4 <= out.shape[1] <= 5


def test_the_paper_tier_asks_a_server():
    from synth_medvlp.config import parse

    cfg = parse(["--config", "synth_medvlp/configs/paper.yaml"])
    assert screener(cfg.audit, cfg.data.size_px).identity["screener"] == "endpoint"
    assert cfg.writer.backend == "endpoint" and cfg.writer.base_url != cfg.audit.base_url
