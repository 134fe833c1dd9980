"""`shared.metrics.ct_findings`: what is read from CT reports and where, how it is scored, how well it reads."""

import itertools
import time

import numpy as np
import pandas as pd
import pytest

from shared.metrics import ct_findings as module
from shared.metrics.ct_findings import (
    CT_RATE_LABELS,
    FINDINGS,
    asserted,
    ct_rate_labels,
    extract,
    finding_scores,
)
from shared.metrics.ct_findings_validation import (
    RESULT,
    SAMPLES,
    ct_rate_table,
    full_table,
    main,
    read_says,
    sentences,
    validated_findings,
    validation_table,
)
from shared.metrics.ct_places import BOTH, Place
from shared.metrics.findings import agreement
from shared.metrics.interval import difference, interval

# Labels as in ct_sentences.csv: name = present, name? = uncertain, -name = absent, @side.region.
EXAMPLES = [
    ("", ""),
    ("The examination is of good quality.", ""),
    ("Nodule in the right upper lobe.", "nodule@right.upper_lobe"),
    ("Nodules in the right upper and left lower lobes.", "nodule@right.upper_lobe,left.lower_lobe"),
    ("Consolidation and atelectasis in the left lower lobe.",
     "consolidation@left.lower_lobe atelectasis@left.lower_lobe"),
    ("Atelectasis in the right lower lobe and left pleural effusion.",
     "atelectasis@right.lower_lobe pleural_effusion@left"),
    ("RUL nodule, LLL consolidation.", "nodule@right.upper_lobe consolidation@left.lower_lobe"),
    ("Moderate left and small right pleural effusions.", "pleural_effusion@both"),
    ("Pleural effusions, right greater than left.", "pleural_effusion@both"),
    ("Emphysema, more prominent in the upper lobes.", "emphysema@both.upper_lobe"),
    ("No pneumothorax, but a small left effusion.", "-pneumothorax pleural_effusion@left"),
    ("No pneumothorax, small left effusion.", "-pneumothorax pleural_effusion@left"),
    ("No consolidation, small effusion, or pneumothorax.", "-consolidation -pleural_effusion -pneumothorax"),
    ("Pericardial, pleural effusion was not detected.", "-pericardial_effusion -pleural_effusion"),
    ("No change in the nodule.", "nodule"),
    ("Near complete resolution of the effusion.", "pleural_effusion"),
    ("Resolution of the left effusion.", "-pleural_effusion"),
    ("The consolidation has resolved.", "-consolidation"),
    ("The effusion is not excluded.", "pleural_effusion?"),
    ("Opacity may represent atelectasis or pneumonia.", "opacity atelectasis? pneumonia?"),
    ("Likely benign nodule.", "nodule"),
    ("History of pulmonary embolism.", ""),
    ("Indication: evaluate for pneumonia, effusion.", ""),
    ("Axillary mass.", ""),
    ("Thyroid nodule, subcutaneous emphysema.", ""),
    ("Calcified plaques in the aortic arch and coronary arteries.",
     "aortic_calcification@.arch coronary_calcification"),
    ("Lymph nodes up to 14 mm in the mediastinum.", "lymphadenopathy@.mediastinal"),
    ("Lymph nodes smaller than 8 mm in the mediastinum.", "-lymphadenopathy"),
    ("The heart is not enlarged and the thoracic aorta is normal.", "-cardiomegaly -aortic_aneurysm"),
    ("Fractures of the left 4th and 5th ribs.", "fracture@left.rib"),
    ("Nodule in the right\nlower lobe\n2. No effusion", "nodule@right.lower_lobe -pleural_effusion"),
    ("Small plueral effusoin, oedema.", "pleural_effusion pulmonary_edema"),
]  # fmt: skip


def _comparable(found):
    return {name: (f.status, f.places if f.status != "absent" else None) for name, f in found.items()}


@pytest.mark.parametrize(("text", "says"), EXAMPLES, ids=[text[:40] for text, _ in EXAMPLES])
def test_extract_reads_exactly_this(text, says):
    assert _comparable(extract(text)) == _comparable(read_says(says))


@pytest.mark.parametrize("label", CT_RATE_LABELS)
def test_the_name_of_a_label_is_read_as_that_label(label):
    assert ct_rate_labels({"Medical material": "Surgical material"}.get(label, label)) == {(label,)}


def test_every_finding_is_read_from_its_own_name():
    words = {"tube": "chest tube", "valve_calcification": "aortic valve calcification"}
    for name in FINDINGS:
        found = extract(words.get(name, name.replace("_", " ")))
        assert name in found and found[name].status == "present", name


def test_places_in_every_phrasing():
    phrasings = (
        "{side} {lobe} nodule",
        "There is a nodule in the {side} {lobe}.",
        "In the {lobe} of the {side} lung, a nodule is observed.",
        "A nodule is seen in the {side} lung {lobe} posterior segment and no effusion.",
        "Nodule, {side} {lobe}.",
    )
    for phrasing, side, lobe in itertools.product(phrasings, BOTH, ("upper lobe", "lower lobe")):
        text = phrasing.format(side=side, lobe=lobe)
        assert extract(text)["nodule"].places == {Place(side, lobe.replace(" ", "_"))}, text


