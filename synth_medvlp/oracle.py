"""The oracle arm of S5: the simulator itself draws the patient whom a prompt describes.

It bounds what any generator could add: its images are of the training hospital's kind, free of defects, and show what
the prompt states of the simulator's findings, and nothing else. Sides, places and sizes that the prompt leaves open are
drawn.
"""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from synth_medvlp.anatomy import draw_exposure, draw_patient
from synth_medvlp.dictionary_ner import DictionaryNer
from synth_medvlp.diffusion import shows_nothing, told
from synth_medvlp.findings import DENSE, EXCLUDES, FAINT, KINDS, Finding, draw_finding
from synth_medvlp.lexicon import ANATOMY, Mention, sentences
from synth_medvlp.simulate import HOSPITALS, picture

# First match wins: what is more special stands first.
_NAMES = [(re.compile(rf"\b(?:{words})\b", re.IGNORECASE), name) for words, name in (
    (r"pneumothorax|pneumothoraces", "pneumothorax"),
    (r"subcutaneous emphysema", ""),
    (r"pleural thickening|pleural plaques?", "pleural_thickening"),
    (r"effusions?|pleural fluid|blunting|blunted", "pleural_effusion"),
    (r"ribs? fractures?|fractures?", "rib_fracture"),
    (r"calcified granulomas?|granulomas?|granulomatous disease", "granuloma"),
    (r"nodules?", "nodule"),
    (r"mass|masses|tumou?r|neoplasm|cancer|carcinoma", "mass"),
    (r"hernia", "hiatal_hernia"),
    (r"atelectasis|collapse|volume loss", "atelectasis"),
    (r"o?edema|congestion|septal lines?|kerley \w+|heart failure|chf", "edema"),
    (r"fibrosis|fibrotic changes?|reticulation|honeycombing", "fibrosis"),
    (r"emphysema|emphysematous changes?|hyperinflat\w+|hyperexpan\w+|copd|obstructive pulmonary disease", "emphysema"),
    (r"cardiomegaly|(?:cardiac|heart|cardiac silhouette)[\w ]* enlarge\w+|enlarge\w+[\w ]* (?:heart|cardiac)\w*|"
     r"cardiac enlargement", "cardiomegaly"),
    (r"scoliosis", "scoliosis"),
    (r"tortuo\w+|unfolded|ectatic", "tortuous_aorta"),
    (r"pacemaker|pacer|defibrillator|aicd|icd", "pacemaker"),
    (r"sterno?tomy wires?|sternal wires?", "sternal_wires"),
    (r"endotracheal tube|et tube|ett|intubation tube", "endotracheal_tube"),
    (r"enteric tube|feeding tube|nasogastric tube|orogastric tube|gastric tube|n?ng tube|dobhoff tube",
     "feeding_tube"),
    (r"central (?:venous )?(?:line|catheter)|venous line|jugular line|subclavian line|picc(?: line)?", "central_line"),
    (r"consolidations?|pneumonia|bronchopneumonia|opacity|opacities|opacification|infiltrat\w+|airspace disease|"
     r"infection", "consolidation"),
)]  # fmt: skip
_SIDES = [(re.compile(words, re.IGNORECASE), side) for words, side in (
    (r"\bbilateral|\bboth\b|\bbibasilar|\bbibasal|\bbiapical", "bilateral"),
    (r"\bleft\b", "left"), (r"\bright\b", "right"),
)]  # fmt: skip
_PLACES = {
    "upper": r"\bupper\b|\bapex\b|\bapices\b", "middle": r"\bmiddle\b|\bmid\b|\blingula\b|\bperihilar\b",
    "lower": r"\blower\b|\bbase\b|\bbases\b|\bbasilar\b|\bbibasilar\b|\bbasal\b|\bretrocardiac\b",
    "apical": r"\bapical\b|\bapex\b|\bbiapical\b", "lateral": r"\blateral\b",
    "jugular": r"\bjugular\b", "subclavian": r"\bsubclavian\b",
}  # fmt: skip
# Extents as reports word them: below 0.4 the first, from 0.7 the last.
_SIZES = [(re.compile(words, re.IGNORECASE), low, high) for words, low, high in (
    (r"\bmoderate to (?:severe|large)|\bmoderately large", 0.6, 0.8),
    (r"\b(?:mild|small) to moderate", 0.3, 0.5),
    (r"\btiny|\btrace|\bminimal|\bslight|\bpossible|\bquestionable", 0.03, 0.2),
    (r"\bsmall|\bmild", 0.1, 0.4), (r"\bmoderate", 0.4, 0.7),
    (r"\blarge|\bsevere|\bmassive|\bmarked|\bgross", 0.7, 1.0),
)]  # fmt: skip
_DENSITIES = [(re.compile(words, re.IGNORECASE), low, high) for words, low, high in (
    (r"infiltrat", 0.0, FAINT), (r"pneumonia", DENSE, 1.0),
)]  # fmt: skip
_MEASURE = re.compile(r"(\d+(?:\.\d+)?)\s?(mm|cm)\b", re.IGNORECASE)


