"""Texts of the small language model: further patients, each report behind a list of its findings."""

import numpy as np
import pytest

from argus.config import DataConfig, SimulateCt
from argus.data import prompt_text, train_tokenizer
from argus.language import LEFT_OUT, WITHOUT_PLACE, LanguageDataset, drawn_reports, listed, lists_of, texts_hash
from shared.ct.simulate import draw_studies
from shared.tokens import IGNORE

SIMULATE = SimulateCt(n_patients={"ct-rate": 5, "bimcv-r": 3, "inspect": 4}, seed=3)


def data(**keys) -> DataConfig:
    return DataConfig(simulate=SIMULATE, **({"texts": {"ct-rate": 30, "bimcv-r": 12}, "max_tokens": 256} | keys))


def test_the_patients_follow_those_with_volumes():
    texts = drawn_reports(data())
    of_volumes = {s.report.findings for k in range(5) for s in draw_studies("ct-rate", 3, k)}
    first_after = draw_studies("ct-rate", 3, 5)[0].report.findings
    assert first_after in set(texts.target) and not of_volumes & set(texts.target)
    assert texts.section.value_counts().to_dict() == {"findings": len(texts) - sum(texts.section == "report"),
                                                      "report": sum(texts.section == "report")}  # fmt: skip
    assert set(texts.section[: len(texts) // 4]) == {"findings", "report"}, "sources are mixed"
    assert drawn_reports(data()).equals(texts)
    short = drawn_reports(data(rules={"ct_rate": "impression"}))
    assert set(short.section) == {"impression", "report"}
    assert short.target.str.len().mean() < texts.target.str.len().mean()


def test_a_list_says_most_of_what_the_report_asserts_and_nothing_else():
    text = "There is a nodule of 7 mm in the right upper lobe. No pneumothorax. Possible emphysema."
    lists = [listed(text, np.random.default_rng(k)) for k in range(1000)]
    whole = {"nodule right upper lobe; emphysema", "emphysema; nodule right upper lobe"}
    without_place = {"nodule; emphysema", "emphysema; nodule"}
    assert set(lists) == whole | without_place | {"nodule right upper lobe", "nodule", "emphysema", ""}
    shares = [np.mean([word in one for one in lists]) for word in ("nodule", "emphysema", "lobe")]
    np.testing.assert_allclose(shares, [1 - LEFT_OUT, 1 - LEFT_OUT, (1 - LEFT_OUT) * (1 - WITHOUT_PLACE)], atol=0.04)
    assert listed("No pneumothorax.", np.random.default_rng(0)) == ""


def test_the_list_stands_where_visual_tokens_will_and_carries_no_loss():
    texts = drawn_reports(data())
    lists = lists_of(texts, seed=0)
    tokenizer = train_tokenizer([*texts.target, *lists])
    dataset = LanguageDataset(texts, lists, data(), tokenizer)
    for k in (0, 5, 11):
        item = dataset[k]
        assert len(item["input_ids"]) == len(item["labels"]) and item["input_ids"][0] == tokenizer.bos_token_id
        n = sum(label == IGNORE for label in item["labels"])
        before = tokenizer.decode(item["input_ids"][1:n])
        assert before == lists[k] + prompt_text(texts.section[k])
        assert tokenizer.decode(item["labels"][n:-1]) == texts.target[k]
        assert item["labels"][-1] == tokenizer.eos_token_id
    assert lists_of(texts, seed=0) == lists != lists_of(texts, seed=1)


def test_only_simulated_tiers_teach_a_language_model():
    for wrong in (DataConfig(texts={"ct-rate": 3}), DataConfig(simulate=SIMULATE)):
        with pytest.raises(ValueError, match=r"data\.texts: objective 'language' needs"):
            drawn_reports(wrong)
    with pytest.raises(ValueError, match=r"data\.texts: unknown source\(s\) \['mimic'\]"):
        data(texts={"mimic": 3})


def test_other_texts_are_another_run():
    assert len({texts_hash(d) for d in (data(), data(texts={"ct-rate": 31}), data(rules={"ct_rate": "both"}))}) == 3