def test_lists_are_denied_as_a_whole():
    words = ["nodule", "mass", "consolidation", "pneumothorax", "bronchiectasis", "atelectasis", "pleural effusion"]
    denials = (
        "No {0}, {1} or {2}.",
        "{0}, {1} and {2} were not detected.",
        "Without evidence of {0}, {1}, or {2}",
        "There is no {0} or {1}, nor {2}.",
        "Neither {0}, {1} nor {2} is seen.",
        "Lungs without {0}, {1}, {2}.",
    )
    for three in itertools.permutations(words, 3):
        names = {word.replace(" ", "_") for word in three}
        assert extract(f"{', '.join(three)} are seen.") == dict.fromkeys(names, module.Found("present", frozenset()))
        for denial in denials:
            text = denial.format(*three)
            assert {name: f.status for name, f in extract(text).items()} == dict.fromkeys(names, "absent"), text


def test_present_wins_over_uncertain_over_absent_and_places_are_joined():
    assert extract("Possible nodule. Nodule.")["nodule"].status == "present"
    assert extract("No nodule. Possible nodule.")["nodule"].status == "uncertain"
    found = extract("Nodule in the right apex. No nodule in the left lower lobe. Nodule in the lingula.")["nodule"]
    assert found.places == {Place("right", "upper_lobe"), Place("left", "lingula")}


def test_one_wrong_letter_is_corrected():
    for word in ("consolidation", "emphysema", "pneumothorax", "cardiomegaly", "bronchiectasis", "atelectasis"):
        for i in range(len(word) - 1):
            a, b = word[:i], word[i:]
            for wrong in (a + b[1:], a + b[1] + b[0] + b[2:], a + "x" + b, a + "x" + b[1:]):
                assert asserted(f"there is {wrong}") == {(word,)}, wrong


def test_asserted_at_three_depths_and_bad_arguments():
    text = "Possible nodules in both lower lobes. Cardiomegaly."
    assert asserted(text) == {("nodule",), ("cardiomegaly",)}
    assert asserted(text, location="side") == {("nodule", "left"), ("nodule", "right"), ("cardiomegaly", "")}
    assert ("nodule", "left", "lower_lobe") in asserted(text, location="place")
    with pytest.raises(ValueError, match="location='lobe'"):
        asserted(text, location="lobe")


REFERENCES = [
    "Right pleural effusion. Nodule in the left upper lobe.",
    "Cardiomegaly. No nodule.",
    "Left pneumothorax.",
]
HYPOTHESES = ["Left pleural effusion. Nodule in the left lower lobe.", "Cardiomegaly. Emphysema.", "No pneumothorax."]


def test_scores_against_counts_done_by_hand():
    plain = finding_scores(REFERENCES, HYPOTHESES)
    np.testing.assert_array_equal(plain["finding_f1"].stats, [[2, 0, 0], [1, 1, 0], [0, 0, 1]])
    assert plain["finding_precision"].value == pytest.approx(3 / 4) == plain["finding_recall"].value
    # macro over effusion, nodule, cardiomegaly and pneumothorax, which references say; not emphysema
    assert plain["finding_macro_f1"].value == pytest.approx(3 / 4)
    assert plain["finding_f1/nodule"].value == 1 and plain["finding_f1/pneumothorax"].value == 0
    side = finding_scores(REFERENCES, HYPOTHESES, location="side")["finding_f1_side"]
    np.testing.assert_array_equal(side.stats, [[1, 1, 1], [1, 1, 0], [0, 0, 1]])
    place = finding_scores(REFERENCES, HYPOTHESES, location="place")["finding_f1_place"]
    np.testing.assert_array_equal(place.stats, [[0, 2, 2], [1, 1, 0], [0, 0, 1]])


def test_scores_of_labels_and_of_chosen_findings():
    labels = finding_scores(REFERENCES, HYPOTHESES, findings=CT_RATE_LABELS)
    assert labels["finding_f1"].value == pytest.approx(2 * 3 / (2 * 3 + 1))  # pneumothorax has no label
    assert finding_scores(REFERENCES, HYPOTHESES, findings=["nodule"])["finding_f1"].value == 1


