"""Entities of reports: the dictionary against what the simulator says and against sentences it never wrote; the token
classifier; norm, match and the pool against brute force."""

import re
from collections import Counter
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from text_models import tiny_deberta

from synth_medvlp import dictionary_ner, entities, lexicon
from synth_medvlp.entities import ANATOMY, TYPES, DictionaryNer, Mention, NerConfig, gini, match, mine, ner, norm
from synth_medvlp.findings import NAMES, conditional_rates, draw_findings
from synth_medvlp.ner_model import ModelNer, merge
from synth_medvlp.simulate_reports import NEGATIVE, write_report

SHORT = {"A": "ABNORMALITY", "NA": "NON-ABNORMALITY", "D": "DISEASE", "ND": "NON-DISEASE", "P": ANATOMY}
# What a mention of each simulated finding looks like, in words of our own.
WORDS = {
    "cardiomegaly": r"cardiomegaly|heart|\bcardiac", "pleural_effusion": "effusion", "pneumothorax": "pneumothorax",
    "consolidation": "consolidation|pneumonia|infiltrat",
    "edema": "edema", "atelectasis": "atelectasis", "nodule": "nodule",
    "mass": r"\bmass\b", "granuloma": "granuloma", "rib_fracture": "fracture", "hiatal_hernia": "hernia",
    "emphysema": "emphysem", "fibrosis": "fibrosis", "pleural_thickening": "thickening", "scoliosis": "scoliosis",
    "tortuous_aorta": "aorta", "pacemaker": "pacemaker", "central_line": "central venous",
    "endotracheal_tube": "endotracheal", "feeding_tube": "enteric tube", "sternal_wires": "wire",
}  # fmt: skip
CLEAR_OF = ("consolidation", "edema", "atelectasis", "nodule", "mass", "granuloma", "fibrosis", "emphysema")

