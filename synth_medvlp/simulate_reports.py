"""Radiology reports of simulated radiographs: FINDINGS and IMPRESSION in our own words.

A report says what was drawn, on the side and at the place where it was drawn, and denies only what was not drawn. What
is barely visible is often hedged. `Report.mentions` keeps what the text says of each finding, so that labellers can be
tested against it.
"""

from dataclasses import dataclass

import numpy as np

from synth_medvlp.findings import DENSE, FAINT, KINDS, Finding

POSITIVE, UNCERTAIN, NEGATIVE = "positive", "uncertain", "negative"
_HEDGE_BELOW = 0.28  # extent

# Noun phrases; {sev} mild/moderate/severe, {size} small/moderate/large, {side}, {zone}, {mm}, {cm} are filled in.
# A trailing "+" makes the verb plural.
_PHRASES = {
    "cardiomegaly": ["{sev} cardiomegaly", "{sev} enlargement of the cardiac silhouette", "{sev} cardiac enlargement"],
    "pleural_effusion": ["{size} {side} pleural effusion", "{size} {side}-sided pleural effusion",
                         "{size} pleural effusion on the {side}"],
    "pneumothorax": ["{size} {side} pneumothorax", "{size} {side}-sided pneumothorax",
                     "{size} pneumothorax on the {side}"],
    "consolidation": ["{side} {zone} consolidation", "airspace consolidation in the {side} {zone}",
                      "{side} {zone} airspace consolidation with air bronchograms"],
    "edema": ["{sev} pulmonary edema", "{sev} interstitial edema", "{sev} perihilar pulmonary edema"],
    "atelectasis": ["{side} basilar atelectasis", "linear atelectasis at the {side} base",
                    "{side} lower lobe atelectasis"],
    "nodule": ["{mm} mm nodule in the {side} {zone}", "{side} {zone} pulmonary nodule",
               "rounded {mm} mm nodule projecting over the {side} {zone}"],
    "mass": ["{cm} cm mass in the {side} {zone}", "large {side} {zone} mass", "{side} {zone} mass measuring {cm} cm"],
    "granuloma": ["calcified granuloma in the {side} {zone}", "{side} {zone} calcified granuloma"],
    "rib_fracture": ["displaced {side} rib fracture", "fracture of a {side} posterior rib",
                     "{side}-sided rib fracture"],
    "hiatal_hernia": ["{size} hiatal hernia", "{size} hiatal hernia with an air-fluid level",
                      "{size} retrocardiac hiatal hernia"],
    "emphysema": ["hyperinflated lungs with emphysema+", "{sev} emphysema", "{sev} emphysematous change"],
    "fibrosis": ["{sev} basilar predominant fibrosis", "{sev} bibasilar pulmonary fibrosis",
                 "{sev} reticular fibrosis of the lung bases"],
    "pleural_thickening": ["{side} {zone} pleural thickening", "pleural thickening on the {side}"],
    "scoliosis": ["{sev} scoliosis of the thoracic spine", "{sev} thoracic scoliosis"],
    "tortuous_aorta": ["tortuous thoracic aorta", "tortuous and unfolded aorta"],
    "pacemaker": ["{side} chest wall pacemaker", "{side}-sided pacemaker with leads in place"],
    "central_line": ["{side} {zone} central venous line", "{side} {zone} central venous catheter"],
    "endotracheal_tube": ["endotracheal tube above the carina", "endotracheal tube in standard position"],
    "feeding_tube": ["enteric tube coursing into the stomach", "nasogastric tube with its tip in the stomach"],
    "sternal_wires": ["median sternotomy wires+", "intact sternotomy wires+"],
}  # fmt: skip
_BOTH_SIDES = {
    "pleural_effusion": ["{size} bilateral pleural effusions+", "bilateral pleural effusions, {size} in size+"],
    "consolidation": ["bilateral {zone} consolidations+", "multifocal bilateral consolidation, mainly in the {zone}s"],
    "atelectasis": ["bibasilar atelectasis", "bibasilar linear atelectasis", "atelectasis at both bases"],
}
# What a consolidation is also called, by how dense it is: a faint one an infiltrate, a dense one pneumonia, as in the
# tables of ChestX-ray14 and PadChest (`simulate_vocabulary`); RSNA labels any. -> (phrases of one side, of both sides)
_FAINT = (
    ["{side} {zone} infiltrate", "infiltrate in the {side} {zone}", "{side} {zone} infiltration"],
    ["bilateral {zone} infiltrates+", "bilateral infiltration, mainly in the {zone}s"],
)
_DENSE = (
    ["{side} {zone} pneumonia", "pneumonia in the {side} {zone}", "{side}-sided pneumonia of the {zone}"],
    ["bilateral {zone} pneumonia", "multifocal bilateral pneumonia, mainly in the {zone}s"],
)
_ALSO = 0.5  # share of its sentences that say so
# Sentences of their own beside the frames below.
_SENTENCES = {
    "cardiomegaly": ["The heart is {sev}ly enlarged.", "The cardiac silhouette is {sev}ly enlarged."],
    "emphysema": ["The lungs are hyperinflated with flattened diaphragms, consistent with emphysema."],
    "tortuous_aorta": ["The aorta is tortuous."],
    "edema": ["Diffuse perihilar haze and septal lines are consistent with {sev} pulmonary edema."],
    "consolidation": ["Airspace opacity in the {side} {zone} is consistent with consolidation."],
    "pneumothorax": ["A pleural line is seen on the {side}, consistent with a {size} pneumothorax."],
    "pleural_effusion": ["Blunting of the {side} costophrenic angle reflects a {size} pleural effusion."],
    "endotracheal_tube": ["The endotracheal tube terminates above the carina."],
    "feeding_tube": ["The enteric tube courses below the diaphragm."],
}
_FRAMES = {
    POSITIVE: ["There {is} {np}.", "{Np} {is} present.", "{Np} {is} seen.", "{Np} {is} noted.", "{Np}."],
    UNCERTAIN: ["Possible {np}.", "{Np} cannot be excluded.", "There may be {np}.", "Questionable {np}.",
                "Findings suggest possible {np}."],
}  # fmt: skip
_DENIED = {
    "pneumothorax": ["pneumothorax"], "pleural_effusion": ["pleural effusion", "effusion"],
    "consolidation": ["focal consolidation", "consolidation", "pneumonia"], "edema": ["pulmonary edema"],
    "rib_fracture": ["acute rib fracture", "displaced rib fracture", "rib fracture"], "nodule": ["suspicious nodule"],
    "mass": ["mass"], "atelectasis": ["atelectasis"],
}  # fmt: skip
_NORMAL_HEART = [
    "The heart size is normal.",
    "The cardiac silhouette is within normal limits.",
    "Heart size is normal.",
]
_CLEAR_LUNGS = ["The lungs are clear.", "Both lungs are clear.", "The lungs are well expanded and clear."]
_CLEAR_OF = ("consolidation", "edema", "atelectasis", "nodule", "mass", "granuloma", "fibrosis", "emphysema")
_FILLER = ["The mediastinal contours are unremarkable.", "Visualized upper abdomen is unremarkable.",
           "The hilar contours are normal."]  # fmt: skip