def test_scores_equal_brute_force_and_take_the_bootstrap_of_interval():
    rng = np.random.default_rng(0)
    names = ("a", "b", "c")
    items = [(name, side) for name in names for side in ("left", "right", "")]
    draw = lambda: [{items[k] for k in np.flatnonzero(rng.random(len(items)) < 0.4)} for _ in range(40)]  # noqa: E731
    references, hypotheses = draw(), draw()
    scores = agreement(references, hypotheses, names)
    tp = sum(len(r & h) for r, h in zip(references, hypotheses, strict=True))
    both = sum(len(r) + len(h) for r, h in zip(references, hypotheses, strict=True))
    assert scores["finding_f1"].value == pytest.approx(2 * tp / both)
    f1 = []
    for name in names:
        r, h = (
            {(i, x) for i, one in enumerate(side) for x in one if x[0] == name} for side in (references, hypotheses)
        )
        f1.append(2 * len(r & h) / (len(r) + len(h)))
        assert scores[f"finding_f1/{name}"].value == pytest.approx(f1[-1])
    assert scores["finding_macro_f1"].value == pytest.approx(np.mean(f1))
    patients = np.arange(40) // 2
    value, lo, hi = interval(scores["finding_macro_f1"], patients, n_boot=200)
    assert lo < value < hi
    better = agreement(references, references, names)["finding_f1"]
    gained = difference([better] * 3, [scores["finding_f1"]] * 3, patients, n_boot=200)
    assert gained.mean == pytest.approx(1 - scores["finding_f1"].value)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 references and 1 hypotheses"):
        finding_scores(["nodule", "nodule"], ["nodule"])
    with pytest.raises(ValueError, match=r"findings \['noodle'\]"):
        finding_scores(["nodule"], ["nodule"], findings=["noodle"])
    with pytest.raises(ValueError, match="location='none'"):
        finding_scores(["nodule"], ["nodule"], findings=CT_RATE_LABELS, location="side")
    with pytest.raises(ValueError, match="nothing to score"):
        finding_scores(["Clear lungs."], ["nodule"])


def test_lexicon_that_does_not_fit_the_findings_is_refused(tmp_path, monkeypatch):
    bad = tmp_path / "lexicon.yaml"
    bad.write_text(module.LEXICON.read_text(encoding="utf-8").replace("  stent:", "  stunt:"), encoding="utf-8")
    monkeypatch.setattr(module, "LEXICON", bad)
    with pytest.raises(ValueError, match=r"\['stent', 'stunt'\]"):
        module._lexicon.__wrapped__()


def test_speed_on_unique_reports():
    """Reports of eight sentences, none read before: 600 per second were measured; 100 are asserted (CPU time)."""
    rng = np.random.default_rng(0)
    pool = list(sentences()["text"])
    texts = [" ".join(f"{t} {k}." for t in rng.choice(pool, size=8)) for k in range(50)]  # "k" makes sentences new
    start = time.process_time()
    for text in texts:
        extract(text)
    assert len(texts) / (time.process_time() - start) > 100


# --- how well it reads ---


def test_sentences_are_many_unique_and_labelled_in_the_vocabulary():
    table = sentences()
    assert len(table) >= 600 and table["text"].str.lower().is_unique
    assert set(table["sample"]) == {k for samples in SAMPLES.values() for k in samples}
    assert {name for says in table["says"] for name in read_says(says)} == set(FINDINGS)


def test_labels_that_cannot_be_are_named():
    for says, match in (("noodle", "'noodle'"), ("nodule@up", "'up'"), ("nodule@left.lobe", "left.lobe")):
        with pytest.raises(ValueError, match=match):
            read_says(says)


def test_validation_table_counts():
    texts = ["Left effusion.", "Possible nodule.", "No nodule."]
    labels = list(map(read_says, ("pleural_effusion@right", "nodule? cardiomegaly", "-nodule -mass")))
    table = validation_table(texts, labels)
    assert table.loc["micro", ["n_said", "tp", "fp", "fn"]].tolist() == [3, 2, 0, 1]
    assert table.loc["micro side", ["n_said", "tp", "fp", "fn"]].tolist() == [3, 1, 1, 2]
    assert table.loc["micro absent", ["n_said", "tp", "fp", "fn"]].tolist() == [2, 1, 0, 1]
    assert np.isnan(table.loc["emphysema", "precision"])


def test_held_out_sentences_and_the_committed_table(tmp_path):
    main(["--out", str(tmp_path / "table.csv")])
    measured, committed = pd.read_csv(tmp_path / "table.csv"), pd.read_csv(RESULT)
    pd.testing.assert_frame_equal(measured, committed)
    micro = full_table().set_index("finding").loc["micro"]
    assert micro["held_out_n_said"] > 350
    assert micro["held_out_precision"] > 0.95 and micro["held_out_recall"] > 0.85
    names = validated_findings()
    assert "pleural_effusion" in names and "micro" not in names


def test_agreement_with_given_labels(tmp_path):
    table = pd.DataFrame(0, index=[0, 1], columns=list(CT_RATE_LABELS))
    table.insert(0, "report_text", ["Nodule. Cardiomegaly.", "Emphysema. No effusion."])
    table.loc[0, ["Lung nodule", "Hiatal hernia"]] = 1
    table.loc[1, "Emphysema"] = 1
    table.to_csv(tmp_path / "labels.csv", index=False)
    measured = ct_rate_table(tmp_path / "labels.csv").set_index("label")
    assert measured.loc["micro", ["tp", "fp", "fn"]].tolist() == [2, 1, 1]
    assert measured.loc["Lung nodule", "precision"] == 1
    table.drop(columns="Emphysema").to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(ValueError, match="Emphysema"):
        ct_rate_table(tmp_path / "bad.csv")