# Sentences of other hands than the simulator's -> "TYPE norm" of all that they name.
WRITTEN = {
    "The lungs are clear without focal consolidation, effusion, or edema.":
        "NA clear lung; NA focal consolidation; NA pleural effusion; NA edema",
    "Cardiomediastinal silhouette is within normal limits.": "NA normal cardiomediastinal silhouette",
    "The heart is not normal.": "A abnormal heart",
    "The cardiac silhouette is abnormal.": "A abnormal cardiac silhouette",
    "No normal chest radiograph.": "A normal chest radiograph",
    "There is no evidence of normal lungs.": "A normal lung",
    "Lungs are not clear.": "A clear lung",
    "A normal heart is not seen.": "A normal heart",
    "No pneumothorax or normal mediastinal contour.": "ND pneumothorax; A normal mediastinal contour",
    "No pneumothorax, normal mediastinal contour.": "ND pneumothorax; NA normal mediastinal contour",
    "No mass, normal chest radiograph or effusion.": "NA mass; A normal chest radiograph; NA pleural effusion",
    "This is not a normal chest radiograph.": "A normal chest radiograph",
    "The heart is not normal and enlarged.": "A abnormal cardiomegaly",
    "The heart is no longer normal.": "A normal heart",
    "The heart is not significantly enlarged.": "NA cardiomegaly",
    "The lungs are not entirely clear.": "A clear lung",
    "No pleural effusion with normal heart size.": "NA pleural effusion; NA normal heart size",
    "No change in normal heart size.": "NA normal heart size",
    "No acute osseous abnormalities identified.": "NA acute osseous abnormality",
    "Right PICC terminates in the low SVC.": "A right picc; P low superior vena cava",
    "Mild pulmonary vascular congestion is new.": "A mild pulmonary vascular congestion",
    "Patchy opacities in the right lung base may reflect atelectasis, although infection is not excluded.":
        "A patchy opacity; P right lung base; A atelectasis; D infection",
    "Moderate to large right pleural effusion with compressive atelectasis, not significantly changed.":
        "A moderate to large right pleural effusion; A compressive atelectasis",
    "Heart size is mildly enlarged.": "A mild cardiomegaly",
    "The aorta is tortuous and calcified.": "A tortuous calcified aorta",
    "Previously noted left apical pneumothorax is no longer visualized.": "ND left apical pneumothorax",
    "Median sternotomy with intact sternal wires.": "A intact sternotomy wire",
    "Multilevel degenerative changes of the thoracic spine.": "A multilevel degenerative change; P thoracic spine",
    "1. No evidence of pneumonia. 2. Cardiomegaly without pulmonary edema.":
        "ND pneumonia; A cardiomegaly; NA pulmonary edema",
    "The cardiac, mediastinal and hilar contours are normal.": "NA normal cardiac mediastinal and hilar contour",
    "Pleural effusions have resolved.": "NA pleural effusion",
    "Pneumothorax: none. Heart: enlarged.": "ND pneumothorax; A cardiomegaly",
    "Dual-chamber pacemaker with leads in the right atrium and right ventricle.":
        "A dual chamber pacemaker; P right atrium; P right ventricle",
    "There is blunting of the left costophrenic sulcus, suggestive of a trace effusion.":
        "A blunting; P left costophrenic sulcus; A trace pleural effusion",
    "Findings concerning for multifocal pneumonia.": "D multifocal pneumonia",
    "Biapical scarring. Emphysema with flattening of the diaphragms.":
        "A bilateral apical scarring; D emphysema; A flattening of the diaphragm",
    "Negative for active tuberculosis. Absence of pleural effusion.": "ND active tuberculosis; NA pleural effusion",
    "Neither pleural effusion nor pneumothorax is present.": "NA pleural effusion; ND pneumothorax",
    "NG tube tip is in the stomach, ETT above the carina.":
        "A enteric tube; P stomach; A endotracheal tube; P carina",
    "Lungs clear. Heart normal in size. No effusions.": "NA clear lung; NA normal heart; NA pleural effusion",
    "The trachea is midline. There is no mediastinal widening.": "NA midline trachea; NA mediastinal widening",
    "Elevated right hemidiaphragm. Subtle opacity over the left 5th rib.":
        "A elevated right hemidiaphragm; A subtle opacity; P left 5th rib",
    "No large effusion or pneumothorax, but small bilateral effusions cannot be excluded.":
        "NA large pleural effusion; ND pneumothorax; A small bilateral pleural effusion",
    "The lungs are hyperinflated but clear of consolidation.": "A hyperinflated lung; NA consolidation",
    "There are no findings of congestive heart failure.": "ND heart failure",
    "CHF with bilateral effusions. Old healed left rib fractures.":
        "D heart failure; A bilateral pleural effusion; D old healed left rib fracture",
    "Widened mediastinum. Enlarged cardiac silhouette. The heart is not enlarged.":
        "A widened mediastinum; A cardiomegaly; NA cardiomegaly",
    "No free air below the right hemidiaphragm.": "NA free air; P right hemidiaphragm",
    "Without pleural effusion; the heart is enlarged.": "NA pleural effusion; A cardiomegaly",
    "The left lung is clear. The right lung demonstrates a spiculated mass.":
        "NA clear left lung; P right lung; A spiculated mass",
    "Resolution of pulmonary edema. No interval change in moderate cardiomegaly.":
        "NA pulmonary edema; A moderate cardiomegaly",
    "No pneumothorax, small left effusion.": "ND pneumothorax; A small left pleural effusion",
    "No pneumothorax, pleural effusion.": "ND pneumothorax; NA pleural effusion",
    "There is no pneumothorax and the heart is enlarged.": "ND pneumothorax; A cardiomegaly",
    "Effusion and pneumothorax are not seen.": "NA pleural effusion; ND pneumothorax",
    "Nodule on the left lung base, effusion on the left.": "A nodule; P left lung base; A left pleural effusion",
    "Mass effect is absent. A 3.2 cm mass.": "NA mass effect; A mass",
    "Upper and lower lobe opacities on the right.": "A right upper and lower lobe opacity",
}  # fmt: skip


