"""`supreme.merge`: guards that embeddings cannot talk over, average linkage, representatives, collapsed subtypes."""

import itertools

import numpy as np
import pytest

from supreme.merge import collapsed, guards, merge, signature, unit, verdict, without
from supreme.terminology import find
from supreme.thresholds import pairs


def same(texts):
    """An encoder that cannot tell anything from anything."""
    return np.ones((len(texts), 3))


def _groups(merged):
    groups = {}
    for name, number in zip(merged.names, merged.cluster, strict=True):
        groups.setdefault(int(number), set()).add(name)
    return sorted(map(sorted, groups.values()))


def _merged(names, encode=same, tau=0.9, protocol="corrected", n=None):
    return merge(names, n or [1] * len(names), encode, tau, protocol)


ANTONYMS = [
    ("left odd block", "right odd block", "side"),
    ("odd atrial beat", "odd ventricular beat", "chamber"),
    ("odd first degree block", "odd second degree block", "degree"),
    ("odd Mobitz type I block", "odd Mobitz type II block", "degree"),
    ("incomplete odd block", "odd block", "completeness"),
    ("normal odd wave", "odd wave", "polarity"),
    ("no odd wave", "odd wave", "polarity"),
    ("odd ST elevation", "odd ST depression", "direction"),
    ("prolonged odd interval", "short odd interval", "direction"),
    ("odd tachycardia", "odd bradycardia", "direction"),
    ("high odd voltage", "low odd voltage", "direction"),
    ("odd inverted T", "odd tall T", "direction"),
    ("odd clockwise turn", "odd counterclockwise turn", "side"),
    ("strange left anterior fascicular block", "strange left posterior fascicular block", "side"),
    ("odd prolonged PR", "odd prolonged QT", "part"),
    ("atrial fibrillation", "atrial flutter", "term"),
]


@pytest.mark.parametrize("protocol", ["corrected", "as_published"])
@pytest.mark.parametrize(("a", "b", "guard"), ANTONYMS)
def test_antonyms_stay_apart_whatever_the_embedding(a, b, guard, protocol):
    assert verdict(a, b, protocol) == guard
    assert len(_merged([a, b], protocol=protocol).representative) == 2


@pytest.mark.parametrize(("a", "b", "guard"), [("odd inferior scar", "odd lateral scar", "location"),
                                              ("odd old scar", "odd acute scar", "age")])  # fmt: skip
def test_place_and_age_are_guarded_in_corrected_only(a, b, guard):
    assert verdict(a, b, "corrected") == guard and verdict(a, b, "as_published") == ""
    assert len(_merged([a, b]).representative) == 2
    assert len(_merged([a, b], protocol="as_published").representative) == 1
    with pytest.raises(ValueError, match=r"extract\.protocol='drawn'"):
        guards("drawn")


def test_no_pair_of_antonyms_of_the_calibration_set_passes_the_guards():
    table = pairs().query("relation == 'antonym'")
    passed = [(r.a, r.b) for r in table.itertuples() if not verdict(r.a, r.b, "as_published")]
    assert passed == []


def test_an_abbreviation_is_seen_as_what_it_stands_for():
    assert signature("LVH") == signature("left ventricular hypertrophy") != signature("RVH")
    assert signature("RBBB") == signature("complete right bundle branch block")
    assert signature("complete AV block") == signature("third degree AV block") != signature("AV block")


def test_names_of_one_term_are_one_and_of_two_terms_never():
    names = ["RBBB", "right bundle branch block", "paced rhythm", "artificial pacemaker", "early repolarization"]
    orthogonal = lambda texts: np.eye(len(names))[[names.index(t) for t in texts]]  # noqa: E731
    assert _groups(_merged(names, orthogonal)) == [
        ["RBBB", "right bundle branch block"], ["artificial pacemaker", "paced rhythm"], ["early repolarization"],
    ]  # fmt: skip
    names = ["pericarditis", "pulmonary embolism", "odd thing"]
    merged = _merged(names)  # all cosines 1: the odd one joins one of them, which stay apart
    assert merged.cluster[0] != merged.cluster[1] and len(set(merged.cluster)) == 2


def test_many_names_cannot_average_out_what_a_guard_says():
    names = ["pericarditis", "pulmonary embolism"] + [f"odd thing {a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
    merged = _merged(names)
    assert merged.cluster[0] != merged.cluster[1]


def _brute_force(vectors, tau):
    """Average linkage by its definition: join the nearest two clusters while their mean cosine is at least tau."""
    clusters, cosine = [{i} for i in range(len(vectors))], vectors @ vectors.T
    while len(clusters) > 1:
        mean = lambda pair: np.mean([cosine[i, j] for i in pair[0] for j in pair[1]])  # noqa: E731
        a, b = max(itertools.combinations(clusters, 2), key=mean)
        if mean((a, b)) < tau:
            break
        clusters = [c for c in clusters if c not in (a, b)] + [a | b]
    return sorted(map(sorted, clusters))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tau", [0.5, 0.8, 0.95])
def test_clusters_are_those_of_average_linkage(seed, tau):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, 6))
    vectors = unit(np.concatenate([c + 0.5 * rng.normal(size=(5, 6)) for c in centres]))
    names = [f"zz{chr(97 + i)}" for i in range(len(vectors))]
    assert all(find(name) is None for name in names)
    merged = _merged(names, lambda texts: vectors[[names.index(t) for t in texts]], tau)
    ours = sorted(sorted(names.index(n) for n in group) for group in _groups(merged))
    assert ours == _brute_force(vectors, tau)


def test_the_representative_is_known_else_most_frequent_else_first():
    def representative(names, n):
        merged = _merged(names, n=n)
        return [merged.names[i] for i in merged.representative]

    assert representative(["zzb", "zza", "zzc"], [5, 5, 1]) == ["zza"]
    assert representative(["zzb", "zza"], [6, 5]) == ["zzb"]
    assert representative(["zzb", "pericarditis"], [600, 1]) == ["pericarditis"]


def test_pairs_name_what_kept_them_apart():
    merged = _merged(["odd ST elevation", "odd ST depression", "strange ST elevation"])
    found = {(merged.names[i], merged.names[j]): why for i, j, _, why in merged.pairs}
    assert found["odd ST elevation", "odd ST depression"] == "direction"
    assert found["odd ST elevation", "strange ST elevation"] == ""
    far = _merged(["zza", "zzb"], lambda texts: np.eye(2)[: len(texts)])
    assert far.pairs == [] and len(far.representative) == 2


def test_a_name_that_the_encoder_does_not_know_is_like_nothing():
    merged = _merged(["zza", "zzb"], lambda texts: np.zeros((len(texts), 2)))
    assert len(merged.representative) == 2
    assert _merged([]).representative == []


def test_collapse_is_what_only_place_and_age_tell_apart():
    to = collapsed()
    assert to["anteroseptal_mi"] == to["inferior_mi"] == to["acute_mi"] == "mi"
    assert to["inferior_ischemia"] == "ischemia" and to["low_voltage_limb"] == "low_voltage"
    assert to["normal_rhythm"] == "normal"
    kept = {"lafb", "lbbb", "incomplete_rbbb", "av_block_1", "atrial_fibrillation", "sinus_bradycardia", "lvh", "pac"}
    assert not kept & set(to)


def test_without_place_and_age_the_rest_is_left():
    assert without("lateral ST depression") == "st depression"
    assert without("old inferior and lateral scar") == "scar"
    assert without("left anterior fascicular block") == "left anterior fascicular block"
