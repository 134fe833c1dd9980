"""What one statement is read as (reference: M2, stages 1 and 2): the entity schema, the grounding check, the paper's
three lists, and the dialogue with a language model that fills the schema (prompt.yaml: constraints, knowledge, few-shot
pairs).

A dialogue knows no model: it yields what to ask and is sent the reply. A reply that is no valid answer is said back
with what is wrong; an entity whose words do not stand in the statement is dropped and listed.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import yaml

from shared.chat import BadReply, Dialogue, Usage, system_and_user, until_valid

PROMPT = Path(__file__).with_name("prompt.yaml")
CATEGORIES = (
    "rhythm", "conduction", "ischemia_infarct", "hypertrophy", "st_t", "axis_voltage", "ectopy", "pacing", "summary",
    "quality", "other",
)  # fmt: skip
POLARITIES = ("normal", "abnormal")
CERTAINTIES = ("definite", "hedged", "negated", "uninterpretable")
TEMPORALITIES = ("current", "old", "undetermined")
REJECTED = "rejected by the second pass"


class Entity(NamedTuple):
    """One entity of a statement; surface is statement[start:end]."""

    surface: str
    start: int
    end: int
    entity: str  # plain words, without hedge, negation, age
    category: str  # of CATEGORIES
    polarity: str  # normal | abnormal, whatever the certainty
    certainty: str  # definite | hedged | negated | uninterpretable
    temporality: str = "current"  # current | old | undetermined
    location: tuple[str, ...] = ()  # regions or leads
    residual: bool = False  # "otherwise normal", "normal except for ..": always a hedged normal ECG


class Reading(NamedTuple):
    """One statement, read. entities: () where nothing is named; error: "" or why it could not be read; ungrounded: what
    was dropped, each with its `reason`."""

    statement: str
    entities: tuple[Entity, ...] = ()
    error: str = ""
    ungrounded: tuple[dict, ...] = ()
    usage: Usage = Usage()


def _list_of(key: str, item: dict, optional: tuple[str, ...] = ()) -> dict:
    required = [name for name in item if name not in optional]
    one = {"type": "object", "properties": item, "required": required, "additionalProperties": False}
    lists = {key: {"type": "array", "items": one}}
    return {"type": "object", "properties": lists, "required": [key], "additionalProperties": False}


_TEXT = {"type": "string", "minLength": 1, "maxLength": 200}
EXTRACT_SCHEMA = _list_of(
    "entities",
    {
        "surface": {"type": "string", "minLength": 1},
        "entity": _TEXT,
        "category": {"enum": list(CATEGORIES)},
        "polarity": {"enum": list(POLARITIES)},
        "certainty": {"enum": list(CERTAINTIES)},
        "temporality": {"enum": list(TEMPORALITIES)},
        "location": {"type": "array", "items": _TEXT},
        "residual": {"type": "boolean"},
        "span": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2},
    },
    optional=("span",),  # a model is not asked to count letters; where a span is given, it must be right
)
VERIFY_SCHEMA = _list_of("verdicts", {"entity": _TEXT, "occurs": {"type": "boolean"}})


def paper_view(entities: Iterable[Entity]) -> dict[str, list[str]]:
    """The paper's three lists (M1): Uncertain takes hedged and uninterpretable phrases whole, as they stand in the
    statement; Normal and Abnormal take the names of definite entities; negated ones are in no list. No duplicates."""
    view: dict[str, dict[str, None]] = {"Normal": {}, "Abnormal": {}, "Uncertain": {}}
    for e in entities:
        if e.certainty in ("hedged", "uninterpretable"):
            view["Uncertain"][e.surface] = None
        elif e.certainty == "definite":
            view[e.polarity.capitalize()][e.entity] = None
    return {name: list(phrases) for name, phrases in view.items()}


def as_item(e: Entity) -> dict:
    """The entity as an object of the schema, with its span."""
    item = e._asdict()
    return {"surface": e.surface, "span": [item.pop("start"), item.pop("end")]} | item | {"location": list(e.location)}


def ground(items: list[dict], statement: str) -> tuple[tuple[Entity, ...], tuple[dict, ...]]:
    """(entities, ungrounded) of schema-valid objects. A surface must stand in the statement, upper or lower case;
    without a span it takes the first place that the same words do not hold yet; a span must enclose just these words.
    """
    entities, ungrounded, at = [], [], {}
    for item in items:
        surface, name = item["surface"].strip(), " ".join(item["entity"].split())
        place = item.get("span")
        key, lower = surface.lower(), statement.lower()
        start = place[0] if place else max(lower.find(key, at.get(key, 0)), lower.find(key))
        end = place[1] if place else start + len(key)
        if not surface or not name or key not in lower:
            ungrounded.append(item | {"reason": "not in the statement"})
        elif lower[start:end] != key or end != start + len(key):
            ungrounded.append(item | {"reason": "span does not match"})
        else:
            at[key] = end
            rest = (item[k] for k in ("category", "polarity", "certainty", "temporality"))
            residual = item["residual"]
            entities.append(Entity(statement[start:end], start, end, name, *rest, tuple(item["location"]), residual))
    return tuple(dict.fromkeys(entities)), tuple(ungrounded)


# --- the dialogue ---


@lru_cache(maxsize=1)
def texts() -> dict:
    """prompt.yaml."""
    return yaml.safe_load(PROMPT.read_text(encoding="utf-8"))


@lru_cache(maxsize=2)
def version(verify: bool) -> str:
    """Hash of all that is asked: prompts, few-shot pairs, schemas, second pass or none."""
    asked = [texts(), EXTRACT_SCHEMA, VERIFY_SCHEMA if verify else None]
    return sha256(json.dumps(asked).encode()).hexdigest()[:12]


def question(statement: str) -> list[dict]:
    """Messages of the first pass: constraints and knowledge, the few-shot pairs as earlier turns, the statement."""
    said = texts()
    messages = [{"role": "system", "content": f"{said['constraints']}\n\n{said['knowledge']}"}]
    for shot in said["shots"]:
        messages.append({"role": "user", "content": _quoted(shot["statement"])})
        messages.append({"role": "assistant", "content": json.dumps({"entities": shot["entities"]})})
    return [*messages, {"role": "user", "content": _quoted(statement)}]


def _quoted(statement: str) -> str:
    return f"<statement>\n{statement}\n</statement>"


Answer = tuple[tuple[Entity, ...], tuple[dict, ...]]  # entities, ungrounded


def dialogue(statement: str, retries: int, verify: bool) -> Dialogue:
    """Extraction, then the second pass, each asked again up to `retries` times. Raises the last BadReply."""
    accept = lambda reply: _entities(reply, statement)  # noqa: E731
    entities, ungrounded = yield from until_valid(question(statement), EXTRACT_SCHEMA, accept, retries)
    if not (verify and entities):
        return entities, ungrounded
    listed = [{"entity": e.entity, "certainty": e.certainty, "surface": e.surface} for e in entities]
    content = f"{_quoted(statement)}\n<entities>\n{json.dumps(listed)}\n</entities>"
    asked = system_and_user(texts()["verify"], content)
    occurs = yield from until_valid(asked, VERIFY_SCHEMA, lambda reply: _verdicts(reply, entities), retries)
    refused = tuple(as_item(e) | {"reason": REJECTED} for e, there in zip(entities, occurs, strict=True) if not there)
    return tuple(e for e, there in zip(entities, occurs, strict=True) if there), ungrounded + refused


def _entities(reply: dict, statement: str) -> Answer:
    """What is left over of the reply; raises BadReply where nothing is, which must not pass for "nothing is named"."""
    entities, ungrounded = ground(reply["entities"], statement)
    if ungrounded and not entities:
        made_up = [item["surface"] for item in ungrounded]
        raise BadReply(f"the statement does not contain {made_up}; copy surface letter by letter", ungrounded)
    return entities, ungrounded


def _verdicts(reply: dict, entities: tuple[Entity, ...]) -> list[bool]:
    verdicts = reply["verdicts"]
    if [v["entity"].split() for v in verdicts] != [e.entity.split() for e in entities]:
        raise BadReply(f"give one verdict for each of {[e.entity for e in entities]}, in this order")
    return [v["occurs"] for v in verdicts]