def named(text: str) -> list[tuple[str, str]]:
    return [(m.type, norm(m.text)) for m in DictionaryNer()([text])[0]]


@pytest.mark.parametrize("text", WRITTEN)
def test_sentences_the_simulator_never_wrote(text):
    expected = [tuple(item.strip().split(" ", 1)) for item in WRITTEN[text].split(";")]
    assert named(text) == [(SHORT[kind], name) for kind, name in expected]


def simulated(n: int, seed: int):
    rates = conditional_rates(dict.fromkeys(NAMES, 0.12), 0.5)
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        yield write_report(draw_findings(rates, "AP" if k % 2 else "PA", rng), rng)


def test_precision_and_recall_on_simulated_reports():
    """(finding, denied?) of each report against what the simulator knows it said."""
    right = extra = missed = 0
    for report in simulated(400, 7):
        said = {(str(name), status == NEGATIVE) for name, status in report.mentions.items()}
        found = set()
        for m in (m for section in DictionaryNer()([report.findings, report.impression]) for m in section):
            names = [k for k, words in WORDS.items() if m.type != ANATOMY and re.search(words, norm(m.text))]
            names = CLEAR_OF if "clear" in norm(m.text).split() else names
            found |= {(name, m.type.startswith("NON-")) for name in names}
        right, extra, missed = right + len(found & said), extra + len(found - said), missed + len(said - found)
    assert right > 3000
    assert right / (right + extra) > 0.99 and right / (right + missed) > 0.99


def test_the_reader_does_not_know_the_simulator():
    for module in (dictionary_ner, lexicon, entities):
        assert "simulate" not in Path(module.__file__).read_text()
    assert "simulate" not in lexicon.LEXICON.read_text().replace("simulator's sentences", "")


def test_spans_do_not_overlap_and_say_what_stands_there():
    texts = [section for r in simulated(60, 3) for section in (r.findings, r.impression)] + list(WRITTEN)
    for text, mentions in zip(texts, DictionaryNer()(texts), strict=True):
        assert all(m.text == text[m.start : m.end] and m.type in TYPES for m in mentions)
        assert all(a.end <= b.start for a, b in pairwise(mentions))


@pytest.mark.parametrize(
    "text", ["", "   ", ".", "1. 2. 3.", "¿?", "Æøå 東京", "no no no", "and , or", "the", "is not"]
)
def test_text_without_entities_has_none(text):
    assert DictionaryNer()([text]) == [[]]
    assert norm(norm(text)) == norm(text)


@pytest.mark.parametrize(
    "group",
    [
        ("small left pleural effusion", "Small left-sided pleural effusions", "a small pleural effusion on the left",
         "left pleural effusion, small in size"),
        ("mild cardiomegaly", "The heart is mildly enlarged", "mild enlargement of the cardiac silhouette",
         "mildly enlarged cardiac silhouette"),
        ("bilateral basilar atelectasis", "bibasilar atelectasis", "Bibasal  atelectases"),
        ("normal heart size", "heart size is normal", "Heart size is within normal limits."),
        ("enteric tube", "Nasogastric tube", "NG tube", "feeding tubes"),
        ("pleural effusion", "effusion", "Effusions"),
        ("right upper lobe opacity", "right upper lobe opacities"),
        ("lung apex", "lung apices"),
    ],
)  # fmt: skip
def test_norm_makes_the_same_of_the_same(group):
    assert {norm(text) for text in group} == {group[0]}


