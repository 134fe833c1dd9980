"""Reports of simulated chest CTs in the style of each source: CT-RATE (findings and impression), BIMCV-R (short Spanish
and its translation), INSPECT (impression only), in our own words.

A report says what was drawn, where and how large, and denies only what was not drawn. What is barely there is often
hedged. `Report.mentions` keeps what the text says of each finding. (Argus, reference: "Data", CT-3DRRG.)
"""

import re
from dataclasses import dataclass

import numpy as np

from shared.ct import simulate_phrases as words
from shared.ct.simulate_findings import Finding

POSITIVE, UNCERTAIN, NEGATIVE = "positive", "uncertain", "negative"
_EIGHTS = re.compile(r"\b([Aa]) (?=(?:8|11\b|18\b))")


@dataclass(frozen=True)
class Report:
    """findings, impression: "" where the source has no such section; original: the Spanish text, or ""; mentions:
    name of a finding -> positive | uncertain | negative, over all sections."""

    findings: str
    impression: str
    original: str
    mentions: dict


def _pick(options, rng):
    return options[int(rng.integers(len(options)))]


def _grade(f: Finding, key: str, language: int) -> str:
    return words.GRADES[key][language][0 if f.extent < 0.33 else 1 if f.extent < 0.7 else 2]


def _lobe(f: Finding, spanish: bool) -> str:
    if f.side == "bilateral":
        if spanish:
            names = {
                "": "ambos pulmones",
                "lower_lobe": "ambos lóbulos inferiores",
                "upper_lobe": "ambos lóbulos superiores",
            }
            return names[f.place]
        return {"": "both lungs", "lower_lobe": "both lower lobes", "upper_lobe": "both upper lobes"}[f.place]
    if spanish:
        return f"el lóbulo {words.ES[f.place]} {words.ES[f.side]}" if f.place != "middle_lobe" else "el lóbulo medio"
    return f"{f.side} {words.EN[f.place]}"


def _apex(f: Finding, spanish: bool) -> str:
    if spanish:
        return "ambos ápices" if f.side == "bilateral" else f"el ápex {words.ES[f.side]}"
    return "apices of both lungs" if f.side == "bilateral" else f"apex of the {f.side} lung"


def _station(f: Finding, spanish: bool) -> str:
    if spanish:
        side = {"right": " derechas", "left": " izquierdas"}.get(f.side, "")
        return {"mediastinal": "mediastínicas", "hilar": "hiliares", "axillary": "axilares"}[f.place] + side
    return f"{f.side} {f.place}".strip()


def _vessel(f: Finding, spanish: bool) -> str:
    if f.place == "main":
        side = {"right": "derecha", "left": "izquierda"}[f.side]
        return f"la arteria pulmonar principal {side}" if spanish else f"{f.side} main pulmonary artery"
    return f"ramas arteriales de {_lobe(f, True)}" if spanish else f"segmental arteries of the {_lobe(f, False)}"


def _level(f: Finding, spanish: bool) -> str:
    if f.place != "rib":
        return f.detail
    number = int(f.detail.split()[1])
    if spanish:
        return f"{number}ª costilla {'derecha' if f.side == 'right' else 'izquierda'}"
    return f"{f.side} {number}{'rd' if number == 3 else 'th'} rib"


def _fill(template: str, f: Finding, spanish: bool) -> str:
    """A template with the words of a finding in it."""
    table = words.ES if spanish else words.EN
    values = {
        "mm": f"{f.size_mm:.0f}", "cm": f"{f.size_mm / 10:.1f}", "side": table.get(f.side, ""),
        "form": table.get(f.form, ""), "artery": table.get(f.place, ""), "part": table.get(f.place, ""),
        "sev": _grade(f, "sev", spanish), "size": _grade(f, "size", spanish),
    }  # fmt: skip
    if spanish:
        values |= {"sevf": _grade(f, "sevf", 1), "sizef": _grade(f, "sizef", 1)}
    more = {"lobe": _lobe, "apex": _apex, "station": _station, "vessel": _vessel, "level": _level}
    values |= {key: make(f, spanish) for key, make in more.items() if f"{{{key}}}" in template}
    text = template.format(**values)
    if spanish:
        return text
    if f.side == "bilateral":
        text = text.replace("in the both", "in both").replace("posterior both", "both posterior")
        text = re.sub(r"^a (\w+ )?bilateral (pleural effusion)", r"\1bilateral \2s+", text)
    return _EIGHTS.sub(r"\1n ", text)


def _key(f: Finding, table: dict) -> str:
    return next((key for key in (f"{f.name}:{f.form}", f"{f.name}:{f.place}") if key in table), f.name)


def _sentence(frame: str, noun: str) -> str:
    plural = noun.endswith("+")
    noun = noun.rstrip("+")
    bare = frame.startswith(("{Np}.", "Possible", "Posible"))
    noun = re.sub(r"^(an?|una?) ", "", noun) if bare else noun
    verbs = {"is": ("is", "are"), "was": ("was", "were")}
    verbs |= {verb: (verb, verb + "n") for verb in ("observa", "identifica", "aprecia")}
    verbs = {key: forms[plural] for key, forms in verbs.items()}
    return frame.format(np=noun, Np=noun[0].upper() + noun[1:], **verbs)


def _certain(f: Finding, rng) -> bool:
    return rng.random() >= (0.4 if f.extent < 0.12 else 0.05)