_NO_ACUTE = ["No acute cardiopulmonary process.", "No acute cardiopulmonary abnormality.", "No acute findings."]
_NORMAL_CHEST = ["Normal chest radiograph.", *_NO_ACUTE]
_ACUTE = ("pleural_effusion", "pneumothorax", "consolidation", "edema", "atelectasis", "rib_fracture", "nodule", "mass")
_TITLE = {"PA": "PA view of the chest.", "AP": "Portable AP view of the chest."}


@dataclass(frozen=True)
class Report:
    """findings, impression: the two sections; mentions: finding -> positive | uncertain | negative, over both."""

    findings: str
    impression: str
    mentions: dict

    def text(self, view: str = "PA") -> str:
        """The report as a file of its own, with headings."""
        head = f"{'FINAL REPORT':>45}\n EXAMINATION:  CHEST RADIOGRAPH\n\n TECHNIQUE:  {_TITLE[view]}\n\n"
        return f"{head} FINDINGS:\n \n {self.findings}\n\n IMPRESSION:\n \n {self.impression}\n"


def _pick(options, rng):
    return options[int(rng.integers(len(options)))]


def _level(extent: float, words) -> str:
    return words[0] if extent < 0.4 else words[1] if extent < 0.7 else words[2]


def _words(f: Finding) -> dict:
    """What the placeholders of a phrase stand for."""
    lobes = {"upper": "upper lobe", "middle": "middle lobe" if f.side == "right" else "mid lung", "lower": "lower lobe"}
    return {
        "sev": _level(f.extent, ("mild", "moderate", "severe")),
        "size": _level(f.extent, ("small", "moderate", "large")),
        "side": f.side,
        "zone": lobes.get(f.place, f.place),
        "mm": round(20 * (0.75 + 0.65 * f.extent)),
        "cm": f"{2 * (1.8 + 1.5 * f.extent):.1f}",
    }