def test_norm_keeps_apart_what_differs_and_is_idempotent():
    apart = ["small left effusion", "large left effusion", "small right effusion", "small bilateral effusion",
             "pericardial effusion", "left upper lobe mass", "left lower lobe mass", "mass", "mass effect",
             "clear lungs", "normal lungs"]  # fmt: skip
    assert len({norm(text) for text in apart}) == len(apart)
    texts = [section for r in simulated(100, 5) for section in (r.findings, r.impression)] + list(WRITTEN)
    for m in {m.text for mentions in DictionaryNer()(texts) for m in mentions}:
        assert norm(norm(m)) == norm(m) != ""


# --- match ---

A, B = ("effusion", "ABNORMALITY"), ("left effusion", "ABNORMALITY")


@pytest.mark.parametrize(
    ("asked", "found", "expected"),
    [
        ([A], [A], (True, True, True)),
        ([A], [B], (False, True, False)),
        ([B], [A], (False, True, False)),
        ([A], [A, B], (False, False, True)),
        ([A, B], [A], (False, False, False)),
        ([A], [("effusion", "NON-ABNORMALITY")], (False, False, False)),
        ([("mass", "ABNORMALITY")], [("massive", "ABNORMALITY")], (False, False, False)),  # whole words only
        ([], [], (True, True, True)),
        ([], [A], (False, False, True)),
        ([A], [], (False, False, False)),
    ],
)
def test_three_rules(asked, found, expected):
    assert tuple(match(asked, found, rule)[0] for rule in entities.RULES) == expected


def test_missing_and_extra_are_listed():
    assert match([A, ("carina", ANATOMY)], [B], "strict") == (False, [("carina", ANATOMY), A], [B])
    assert match([A, ("carina", ANATOMY)], [B], "normalised") == (False, [("carina", ANATOMY)], [])
    with pytest.raises(ValueError, match="match rule 'loose': one of strict, normalised, recall"):
        match([], [], "loose")


def test_normalised_pairs_one_to_one_as_brute_force_does():
    rng, words = np.random.default_rng(0), ["a", "b", "c", "a b", "b c", "a b c", "c a"]
    agree = Counter()
    for _ in range(300):
        asked, found = ({(str(w), "ABNORMALITY") for w in rng.choice(words, int(rng.integers(0, 5)))} for _ in "xy")
        rest, over = sorted(asked - found), sorted(found - asked)
        best = max(
            (sum(f" {a[0]} " in f" {b[0]} " or f" {b[0]} " in f" {a[0]} " for a, b in zip(rest, p, strict=False))
             for p in permutations([*over, *[("-", "")] * len(rest)], len(rest))), default=0)  # fmt: skip
        ok, missing, extra = match(asked, found, "normalised")
        assert (len(missing), len(extra)) == (len(rest) - best, len(over) - best)
        assert ok == (not missing and not extra)
        agree[ok] += 1
    assert min(agree.values()) > 30


# --- the pool ---


def test_gini_is_the_mean_difference():
    rng = np.random.default_rng(1)
    for _ in range(20):
        x = rng.integers(0, 50, int(rng.integers(1, 30))).astype(float)
        pairs = np.abs(x[:, None] - x[None]).mean()
        assert gini(x) == pytest.approx(pairs / (2 * x.mean()) if x.sum() else 0.0)
    assert gini([]) == gini([0, 0]) == 0.0


def test_mine_counts_norm_strings_and_its_statistics():
    texts = ["Small left effusion. No mass.", "Small left-sided effusions. Mass in the carina.", "No mass."]
    pool, stats = mine(texts, DictionaryNer(), 1)
    assert pool["ABNORMALITY"] == {"small left pleural effusion": 2, "mass": 1}
    assert pool["NON-ABNORMALITY"] == {"mass": 2} and pool[ANATOMY] == {"carina": 1}
    assert list(pool["ABNORMALITY"]) == ["small left pleural effusion", "mass"]
    assert stats["of_several_types"] == 1 and stats["of_several_types_examples"] == ["mass"]
    of = stats["types"]["ABNORMALITY"]
    assert (of["mentions"], of["unique"], of["singletons"], of["surfaces"]) == (3, 2, 1, 3)
    assert of["coverage"][10] == 1.0 and of["gini"] == pytest.approx(1 / 6)
    assert mine([*texts, "The carina."], DictionaryNer(), 2)[0]["ABNORMALITY"] == {"small left pleural effusion": 2}
    with pytest.raises(ValueError, match=r"no entities with 2 mentions in 3 texts; lower ner.min_count"):
        mine(texts, DictionaryNer(), 2)


