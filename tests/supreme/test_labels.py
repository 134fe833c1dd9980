"""`supreme.labels`: the certainty table, what wins, normal ECG, wider terms, subtypes, hold-outs, files."""

from types import SimpleNamespace

import numpy as np
import pytest

from supreme import labels as stage5
from supreme.backends import Entity, Reading
from supreme.labels import Policy, counting, label, load, planes, raw_statements, save
from supreme.mapping import local_term
from supreme.terminology import ancestors, find, term

DEFAULTS = {
    "protocol": "corrected", "uncertain": None, "collapse_subtypes": None, "emit_parents": None, "hold_out": [],
    "exclude_flagged": False, "min_records": 1,
}  # fmt: skip


def entity(name, certainty="definite", category="other", polarity="abnormal", residual=False):
    return Entity(name, 0, len(name), name, category, polarity, certainty, "current", (), residual)


NORMAL = entity("normal ECG", category="summary", polarity="normal")
# Statements by a short name. Each record below is a list of them.
STATEMENTS = {
    "lvh": (entity("left ventricular hypertrophy"),),
    "lvh?": (entity("left ventricular hypertrophy", "hedged"),),
    "no lvh": (entity("left ventricular hypertrophy", "negated"),),
    "imi": (entity("inferior myocardial infarction"),),
    "imi?": (entity("inferior myocardial infarction", "hedged"),),
    "no imi": (entity("inferior myocardial infarction", "negated"),),
    "no mi": (entity("myocardial infarction", "negated"),),
    "lbbb": (entity("left bundle branch block"),),
    "normal": (NORMAL,),
    "otherwise normal": (NORMAL._replace(certainty="hedged", residual=True),),
    "normal rhythm": (entity("normal rhythm", category="rhythm", polarity="normal"),),
    "sinus": (entity("sinus rhythm", category="rhythm", polarity="normal"),),
    "normal, as a rhythm": (NORMAL._replace(category="rhythm"),),
    "noise": (entity("artifact", "uninterpretable", "quality"),),
    "two": (entity("left bundle branch block"), entity("inferior myocardial infarction", "hedged")),
    "unmapped": (entity("something odd"),),
    "nothing": (),
    "broken": (),
}


def make(records, more=(), **options):
    cfg = SimpleNamespace(**(DEFAULTS | options))
    names = list(STATEMENTS)
    readings = [Reading(n, STATEMENTS[n], "no JSON" if n == "broken" else "") for n in names]
    known = {t.preferred: t for t in more}
    found = [[known.get(e.entity) or find(e.entity) for e in r.entities] for r in readings]
    of_report = counting([[names.index(s) for s in record] for record in records], len(names))
    policy = Policy.of(cfg)
    return label(planes(of_report, readings, found, policy), cfg, policy), cfg


def cells(records, id_, **options):
    """(y, mask) of each record for one term. Two further records state every term, so that each is kept."""
    result, _ = make([*records, ["lvh", "imi", "lbbb", "sinus", "normal rhythm"], ["normal"]], **options)
    column = [t.id for t in result.terms].index(id_)
    n = len(records)
    return list(zip(result.y[:n, column].tolist(), result.mask[:n, column].tolist(), strict=True))


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("as_published", {"lvh": (1, True), "lvh?": (1, True), "no lvh": (0, True), "nothing": (0, True)}),
        ("corrected", {"lvh": (1, True), "lvh?": (0, False), "no lvh": (0, True), "nothing": (0, True)}),
    ],
)
def test_the_certainty_table(protocol, expected):
    assert cells([[s] for s in expected], "lvh", protocol=protocol) == list(expected.values())


@pytest.mark.parametrize(
    ("policy", "hedged"),
    [("positive", (1, True)), ("mask", (0, False)), ("negative", (0, True)), ("soft", (0.5, True))],
)
@pytest.mark.parametrize("protocol", ["as_published", "corrected"])
def test_a_policy_of_ones_own_is_for_hedges_alone(protocol, policy, hedged):
    records = [["lvh?"], ["otherwise normal"], ["lvh"], ["no lvh"]]
    assert cells(records, "lvh", protocol=protocol, uncertain=policy) == [hedged, (0, True), (1, True), (0, True)]
    assert cells(records[:2], "normal", protocol=protocol, uncertain=policy)[1] == hedged


def test_definite_beats_negated_beats_hedged_in_any_order():
    records = [["lvh", "no lvh", "lvh?"], ["lvh?", "no lvh"], ["no lvh", "lvh"], ["lvh?", "lvh"]]
    for order in (records, [r[::-1] for r in records]):
        assert cells(order, "lvh") == [(1, True), (0, True), (1, True), (1, True)]
    assert make([["lvh", "no lvh"], ["lvh"]])[0].counts["definite_and_negated"] == 1


