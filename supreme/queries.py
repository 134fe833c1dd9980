"""What a class is asked by (reference: M6): short texts by default; the texts drawn in the authors' figure; controls.

short    plain names of the classes (shared/ecg/tasks.yaml)
figure   the four texts that are drawn in the authors' overview in their place: "normal", "atrial fibrillation",
         "ischemic", "hypertrophy"
code     the bare code, a control: no meaning for whoever does not know it
long     engineered texts of our own wording (shared/ecg/prompts.yaml), for the claim that short ones suffice
"""

from shared.ecg.prompts import class_texts as names_or_engineered
from shared.ecg.tasks import TaskData

KINDS = ("short", "figure", "code", "long")
FIGURE = {"NORM": "normal", "AFIB": "atrial fibrillation", "ISCA": "ischemic", "HYP": "hypertrophy"}


def class_texts(task: str, data: TaskData, kind: str = "short") -> list[str]:
    """One text per class of a task, in column order. ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"eval.texts={kind!r}: one of {', '.join(KINDS)}")
    if kind == "code":
        return [c.code for c in data.classes]
    texts = names_or_engineered(task, data, "engineered" if kind == "long" else "names")
    if kind == "figure":
        return [FIGURE.get(c.code, text) for c, text in zip(data.classes, texts, strict=True)]
    return texts