def noun_phrase(f: Finding, rng: np.random.Generator) -> tuple[str, bool]:
    """(words for a finding, whether they are plural)."""
    both = f.side == "bilateral" and f.name in _BOTH_SIDES
    phrases = (_BOTH_SIDES if both else _PHRASES)[f.name]
    if f.name == "consolidation" and (f.extent < FAINT or f.extent > DENSE) and rng.random() < _ALSO:
        phrases = (_FAINT if f.extent < FAINT else _DENSE)[both]
    phrase = _pick(phrases, rng)
    return phrase.rstrip("+").format(**_words(f)), phrase.endswith("+")


def _article(phrase: str) -> str:
    """A phrase after "There is": with its article where it is countable."""
    mass_nouns = ("cardiomegaly", "edema", "atelectasis", "emphysema", "fibrosis", "thickening", "scoliosis", "change")
    head = phrase.split(" of ")[0].split(" at ")[0].split(" on ")[0].split(" in ")[0]
    if any(word in head for word in (*mass_nouns, "consolidation", "infiltration", "pneumonia", "enlargement")):
        return phrase
    return ("an " if phrase[0] in "aeiou8" else "a ") + phrase


def sentence(f: Finding, status: str, rng: np.random.Generator) -> str:
    """One sentence that states (or hedges) a finding."""
    if status == POSITIVE and f.name in _SENTENCES and f.side != "bilateral" and rng.random() < 0.3:
        return _pick(_SENTENCES[f.name], rng).format(**_words(f))
    phrase, plural = noun_phrase(f, rng)
    frame = _pick(_FRAMES[status], rng)
    with_article = phrase if plural else _article(phrase)
    inside = with_article if frame.startswith("There") else phrase
    start = with_article if frame.startswith("{Np} ") else phrase
    return frame.format(np=inside, Np=start[0].upper() + start[1:], **{"is": "are" if plural else "is"})


def _denials(absent: list[str], rng) -> list[str]:
    """Sentences that deny these findings, one to three in each."""
    names, lines = list(rng.permutation(absent)), []
    while names:
        n = int(rng.integers(1, 4))
        some, names = names[:n], names[n:]
        words = [_pick(_DENIED[name], rng) for name in some]
        listed = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]
        lines.append((_pick(["No {}.", "There is no {}.", "No evidence of {}."], rng).format(listed), some))
    return lines


def write_report(findings, rng: np.random.Generator, hedge: float = 0.55) -> Report:
    """Report of these findings (list of `Finding`). hedge: chance that a barely visible one is hedged."""
    mentions: dict = {}
    blocks = []
    for f in findings:
        unsure = not KINDS[f.name].device and f.extent < _HEDGE_BELOW and rng.random() < hedge
        mentions[f.name] = UNCERTAIN if unsure else POSITIVE
        blocks.append(sentence(f, mentions[f.name], rng))
    there = set(mentions)
    if not there & set(_CLEAR_OF) and rng.random() < 0.7:
        blocks.append(_pick(_CLEAR_LUNGS, rng))
        mentions |= dict.fromkeys(_CLEAR_OF, NEGATIVE)
    if "cardiomegaly" not in there and rng.random() < 0.6:
        blocks.append(_pick(_NORMAL_HEART, rng))
        mentions["cardiomegaly"] = NEGATIVE
    absent = [name for name in _DENIED if name not in there and rng.random() < 0.55]
    for line, names in _denials(absent, rng):
        blocks.append(line)
        mentions |= dict.fromkeys(names, NEGATIVE)
    if rng.random() < 0.35:
        blocks.append(_pick(_FILLER, rng))
    order = rng.permutation(len(blocks)) if rng.random() < 0.6 else range(len(blocks))
    text = " ".join(blocks[i] for i in order) or _pick(_FILLER, rng)
    return Report(text, _impression(findings, mentions, rng), mentions)


def _impression(findings, mentions: dict, rng) -> str:
    """The findings again in short, acute ones first; or that nothing acute is there."""
    chosen = [f for f in findings if f.name in _ACUTE or rng.random() < 0.5]
    chosen.sort(key=lambda f: f.name not in _ACUTE)
    if not chosen:
        return _pick(_NO_ACUTE if findings else _NORMAL_CHEST, rng)
    lines = [sentence(f, mentions[f.name], rng) for f in chosen]
    if len(lines) > 1 and rng.random() < 0.45:
        return " ".join(f"{i}. {line}" for i, line in enumerate(lines, 1))
    if not {f.name for f in findings} & set(_ACUTE):
        lines.append(_pick(_NO_ACUTE, rng))
    return " ".join(lines)