def test_residual_normal():
    assert cells([["otherwise normal"]], "normal", protocol="as_published") == [(1, True)]
    assert cells([["otherwise normal"]], "normal", protocol="corrected") == [(0, False)]


def test_normal_ecg_in_corrected_is_a_summary_that_nothing_contradicts():
    records = [["normal"], ["normal", "sinus"], ["normal", "lvh"], ["lvh"], ["normal, as a rhythm"], ["normal", "lvh?"]]
    expected = [(1, True), (1, True), (0, False), (0, True), (0, True), (1, True)]
    assert cells(records, "normal") == expected
    published = cells(records, "normal", protocol="as_published")
    assert published == [(1, True), (1, True), (1, True), (0, True), (1, True), (1, True)]


def test_normal_rhythm_is_a_rhythm_and_as_published_a_normal_ecg():
    assert cells([["normal rhythm"]], "normal") == [(0, True)]
    assert cells([["normal rhythm"]], "sinus_rhythm") == [(1, True)]
    assert cells([["normal rhythm"]], "normal", protocol="as_published") == [(1, True)]


def test_wider_terms_are_set_in_corrected_but_not_by_what_is_denied():
    records = [["imi"], ["imi?"], ["no imi"], ["imi", "no mi"], ["imi?", "no mi"]]
    assert cells(records, "mi") == [(1, True), (0, False), (0, True), (1, True), (0, True)]
    assert cells(records, "inferior_mi") == [(1, True), (0, False), (0, True), (1, True), (0, False)]
    off = make([["imi"], ["lbbb"]], emit_parents=False)[0]
    assert {t.id for t in off.terms} == {"inferior_mi", "lbbb"}
    on = make([["imi"], ["lbbb"]])[0]
    assert {t.id for t in on.terms} == {"inferior_mi", "lbbb", *ancestors("inferior_mi"), *ancestors("lbbb")}


def test_subtypes_collapse_as_published_but_sides_do_not():
    result = make([["imi"], ["lbbb"], ["lvh"]], protocol="as_published")[0]
    assert {t.id for t in result.terms} == {"mi", "lbbb", "lvh"}
    kept = make([["imi"]], protocol="as_published", collapse_subtypes=False)[0]
    assert [t.id for t in kept.terms] == ["inferior_mi"]


def test_a_local_term_sets_its_wider_terms():
    odd = local_term("something odd", parent="lbbb")
    result = make([["unmapped"]], more=[odd])[0]
    assert {t.id for t in result.terms} == {odd.id, "lbbb", "bundle_branch_block", "conduction_disturbance"}
    assert result.counts["local_terms"] == 1


def test_a_held_out_term_is_nowhere_and_its_wider_terms_are_not_denied():
    records = [["imi"], ["imi?"], ["nothing"], ["lvh"], ["imi", "lbbb"]]
    result, _ = make([*records, ["two"]], more=(), hold_out=["inferior_mi"])
    assert not {"inferior_mi", "mi"} & {t.id for t in result.terms}  # nobody else has an infarct
    wide = term("mi")
    extra = [[wide]]
    cfg = SimpleNamespace(**(DEFAULTS | {"hold_out": ["inferior_mi"]}))
    readings = [Reading("imi", STATEMENTS["imi"]), Reading("mi", (entity("myocardial infarction"),)), Reading("no", ())]
    policy = Policy.of(cfg)
    said = planes(counting([[0], [1], [2]], 3), readings, [[term("inferior_mi")], *extra, []], policy)
    labels = label(said, cfg, policy)
    assert [t.id for t in labels.terms] == ["mi"]
    assert labels.y[:, 0].tolist() == [0, 1, 0] and labels.mask[:, 0].tolist() == [False, True, True]


def test_holding_out_a_wider_term_holds_out_what_is_narrower():
    for options in ({}, {"protocol": "as_published"}):
        result = make([["imi"], ["lbbb"], ["two"]], hold_out=["mi"], **options)[0]
        assert not {"mi", "inferior_mi"} & {t.id for t in result.terms}
    with pytest.raises(ValueError, match=r"'inferior_mu'; did you mean.*inferior_mi"):
        make([["imi"]], hold_out=["inferior_mu"])


def test_a_statement_that_was_not_read_denies_nothing():
    assert cells([["broken"], ["broken", "lvh"], ["broken", "no lvh"]], "lvh") == [(0, False), (1, True), (0, True)]
    assert cells([["broken"]], "lbbb", protocol="as_published") == [(0, False)]


def test_what_cannot_be_judged_flags_the_record():
    result = make([["noise", "lvh"], ["lvh"]])[0]
    assert result.flagged.tolist() == [True, False] and result.mask.all()
    assert "artifact" not in {t.id for t in result.terms}
    result = make([["noise", "lvh"], ["lvh"]], exclude_flagged=True)[0]
    assert result.mask.any(1).tolist() == [False, True]