# --- the token classifier ---


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("B-A I-A O O", [("A", "aa bb")]),
        ("B-A B-A O O", [("A", "aa"), ("A", "bb")]),
        ("B-A I-P I-P O", [("A", "aa"), ("P", "bb cc")]),  # the type changes inside
        ("O O O B-A", [("A", "dd")]),  # open at the end of the sentence
        ("B-P O B-A I-A", [("P", "aa"), ("A", "cc dd")]),
        ("I-A I-A O I-P", [("A", "aa bb"), ("P", "dd")]),  # never begun
        ("O O O O", []),
    ],
)
def test_spans_are_merged(labels, expected):
    sentence = "aa bb cc dd"
    words = [(label, 3 * i, 3 * i + 2) for i, label in enumerate(labels.split())]
    assert [(kind, sentence[a:b]) for kind, a, b in merge(words, sentence)] == expected


@pytest.fixture(scope="module")
def deberta(tmp_path_factory):
    return tiny_deberta(tmp_path_factory.mktemp("rate-ner"))


def test_a_token_classifier_gives_mentions_of_the_text(deberta):
    reader = ner(NerConfig(backend="model", model=str(deberta), device="cpu", batch=3))
    texts = ["Small left effusion. The heart is enlarged; no edema", "", "Mass in the right upper lobe."]
    found = reader(texts)
    assert len(found) == 3 and found[1] == [] and sum(map(len, found)) > 3
    for text, mentions in zip(texts, found, strict=True):
        assert all(isinstance(m, Mention) and m.text == text[m.start : m.end] == m.text.strip() for m in mentions)
        assert all(m.type in TYPES for m in mentions)
        assert not any("." in m.text[:-1] for m in mentions)  # nothing crosses a sentence
    assert ModelNer(str(deberta), "cpu", 1)(texts) == found  # whatever the batch


def test_a_word_has_the_label_of_its_first_piece_and_signs_stand_alone(deberta):
    """The network's answer scripted: letters are pieces, B-A on the first of "mass", anything on the others."""
    reader = ModelNer(str(deberta), "cpu")
    at = {label: i for i, label in reader.labels.items()}
    sentence = "No mass."

    class Scripted(torch.nn.Module):
        def forward(self, input_ids, **kwargs):
            logits = torch.zeros(*input_ids.shape, len(at))
            words = reader.tokenizer(sentence).word_ids()
            for i, word in enumerate(words):
                label = {0: "O", 1: "B-NON-ABNORMALITY"}.get(word, "O") if word != words[i - 1] else "B-DISEASE"
                logits[:, i, at[label]] = 1
            return type("Out", (), {"logits": logits})

    reader.network = Scripted()
    mentions = reader([sentence])[0]
    assert mentions[0] == ("mass", "NON-ABNORMALITY", 3, 7)


def test_other_labels_are_refused(deberta, tmp_path):
    import json
    import shutil

    shutil.copytree(deberta, tmp_path / "ner")
    config = json.loads((tmp_path / "ner" / "config.json").read_text())
    config["id2label"]["1"] = "B-PERSON"
    (tmp_path / "ner" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"labels \['B-PERSON'\] are none of RaTE-NER's"):
        ModelNer(str(tmp_path / "ner"), "cpu")
    with pytest.raises(ValueError, match=r"ner.backend='spacy': one of dictionary, model"):
        ner(NerConfig(backend="spacy"))
