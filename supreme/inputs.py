"""What a trained model is given at test time, named as in `eval.inputs` and in the tables.

ecg                 zero-shot: one score per class, asked by its text; a supervised model answers from its own head
ecg~zeroed          control: no signal; ~shuffled: another record's ECG; ~permuted: every lead takes another lead's
                    place; ~texts: every class is asked by another class's text; ~prior: a class's share of the training
                    labels for every record; ~val: the validation part, for thresholds
probe:ecg           linear probes on the mean token, for each ratio and draw of `eval.probe`; probe:ecg~val also scores
                    validation, on which the best of several baselines is chosen
oof:ecg             ten-fold out-of-fold probes over the official folds
"""

from dataclasses import dataclass

CONTROLS = {
    "": ("", "zeroed", "shuffled", "permuted", "texts", "prior", "val"),
    "probe": ("", "val"),
    "oof": ("",),
}


@dataclass(frozen=True)
class Input:
    name: str
    control: str = ""
    kind: str = ""


def expand(names: list[str]) -> list[Input]:
    """`eval.inputs` -> one Input per evaluation. ValueError for an unknown name."""
    found = []
    for name in dict.fromkeys(names):
        kind, _, rest = name.rpartition(":")
        what, _, control = rest.partition("~")
        if what != "ecg" or control not in CONTROLS.get(kind, ()):
            raise ValueError(f"eval.inputs: {name!r} is none of the inputs listed in supreme/inputs.py")
        found.append(Input(name, control, kind))
    return found