def test_terms_need_definite_records_and_stand_in_order_of_them():
    records = [["lvh"]] * 3 + [["lbbb"]] * 2 + [["imi?"]] * 9
    ids = [t.id for t in make(records, min_records=2, protocol="as_published")[0].terms]
    assert ids == ["lvh", "lbbb"]  # hedges make no term, though they are positives
    with pytest.raises(ValueError, match=r"lower extract\.min_records"):
        make(records, min_records=4, protocol="as_published")


@pytest.mark.parametrize("key", [{"protocol": "drawn"}, {"uncertain": "maybe"}])
def test_unknown_settings_name_their_key(key):
    with pytest.raises(ValueError, match=f"extract.{next(iter(key))}"):
        make([["lvh"]], **key)


def _by_loops(records, cfg):
    """The rules once more, record by record: {(record, id): (y, in the loss)} of what is not (0, in the loss)."""
    policy, out = Policy.of(cfg), {}
    for number, record in enumerate(records):
        best, abnormal = {}, False
        for statement in record:
            for e in STATEMENTS[statement]:
                t = find(e.entity)
                if t is None or e.certainty == "uninterpretable":
                    continue
                abnormal |= (e.polarity, e.certainty) == ("abnormal", "definite")
                if t.id == "normal" and policy.protocol == "corrected" and e.category != "summary":
                    continue
                ids = [t.id, *(ancestors(t.id) if policy.emit_parents and e.certainty != "negated" else ())]
                if policy.collapse_subtypes:
                    ids = [stage5.collapsed().get(t.id, t.id)]
                for id_ in ids:
                    rank = ("hedged", "negated", "definite").index(e.certainty)
                    best[id_] = max(best.get(id_, -1), rank)
        for id_, rank in best.items():
            cell = [stage5.POLICIES[policy.uncertain], (0.0, True), (1.0, True)][rank]
            if id_ == "normal" and abnormal and rank == 2 and policy.protocol == "corrected":
                cell = (0.0, False)
            if cell != (0.0, True):
                out[number, id_] = cell
    return out


@pytest.mark.parametrize("options", [{}, {"protocol": "as_published"}, {"uncertain": "soft"}, {"emit_parents": False}])
def test_sparse_products_equal_loops(options):
    rng = np.random.default_rng(3)
    names = [n for n in STATEMENTS if n != "broken"]
    records = [list(rng.choice(names, rng.integers(0, 6))) for _ in range(400)]
    result, cfg = make(records, **options)
    ids = [t.id for t in result.terms]
    expected = {k: v for k, v in _by_loops(records, cfg).items() if k[1] in ids}
    rows, columns = np.nonzero((result.y != 0) | ~result.mask)
    ours = {
        (int(i), ids[j]): (float(result.y[i, j]), bool(result.mask[i, j])) for i, j in zip(rows, columns, strict=True)
    }
    assert ours == expected and len(ours) > 100


def test_raw_statements_are_labels_of_their_own():
    names = ["lvh", "imi", "nothing"]
    readings = [Reading(n, STATEMENTS[n]) for n in names]
    found = [[find(e.entity) for e in r.entities] for r in readings]
    cfg = SimpleNamespace(**(DEFAULTS | {"hold_out": ["mi"]}))
    policy = Policy.of(cfg)
    said = raw_statements(counting([[0, 1], [0, 2, 2], []], 3), readings, found, ["id0", "id1", "id2"], policy)
    result = label(said, cfg, policy)
    assert [(t.id, t.preferred, t.group) for t in result.terms] == [
        ("id0", "lvh", "statement"),
        ("id2", "nothing", "statement"),
    ]
    assert result.y.tolist() == [[1, 0], [1, 1], [0, 0]] and result.mask.all()


def test_labels_come_back_from_disk_as_they_were(tmp_path):
    result, _ = make(
        [["lvh"], ["lvh?", "noise"], ["two"], ["normal"]], more=[local_term("something odd")], uncertain="soft"
    )
    save(result, tmp_path)
    first = (tmp_path / "labels.npz").read_bytes()
    again = load(tmp_path, {"x": 1})
    assert again.terms == result.terms and again.counts == {"x": 1} and again.folder == tmp_path
    for name in ("y", "mask", "flagged"):
        a, b = getattr(again, name), getattr(result, name)
        assert a.dtype == b.dtype and (a == b).all()
    save(again, tmp_path)
    assert (tmp_path / "labels.npz").read_bytes() == first
    with np.load(tmp_path / "labels.npz", allow_pickle=False) as file:
        assert {file[key].dtype.kind for key in file.files} <= set("bif")