def parse(prompt: str, rng: np.random.Generator) -> tuple[list[Finding], Counter]:
    """Findings that a text states, and counts of what of it was not drawn: unknown (no finding of the simulator),
    repeated, excluded (cannot stand beside an earlier one)."""
    findings: list[Finding] = []
    left_out: Counter = Counter()
    for _, sentence in sentences(prompt):
        mentions = DictionaryNer()([sentence])[0]
        for mention in mentions:
            if mention.type == ANATOMY or mention.type.startswith("NON-"):
                continue
            name = next((name for pattern, name in _NAMES if pattern.search(mention.text)), "")
            earlier = {finding.name for finding in findings}
            if not name:
                left_out["unknown"] += 1
            elif name in earlier:
                left_out["repeated"] += 1
            elif earlier & EXCLUDES[name]:
                left_out["excluded"] += 1
            else:
                findings.append(_finding(name, mention, mentions, sentence, rng))
    return findings, left_out


def _finding(name: str, mention: Mention, mentions: list[Mention], sentence: str, rng) -> Finding:
    """Side, place and size from the mention itself, else from the nearest place named in its sentence."""
    kind, fixed = KINDS[name], {}
    places = sorted((m for m in mentions if m.type == ANATOMY), key=lambda m: abs(m.start - mention.start))
    words = [mention.text, *(m.text for m in places), sentence]
    if kind.sides[0] != ("",):
        side = next((s for text in words for pattern, s in _SIDES if pattern.search(text)), "")
        fixed |= {"side": side} if side in kind.sides[0] else {}
    for text in words:
        place = next((p for p in kind.places[0] if p in _PLACES and re.search(_PLACES[p], text, re.IGNORECASE)), "")
        if place:
            fixed["place"] = place
            break
    extent = _extent(name, mention.text, sentence, rng)
    return draw_finding(name, rng, **fixed, **({} if extent is None else {"extent": extent}))


def _extent(name: str, words: str, sentence: str, rng) -> float | None:
    """0..1, or None where nothing is said."""
    if name in ("nodule", "mass") and (measure := _MEASURE.search(sentence)):
        mm = float(measure[1]) * (10 if measure[2].lower() == "cm" else 1)
        extent = (mm / 20 - 0.75) / 0.65 if name == "nodule" else (mm / 20 - 1.8) / 1.5
        return float(np.clip(extent, 0.0, 1.0))
    for text in (words, sentence):
        for pattern, low, high in _SIZES:
            if pattern.search(text):
                return float(rng.uniform(low, high))
    if name == "consolidation":
        for pattern, low, high in _DENSITIES:
            if pattern.search(words):
                return float(rng.uniform(low, high))
    return None


class Oracle:
    """Renders prompts with `simulate.picture`; the call of `diffusion.Generator`."""

    name = "oracle"

    def __init__(self, size: int, hospital: str = "mimic-cxr-jpg"):
        self.size, self.hospital = size, HOSPITALS[hospital]
        self.left_out: Counter = Counter()

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[np.ndarray, dict]:
        """(uint8 [n, size, size], told), told as `diffusion.told`, with counts of what was not drawn."""
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed per image")
        start, images, left_out = time.perf_counter(), [], Counter()
        for prompt, seed in zip(prompts, seeds, strict=True):
            image, missed = self.draw(prompt, seed)
            images.append(image)
            left_out += missed
        stacked = np.stack(images) if images else np.zeros((0, self.size, self.size), np.uint8)
        stats = told([shows_nothing(image) for image in images], [0] * len(images), time.perf_counter() - start)
        return stacked, stats | {"not_drawn": dict(left_out)}

    def draw(self, prompt: str, seed: int) -> tuple[np.ndarray, Counter]:
        """(image, counts of what of the prompt was not drawn)."""
        rng, place = np.random.default_rng([seed, 7]), self.hospital
        patient = draw_patient(rng, place.age_mean)
        findings, left_out = parse(prompt, rng)
        bedside = any(KINDS[f.name].bedside for f in findings)
        view = "AP" if bedside or rng.random() < place.share_ap else "PA"
        film = replace(place.film, centre=place.film.centre + rng.normal(0, 0.16),
                       width=place.film.width * np.exp(rng.normal(0, 0.08)))  # fmt: skip
        marker, clutter = rng.random() < place.marker, view == "AP" and rng.random() < place.clutter
        image, _ = picture(patient, draw_exposure(rng, view), findings, self.size, film, marker, clutter)
        return image, left_out
