"""GREEN, RaTEScore and RadGraph through the real path with tiny random checkpoints of the right formats; their
arithmetic by hand."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2ForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from argus import clinical
from argus.clinical import RateScore, clinical_scores, directed, green_counts, rate, rate_score
from argus.radgraph import ENCODER, WIDTHS, Graph, RadGraph, f1, words_of

PAIRS = pd.DataFrame(
    {
        "reference": ["There is a nodule in the right lobe.", "No effusion.", "No effusion.", "A nodule."],
        "prediction": ["A nodule in the left lobe. No effusion.", "No effusion.", "No effusion.", ""],
    }
)
WORDS = sorted({w for column in PAIRS for text in PAIRS[column] for w in words_of(text)})
NER_LABELS = ["O"] + [f"{p}-{t}" for t in clinical.TYPES for p in "BI"]


def tokenizer(folder, words=WORDS) -> PreTrainedTokenizerFast:
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    model = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = Whitespace()
    model.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=model, **names)
    wrapped.save_pretrained(folder)
    return wrapped


def bert(folder, size: int) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=64)  # fmt: skip
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of each format: causal LM, token classification, sentence encoder."""
    base = tmp_path_factory.mktemp("models")
    size = len(tokenizer(base / "green"))
    torch.manual_seed(0)
    llama = LlamaConfig(vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                        num_attention_heads=2, max_position_embeddings=320, eos_token_id=3, pad_token_id=0)  # fmt: skip
    LlamaForCausalLM(llama).save_pretrained(base / "green")
    tokenizer(base / "ner")
    labels = {"id2label": dict(enumerate(NER_LABELS)), "label2id": {n: i for i, n in enumerate(NER_LABELS)}}
    deberta = DebertaV2Config(vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                              intermediate_size=16, **labels)  # fmt: skip
    DebertaV2ForTokenClassification(deberta).save_pretrained(base / "ner")
    tokenizer(base / "words")
    bert(base / "words", size)
    return base


@pytest.fixture(scope="module")
def radgraph(tmp_path_factory):
    """An unpacked archive: config.json, weights.th, vocabulary/, with the names that DyGIE++ gives its weights."""
    folder = tmp_path_factory.mktemp("radgraph")
    model = bert(folder / "encoder", len(tokenizer(folder / "encoder")))
    reader = {"token_indexers": {"bert": {"model_name": "unused", "max_length": 12}}}
    settings = {"modules": {"relation": {"spans_per_word": 0.5}}}
    (folder / "config.json").write_text(json.dumps({"dataset_reader": reader, "model": settings}))
    vocabulary = folder / "vocabulary"
    vocabulary.mkdir()
    (vocabulary / "None__ner_labels.txt").write_text("\nAnatomy::definitely present\nObservation::definitely absent")
    (vocabulary / "None__relation_labels.txt").write_text("\nlocated_at\nmodify")
    torch.manual_seed(1)
    spans, state = 16 + 16 + 5, {ENCODER + k: v for k, v in model.state_dict().items()}
    state[WIDTHS] = torch.randn(4, 5)

    def linear(name: str, n_in: int, n_out: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(n_out, n_in), torch.randn(n_out)

    for head, n_out in (("_ner._ner_scorers.None__ner_labels", 2),
                        ("_relation._mention_pruners.None__relation_labels._scorer", 1)):  # fmt: skip
        linear(f"{head}.0._module._linear_layers.0", spans, 6)
        linear(f"{head}.0._module._linear_layers.1", 6, 6)
        linear(f"{head}.1._module", 6, n_out)
    linear("_relation._relation_feedforwards.None__relation_labels._linear_layers.0", 3 * spans, 6)
    linear("_relation._relation_scorers.None__relation_labels", 6, 2)
    torch.save(state, folder / "weights.th")
    return folder


# --- the interface ---


def test_all_back_ends_rate_every_distinct_pair_once(folders, radgraph, monkeypatch):
    seen = []
    monkeypatch.setitem(clinical.BACKENDS, "radgraph", lambda name: Counting(RadGraph(name), seen))
    models = {"green": str(folders / "green"), "ratescore": f"{folders / 'ner'} {folders / 'words'}",
              "radgraph": str(radgraph)}  # fmt: skip
    rated = rate(PAIRS, models)
    assert seen == [3], "the doubled pair is rated once"
    assert len(rated) == 4 and not rated.isna().any().any()
    assert rated.iloc[1].equals(rated.iloc[2].rename(1))
    scores = clinical_scores(pd.concat([PAIRS, rated], axis=1))
    assert {"green", "ratescore", "radgraph_simple", "radgraph_partial", "radgraph_complete"} <= set(scores)
    assert scores["radgraph_simple"].value == pytest.approx(rated.radgraph_simple.mean())
    assert rated.green_truncated.iloc[0] == 0 and rated.green_parsed.sum() == 0, "a random model answers nothing"
    assert scores["green"].value == 0 and np.isnan(scores["green_parsed_only"].value)
    assert rated.ratescore.iloc[3] == 0, "an empty prediction earns nothing"


class Counting:
    def __init__(self, back_end, seen):
        self.back_end, self.seen = back_end, seen

    def rate(self, references, candidates):
        self.seen.append(len(references))
        return self.back_end.rate(references, candidates)


def test_a_model_that_is_not_named_is_not_computed():
    rated = rate(PAIRS, {"green": None, "ratescore": None, "radgraph": None})
    assert len(rated) == 4 and not len(rated.columns)
    assert clinical_scores(pd.concat([PAIRS, rated], axis=1)) == {}
    some = PAIRS.assign(ratescore=[0.5, np.nan, 1.0, 1.0])
    assert clinical_scores(some) == {}, "a column with holes is no score"


def test_a_named_model_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="unpack the archive"):
        rate(PAIRS, {"radgraph": str(tmp_path)})
    with pytest.raises(ValueError, match="NER EMBEDDINGS"):
        rate(PAIRS, {"ratescore": "only-one"})


