"""What a trained model is given at test time, named as in `eval.inputs` and in the tables.

12 leads  I  II  I+II  I+II+V2  I+II+III+V2  limb  I+II+V1-V6    one clinical lead set (kmerl/leads.py)
partial                     all of these but the 12 leads
random                      `eval.n_random_sets` seeded sets for each of 1 .. 11 leads: "3-random-0" ..
limb/zero                   missing leads filled (MERL needs all rows); fills as in kmerl/leads.py
12 leads~zeroed             control: no signal; ~shuffled: another record's ECG; ~permuted: every lead takes another
                            lead's place; ~val: the validation part, for thresholds
probe:12 leads              linear probes on features at these leads, for each ratio and draw of `eval.probe`
oof:limb/zero               ten-fold out-of-fold probes over the official folds
"""

from dataclasses import dataclass

import numpy as np

from kmerl.leads import CLINICAL_SETS, lead_mask, random_sets

ALL_LEADS = "12 leads"
PARTIAL = tuple(name for name in CLINICAL_SETS if name != ALL_LEADS)
CONTROLS = ("", "zeroed", "shuffled", "permuted", "val")
KINDS = ("", "probe", "oof")


@dataclass(frozen=True)
class Input:
    name: str
    leads: tuple[str, ...]
    fill: str = ""  # "" = none: tokens of missing leads are dropped
    control: str = ""
    kind: str = ""

    @property
    def mask(self) -> np.ndarray:
        return lead_mask(self.leads)


def expand(names: list[str], n_random_sets: int) -> list[Input]:
    """`eval.inputs` -> one Input per evaluation, `partial` and `random` unfolded. ValueError for an unknown name."""
    known = CLINICAL_SETS | random_sets(n_random_sets)
    found = {}
    for name in names:
        kind, _, rest = name.rpartition(":")
        rest, _, control = rest.partition("~")
        group, _, fill = rest.partition("/")
        sets = {"partial": PARTIAL, "random": tuple(n for n in known if "random" in n)}.get(group, (group,))
        if kind not in KINDS or control not in CONTROLS or not set(sets) <= set(known):
            raise ValueError(f"eval.inputs: {name!r} is none of the inputs listed in kmerl/inputs.py")
        for lead_set in sets:
            full = f"{kind}:" * bool(kind) + lead_set + f"/{fill}" * bool(fill) + f"~{control}" * bool(control)
            found[full] = Input(full, known[lead_set], fill, control, kind)
    return list(found.values())
