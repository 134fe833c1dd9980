"""Language models on this machine as report writers: any with a chat template, and the small one, its training and its
weights."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from report_requests import GOOD, NER, REPORTS, REQUEST, sampler
from text_models import tiny_llama

from synth_medvlp import backends, train_writer
from synth_medvlp.backends import Feedback, Reply, TemplateWriter, _OwnDraws
from synth_medvlp.entities import entities
from synth_medvlp.writer import WriterConfig, make, write_reports

# --- any model ---


@pytest.mark.parametrize("best", [64, 1])  # 1: all have to be sorted
def test_own_draws_have_the_distribution_of_temperature_and_top_p(monkeypatch, best):
    monkeypatch.setattr(backends, "_BEST", best)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])
    p = torch.softmax(logits / 0.7, -1).numpy()
    order, kept, total = np.argsort(-p), [], 0.0
    for i in order:  # top-p by the book: the fewest that reach it
        if total < 0.9:
            kept.append(i)
            total += p[i]
    expected = np.zeros(5)
    expected[kept] = p[kept] / total
    n = 20_000
    draws = _OwnDraws(range(n), 3, 1, 0.7, 0.9, "cpu")
    chosen = draws(torch.zeros(n, 3, dtype=torch.long), logits.expand(n, 5).clone()).argmax(-1)
    assert np.abs(np.bincount(chosen, minlength=5) / n - expected).max() < 0.012
    assert set(chosen.tolist()) == set(kept)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders of two random models: the small writer's form, untaught, and a Llama with a chat template."""
    return {form: tiny_llama(tmp_path_factory.mktemp(form), form) for form in ("plain", "chat")}


def local(folder, **options):
    return make(WriterConfig(model=str(folder), max_new_tokens=12, **({"batch": 4} | options)))


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_a_text_does_not_depend_on_its_batch(tiny, form):
    requests, writer = sampler().draw(6), local(tiny[form])
    writer._ends = lambda stop: []  # a random model would end anywhere
    monkey = [w.text for w in (writer._generate([writer._prompt(r, None, None)], [r.seed], [])[0] for r in requests)]
    together = writer._generate([writer._prompt(r, None, None) for r in requests], [r.seed for r in requests], [])
    assert [w.text for w in together] == monkey
    assert [w.n_prompt for w in together] == [
        len(writer.tokenizer(writer._prompt(r, None, None))["input_ids"]) for r in requests
    ]


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_a_random_model_ends_in_counted_rejections(tiny, tmp_path, form):
    cfg = WriterConfig(model=str(tiny[form]), max_new_tokens=6, batch=4, attempts=2, give_up=2)
    records, stats = write_reports(sampler(), 4, make(cfg), NER, cfg, tmp_path)
    assert stats["accepted"] == 0 and all(r["text_attempts"] == 2 for r in records)
    assert stats["findings"]["errors"]["cut"] > 0 and stats["findings"]["tokens_in"] > 100
    assert stats["findings"]["prompts"] == 2 * len(records)


def test_the_small_model_is_asked_in_its_form_and_stops_where_the_section_ends(tiny, monkeypatch):
    writer = local(tiny["plain"])
    asked = []

    def generate(prompts, seeds, ends):
        asked.append((prompts, writer.tokenizer.convert_ids_to_tokens(ends)))
        return [Reply("x")] * len(prompts)

    monkeypatch.setattr(writer, "_generate", generate)
    writer.write_findings([REQUEST], [Feedback("No mass.")], [1])
    writer.write_impression([GOOD], [REQUEST], [None], [1])
    listed = "<ABNORMALITY> small left pleural effusion<NON-DISEASE> pneumothorax<ANATOMY> carina<FINDINGS>"
    assert asked == [([listed], ["<IMPRESSION>"]), ([f"{listed} {GOOD}<IMPRESSION>"], ["</s>"])]


def test_models_and_configs_that_lack_something_are_named(tiny, tmp_path):
    import shutil

    shutil.copytree(tiny["chat"], tmp_path / "llm")
    (tmp_path / "llm" / "chat_template.jinja").unlink()
    for file in (tmp_path / "llm").glob("tokenizer*.json"):
        file.write_text(file.read_text().replace("<FINDINGS>", "<F>"))
    with pytest.raises(ValueError, match="has no chat template"):
        local(tmp_path / "llm")
    with pytest.raises(ValueError, match=r"writer.backend='gpt': one of local, endpoint, template"):
        make(WriterConfig(backend="gpt"))
    with pytest.raises(ValueError, match=r"needs writer\.base_url"):
        make(WriterConfig(backend="endpoint"))
    with pytest.raises(ValueError, match=r"writer.rule='loose'"):
        write_reports(sampler(), 1, TemplateWriter(WriterConfig()), NER, WriterConfig(rule="loose"), tmp_path)


# --- the small writer: its texts, its training, its weights ---


def test_composed_texts_name_the_same_entities_in_both_sections():
    bank, types = train_writer.bank(REPORTS), Counter()
    for i in range(150):
        asked, findings, impression = train_writer.compose(bank, 4, np.random.default_rng(i))
        found, also = (entities(mentions) for mentions in NER([findings, impression]))
        assert asked == found == also
        types.update(kind for _, kind in asked)
    assert len(types) == 5 and min(types.values()) > 40  # every type often, whatever its share of real reports


def test_the_loss_is_on_the_texts_only():
    tokenizer = train_writer.train_tokenizer([text for report in REPORTS for text in report], 500)
    data = train_writer.Texts(40, 4, REPORTS, tokenizer, 1)
    for i in range(20):
        item = data[i]
        assert item == data[i]
        start = next(j for j, label in enumerate(item["labels"]) if label != -100)
        assert tokenizer.decode(item["input_ids"][:start]).endswith("<FINDINGS>")
        assert item["labels"][start:] == item["input_ids"][start:]
        assert tokenizer.decode(item["input_ids"]).endswith((train_writer.END, train_writer.IMPRESSION))
    batch = train_writer._padded([data[0], data[1]])
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_training_reduces_the_loss_and_leaves_a_usable_folder(tmp_path, capsys):
    args = "--patients 60 --steps 12 --batch 8 --width 32 --layers 1 --vocabulary 400".split()
    train_writer.main([str(tmp_path / "w"), *args])
    readme = (tmp_path / "w" / "README.md").read_text()
    digest = hashlib.sha256((tmp_path / "w" / "model.safetensors").read_bytes()).hexdigest()
    assert digest in readme and "--patients 60 --seed 11 --level middle --steps 12" in readme
    reply = local(tmp_path / "w").write_findings([REQUEST], [None], [1])[0]
    assert reply.n_new == 12 or reply.error != "cut"
    assert not list((tmp_path / "w").rglob("*.bin"))


WEIGHTS = Path(backends.__file__).parent / "weights" / "writer"


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="no weights/writer: python -m synth_medvlp.train_writer makes them")
def test_the_shipped_weights_write_what_is_asked(tmp_path):
    digest = hashlib.sha256((WEIGHTS / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (WEIGHTS / "README.md").read_text()
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*")) < 3e6
    cfg = WriterConfig(max_new_tokens=120, rule="strict", batch=64)
    _, stats = write_reports(sampler(), 40, make(cfg), NER, cfg, tmp_path)
    assert stats["accepted"] / stats["requests"] > 0.6
