"""The sampler: caps, reservations, balance, fallback, exhaustion and contradictions, against counts of our own."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from synth_medvlp.entities import ANATOMY, CLINICAL, DictionaryNer, entities, mine
from synth_medvlp.sampler import OwnEntities, Sampler, SamplerConfig, contradict

POOL = {
    "ABNORMALITY": Counter({f"opacity {i}": 100 // (i + 1) for i in range(30)}),
    "NON-ABNORMALITY": Counter({f"clear {i}": 50 for i in range(10)}),
    "DISEASE": Counter({f"disease {i}": 3 for i in range(12)}),
    "NON-DISEASE": Counter({"pneumothorax": 500, "pneumonia": 10, "disease 3": 4}),
    ANATOMY: Counter({f"place {i}": 40 // (i + 1) for i in range(20)}),
}


def sampler(**options) -> Sampler:
    return Sampler(POOL, SamplerConfig(**({"k": 3, "m": 2, "tau_max": 50, "seed": 1} | options)))


def uses(requests) -> Counter:
    return Counter(e for r in requests for e in r.entities)


def test_a_request_has_k_clinical_entities_and_m_places_without_doubles():
    requests = sampler().draw(150)
    assert [r.id for r in requests] == list(range(150)) and len({r.seed for r in requests}) == 150
    for r in requests:
        assert len(r.clinical) == 3 and len(r.anatomy) == 2
        assert len({name for name, _ in r.entities}) == 5  # "disease 3" of two types never stands twice
        assert all(name in POOL[kind] for name, kind in r.entities)


def test_the_same_calls_give_the_same_requests_however_they_are_cut():
    whole = sampler().draw(100)
    pieces = sampler()
    assert [r for n in (1, 9, 40, 50) for r in pieces.draw(n)] == whole
    assert sampler(seed=2).draw(100) != whole


def test_uses_never_exceed_the_cap_and_rejections_give_them_back():
    s, rng, accepted, open_ = sampler(tau_max=7, k=2, m=1), np.random.default_rng(0), [], []
    for _ in range(200):
        open_ += s.draw(3)
        assert max(uses(accepted + open_).values()) <= 7
        rng.shuffle(open_)
        while open_ and rng.random() < 0.8:
            r = open_.pop()
            if rng.random() < 0.5:
                s.accept(r)
                accepted.append(r)
            else:
                s.reject(r)
    assert s.stats()["accepted"] == len(accepted) and s.stats()["rejected"] > 50
    assert {e: n for e, n in s.accepted.items() if n} == dict(uses(accepted))
    with pytest.raises(KeyError):
        s.accept(accepted[0])


def test_types_are_balanced_until_one_runs_out_then_the_fallback_is_counted():
    s = sampler(tau_max=400)
    requests = s.draw(390)
    mix = Counter(kind for r in requests for _, kind in r.clinical)
    assert not s.fallback and all(abs(mix[k] / 1170 - 0.25) < 0.05 for k in CLINICAL)
    s = sampler(tau_max=20, m=0)
    requests = s.draw(100)
    used = uses(requests)
    assert sum(used[name, "NON-DISEASE"] for name in POOL["NON-DISEASE"]) == 60  # all there are
    assert s.stats()["fallback_draws"]["NON-DISEASE"] > 5
    assert s.stats()["exhausted_strings"]["NON-DISEASE"] == 3 and s.stats()["exhausted_types"] == ["NON-DISEASE"]


def test_strings_of_a_type_are_equally_likely_where_balanced_and_by_frequency_where_not():
    balanced = uses(sampler(tau_max=None).draw(3000))
    counts = np.array([balanced[f"opacity {i}", "ABNORMALITY"] for i in range(30)])
    assert (np.abs(counts - counts.mean()) < 5 * np.sqrt(counts.mean())).all()
    s = sampler(balanced=False, k=1, m=1)
    real = uses(s.draw(4000))
    total = sum(n for kind in CLINICAL for n in POOL[kind].values())
    for kind in CLINICAL:
        for name, n in POOL[kind].items():
            expected = 4000 * n / total
            assert abs(real[name, kind] - expected) < 5 * np.sqrt(expected) + 3, (name, kind)
    assert abs(real["place 0", ANATOMY] / 4000 - 40 / sum(POOL[ANATOMY].values())) < 0.04
    assert not s.exhausted  # no cap


def test_k_of_each_type():
    for r in sampler(joint=False, k=2, tau_max=None).draw(40):
        assert Counter(kind for _, kind in r.clinical) == dict.fromkeys(CLINICAL, 2)


def test_exhaustion_ends_with_a_message_and_a_rejection_opens_it_again():
    s = sampler(tau_max=2, k=1, m=1)
    requests = s.draw(1000)
    assert len(requests) == 40  # 20 places twice
    assert s.exhausted == "no ANATOMY string is left after 40 requests; raise sampler.tau_max"
    assert s.draw(5) == [] and s.stats()["exhausted"] == s.exhausted
    s.reject(requests[7])
    (again,) = s.draw(5)
    assert again.id == 40 and again.anatomy == requests[7].anatomy


def test_statistics():
    s = sampler(tau_max=9)
    requests = s.draw(60)
    for r in requests:
        (s.reject if r.id % 4 == 0 else s.accept)(r)
    kept, stats = [r for r in requests if r.id % 4], s.stats()
    assert (stats["drawn"], stats["accepted"], stats["rejected"]) == (60, 45, 15)
    for kind, histogram in stats["usage_histogram"].items():
        assert sum(histogram.values()) == len(POOL[kind])
        assert sum(n * times for n, times in histogram.items()) == sum(k == kind for r in kept for _, k in r.entities)
    assert sum(stats["type_mix"].values()) == pytest.approx(1)
    assert stats["gini"][ANATOMY] < stats["gini_real"][ANATOMY]


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="k >= 1, m >= 0, tau_max >= 1 or null, not 0, 1, 3"):
        sampler(k=0, m=1, tau_max=3)


def test_a_report_may_be_asked_for_again_with_its_own_entities():
    texts = ["Small left effusion in the left base. No mass.", "Nothing.", "Mild edema. Mild edema.", "Scoliosis."]
    mentions = DictionaryNer()(texts)
    s = OwnEntities(mine(texts, DictionaryNer())[0], SamplerConfig(tau_max=1), mentions)
    requests = s.draw(2) + s.draw(5)
    assert [(r.id, set(r.entities)) for r in requests] == [(i, entities(mentions[i])) for i in (0, 2, 3)]
    assert s.draw(1) == [] and s.exhausted == "every report has been asked for"
    for r in requests:
        s.accept(r)
    assert s.stats()["accepted"] == s.stats()["drawn"] == 3


# --- contradictions ---

A, NA, D, ND = CLINICAL


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (("mild cardiomegaly", A), ("normal heart size", NA), True),
        (("mild cardiomegaly", A), ("normal cardiac silhouette", NA), True),
        (("mild cardiomegaly", A), ("normal hilar contour", NA), False),
        (("left lower lobe consolidation", A), ("clear lung", NA), True),
        (("left rib fracture", D), ("clear lung", NA), False),
        (("enteric tube", A), ("normal chest radiograph", NA), True),
        (("small left pleural effusion", A), ("pleural effusion", NA), True),
        (("small left pleural effusion", A), ("right pleural effusion", NA), False),
        (("rib fracture", D), ("displaced rib fracture", ND), False),  # another one may be there
        (("displaced left rib fracture", D), ("rib fracture", ND), True),
        (("mild edema", A), ("severe edema", A), True),
        (("small left pneumothorax", D), ("large right pneumothorax", D), False),
        (("small left pneumothorax", D), ("large pneumothorax", D), True),
        (("small left pneumothorax", D), ("left pneumothorax", D), False),
        (("pneumothorax", ND), ("pleural effusion", NA), False),
        (("normal chest radiograph", NA), ("carina", ANATOMY), False),
    ],
)
def test_what_contradicts(a, b, expected):
    assert contradict(a, b) is contradict(b, a) is expected


REAL = {
    A: Counter(["mild cardiomegaly", "severe cardiomegaly", "small left pleural effusion", "left upper lobe mass"]),
    NA: Counter(["normal heart size", "clear lung", "pleural effusion", "mass", "normal hilar contour"]),
    D: Counter(["small pneumothorax", "large pneumothorax", "rib fracture", "scoliosis"]),
    ND: Counter(["pneumothorax", "rib fracture", "pneumonia"]),
    ANATOMY: Counter(["carina", "left base", "right base"]),
}


def test_contradictions_are_counted_and_the_control_avoids_them():
    free = Sampler(REAL, SamplerConfig(k=3, m=1, tau_max=None))
    pairs = [sum(contradict(a, b) for a, b in combinations(r.clinical, 2)) for r in free.draw(300)]
    stats = free.stats()
    assert sum(pairs) > 50 and stats["contradictory_pairs"] == sum(pairs)
    assert stats["contradictory_requests"] == sum(n > 0 for n in pairs)
    kept = Sampler(REAL, SamplerConfig(k=3, m=1, tau_max=None, compatible=True))
    requests = kept.draw(300)
    assert len(requests) == 300 and kept.stats()["contradictory_pairs"] == 0
    assert kept.stats()["incompatible_rejections"] > 50
    assert len(set(uses(requests))) > 14  # not by leaving most strings out