# --- GREEN ---

ANSWER = """[Explanation]:
(a) is not counted here: 9.

[Clinically Significant Errors]:
(a) False report of a finding in the candidate: 2. effusion; mass
(c) Wrong place: 1. left instead of right
(f) Omitted comparison: 0.

[Clinically Insignificant Errors]:
(b) Missing finding: 4. a; b; c; d

[Matched Findings]:
3. nodule; heart; bones"""


def test_green_answers_are_counted():
    assert green_counts(ANSWER) == (3, 3, True)
    numbered = ANSWER.replace("(a) F", "(1) F").replace("(c) W", "(3) W").replace("(f) O", "(6) O")
    assert green_counts(numbered) == (3, 3, True)
    none = "[Clinically Significant Errors]:\nNo errors.\n\n[Matched Findings]:\nNo matched findings."
    assert green_counts(none) == (0, 0, True)
    assert green_counts("[Matched Findings]:\n3. a; b; c") == (0, 0, False), "errors are missing"
    assert green_counts("I like this report.") == (0, 0, False)


def test_green_score_by_hand():
    table = pd.DataFrame({"green_matched": [3, 0, 2], "green_errors": [3, 0, 0], "green_parsed": [1, 0, 1],
                          "green_truncated": [0, 1, 0]})  # fmt: skip
    scores = clinical_scores(table)
    assert scores["green"].value == pytest.approx((0.5 + 0 + 1) / 3)
    assert scores["green_parsed_only"].value == pytest.approx(0.75)
    assert scores["green_truncated"].value == pytest.approx(1 / 3)


def test_green_reads_a_published_prompt_and_says_what_it_cut(folders, tmp_path):
    folder = tmp_path / "green"
    shutil.copytree(folders / "green", folder)
    (folder / "prompt.txt").write_text("compare {reference} with {candidate}")
    green = clinical.Green(str(folder))
    assert green.instruction("a", "b") == "compare a with b"
    rated = green.rate(["nodule " * 400, "nodule"], ["lobe", "lobe"])
    assert rated.green_truncated.tolist() == [1.0, 0.0]


# --- RaTEScore ---


def test_directed_score_by_hand():
    similarity = np.array([[0.9, 0.2], [0.1, 0.8]])
    types, others = ["DISEASE", "ANATOMY"], ["DISEASE", "ANATOMY"]
    weights = clinical.AFFINITY[2][2], clinical.AFFINITY[1][1]
    assert directed(similarity, types, others) == pytest.approx((0.9 * weights[0] + 0.8 * weights[1]) / sum(weights))
    opposite = directed(similarity[:1, :1], ["NON-DISEASE"], ["DISEASE"])
    assert opposite == pytest.approx(0.9 * clinical.OPPOSITE)
    assert directed(similarity[:1, :1], ["NON-DISEASE"], ["NON-ABNORMALITY"]) == pytest.approx(0.9), "both negative"


def test_rate_score_is_symmetric_and_one_for_equal_sides():
    a = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    b = torch.nn.functional.normalize(torch.randn(2, 8), dim=1)
    types = ["DISEASE", "ANATOMY", "ABNORMALITY"]
    assert rate_score(a, a, types, types) == pytest.approx(1)
    assert rate_score(a, b, types, types[:2]) == pytest.approx(rate_score(b, a, types[:2], types))