def _say(f: Finding, certain: bool, style: str, rng) -> str:
    """One sentence on a finding."""
    own = words.SENTENCES.get(_key(f, words.SENTENCES)) if style == "ct-rate" else None
    if certain and own and rng.random() < 0.4:
        return _fill(_pick(own, rng), f, False)
    noun = _fill(_pick(words.NOUNS[_key(f, words.NOUNS)], rng)[0], f, False)
    return _sentence(_pick(words.FRAMES[style][certain], rng), noun)


def _say_paired(f: Finding, certain: bool, rng) -> tuple[str, str]:
    """(Spanish, English) of one sentence on a finding."""
    english, spanish = _pick(words.NOUNS[_key(f, words.NOUNS)], rng)
    frame_es, frame_en = _pick(words.PAIRED_FRAMES[certain], rng)
    return _sentence(frame_es, _fill(spanish, f, True)), _sentence(frame_en, _fill(english, f, False))


def _denials(organ: str, there: set, share: float, rng) -> list:
    """Some denials of an organ as ((names), (English, Spanish)), at most one for each finding."""
    out, said = [], set()
    options = words.DENIALS[organ]
    for k in rng.permutation(len(options)):
        names, texts = options[k]
        if not set(names) & (there | said) and rng.random() < share:
            out.append((names, texts))
            said |= set(names)
    return out


def _mention(mentions: dict, name: str, status: str) -> None:
    order = (NEGATIVE, UNCERTAIN, POSITIVE)
    mentions[name] = max(mentions.get(name, NEGATIVE), status, key=order.index)


def _body(findings: list[Finding], rng, say, deny: float, neutral: float, language: int):
    """Sentences by organ, each from `say(finding, certain)` or a denial; mentions; certainty of each finding."""
    there, mentions, lines, certain = {f.name for f in findings}, {}, [], {}
    for organ, names in words.ORGANS.items():
        lines += [texts for texts in words.NEUTRAL[organ] if rng.random() < neutral]
        for f in sorted((f for f in findings if f.name in names), key=lambda f: names.index(f.name)):
            certain[f] = _certain(f, rng)
            _mention(mentions, f.name, POSITIVE if certain[f] else UNCERTAIN)
            lines.append(say(f, certain[f]))
        for names, texts in _denials(organ, there, deny, rng):
            lines.append(texts)
            for name in names:
                _mention(mentions, name, NEGATIVE)
    return (
        [line if isinstance(line, str) else line[language] for line in lines] if language >= 0 else lines,
        mentions,
        certain,
    )


def _ct_rate(findings: list[Finding], contrast: bool, rng) -> Report:
    lines, mentions, certain = _body(findings, rng, lambda f, c: _say(f, c, "ct-rate", rng), 0.75, 0.6, 0)
    if not contrast and rng.random() < 0.5:
        lines.insert(0, "Since contrast material was not given, mediastinal structures are evaluated suboptimally.")
    short = [_say(f, certain[f], "ct-rate" if rng.random() < 0.3 else "inspect", rng) for f in findings]
    impression = " ".join(short) if short else _pick(words.NORMAL, rng)
    if rng.random() < 0.03:
        impression = "Not given."
    return Report(" ".join(lines), impression, "", mentions)


def _bimcv(findings: list[Finding], contrast: bool, rng) -> Report:
    pairs, mentions, _ = _body(findings, rng, lambda f, c: _say_paired(f, c, rng)[::-1], 0.45, 0.25, -1)
    if not findings:
        pairs = [_pick(words.NORMAL_PAIR, rng)[::-1], *pairs]
    head = ("Chest CT with intravenous contrast.", "TC de tórax con contraste intravenoso.")
    head = head if contrast else ("Chest CT without contrast.", "TC de tórax sin contraste.")
    pairs = [head, *pairs] if rng.random() < 0.6 else pairs
    return Report(" ".join(en for en, _ in pairs), "", " ".join(es for _, es in pairs), mentions)


def _inspect(findings: list[Finding], contrast: bool, rng) -> Report:
    """Impression: embolism first, then the rest, often numbered."""
    mentions, lines = {}, []
    emboli = [f for f in findings if f.name == "pulmonary_embolism"]
    rest = [f for f in findings if f.name != "pulmonary_embolism"]
    order = rng.permutation(len(rest))
    for f in emboli + [rest[k] for k in order]:
        certain = _certain(f, rng)
        _mention(mentions, f.name, POSITIVE if certain else UNCERTAIN)
        lines.append(_say(f, certain, "inspect", rng))
    if not emboli:
        lines.insert(0, _pick(words.NO_EMBOLISM, rng))
        mentions["pulmonary_embolism"] = NEGATIVE
    if not rest:
        lines.append(_pick(words.NO_ACUTE[:2] if not emboli else words.NO_ACUTE[2:], rng))
    numbered = rng.random() < 0.6
    text = " ".join(f"{k}. {line}" for k, line in enumerate(lines, 1)) if numbered else " ".join(lines)
    return Report("", text, "", mentions)


_STYLES = {"ct-rate": _ct_rate, "bimcv-r": _bimcv, "inspect": _inspect}


def write_report(source: str, findings: list[Finding], contrast: bool, rng: np.random.Generator) -> Report:
    """Report of an examination in the style of a source."""
    return _STYLES[source](findings, contrast, rng)