def test_entities_are_joined_from_their_tags(folders, monkeypatch):
    scorer = RateScore(f"{folders / 'ner'} {folders / 'words'}")
    tags = {"a": "O", "nodule": "B-ABNORMALITY", "in": "O", "the": "O", "right": "B-ANATOMY", "lobe": "I-ANATOMY"}

    class Fixed(torch.nn.Module):
        config, device = scorer.ner.config, torch.device("cpu")

        def forward(self, input_ids, **_):
            words = scorer.tokenizer.convert_ids_to_tokens(input_ids[0].tolist())
            ids = [NER_LABELS.index(tags.get(w, "O")) for w in words]
            return SimpleNamespace(logits=torch.nn.functional.one_hot(torch.tensor(ids), len(NER_LABELS))[None].float())

    scorer.ner = Fixed()
    found = scorer.entities("a nodule in the right lobe. a nodule.")
    assert found == [("nodule", "ABNORMALITY"), ("right lobe", "ANATOMY"), ("nodule", "ABNORMALITY")]
    rated = scorer.rate(["a nodule.", "a nodule.", "the."], ["a nodule.", "", "a nodule."])
    assert rated.ratescore.tolist() == pytest.approx([1.0, 0.0, 0.5])
    assert rated.ratescore_undecided.tolist() == [0, 0, 1], "no entity on one side: 0.5 as published, and counted"


# --- RadGraph ---


def test_levels_of_a_graph_by_hand():
    words = ("no", "nodule", "in", "right", "lobe")
    there = Graph(words, ((1, 1, "OBS"), (3, 4, "ANAT")), ((0, 1, "located_at"),))
    bare = Graph(words, ((1, 1, "OBS"), (3, 4, "ANAT")), ())
    assert f1(there.facts("simple"), bare.facts("simple")) == 1
    assert there.facts("partial") == {("nodule", "OBS", True), ("right lobe", "ANAT", False)}
    assert f1(there.facts("partial"), bare.facts("partial")) == 0.5
    assert there.facts("complete") == {("nodule", "OBS", "located_at", "right lobe"), ("right lobe", "ANAT")}
    assert f1(there.facts("complete"), set()) == 0


def test_radgraph_reads_what_its_weights_say(radgraph):
    """Entities against the network written out, one span at a time."""
    scorer = RadGraph(str(radgraph))
    text = "There is a nodule in the right lobe."
    graph = scorer.read(text)
    words, state = words_of(text), torch.load(radgraph / "weights.th", weights_only=True)
    with torch.no_grad():
        tokens = scorer.embed(words)

        def head(name, x, last):
            for k in (0, 1):
                x = (
                    (state[f"{name}.0._module._linear_layers.{k}.weight"] @ x)
                    .add(state[f"{name}.0._module._linear_layers.{k}.bias"])
                    .relu()
                )
            return state[f"{last}.weight"] @ x + state[f"{last}.bias"]

        name, found = "_ner._ner_scorers.None__ner_labels", set()
        for a in range(len(words)):
            for b in range(a, min(a + 4, len(words))):
                scores = head(name, torch.cat([tokens[a], tokens[b], state[WIDTHS][b - a]]), f"{name}.1._module")
                if scores.max() > 0:
                    found.add((a, b, scorer.labels[0][int(scores.argmax()) + 1]))
    assert set(graph.entities) == found and found
    assert all(0 <= i < len(graph.entities) and 0 <= j < len(graph.entities) for i, j, _ in graph.relations)
    same = scorer.rate([text], [text])
    assert same.to_numpy().tolist() == [[1.0, 1.0, 1.0]]
    assert scorer.rate([text], [""]).to_numpy().sum() == 0


def test_long_reports_are_read_in_parts(radgraph):
    scorer = RadGraph(str(radgraph))
    words = words_of("There is a nodule in the right lobe. " * 4)
    vectors = scorer.embed(words)
    assert vectors.shape == (len(words), 16)
    torch.testing.assert_close(vectors[:10], scorer.embed(words[:10]))  # 10 words and two ends fill a part of 12


def test_weights_of_another_model_are_refused(radgraph, tmp_path):
    folder = tmp_path / "radgraph"
    shutil.copytree(radgraph, folder)
    state = torch.load(folder / "weights.th", weights_only=True)
    torch.save({k: v for k, v in state.items() if "encoder.layer.0" not in k}, folder / "weights.th")
    with pytest.raises(ValueError, match="not the weights of this config"):
        RadGraph(str(folder))
