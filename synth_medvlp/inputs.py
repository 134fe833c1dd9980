"""What is evaluated, named as in `eval.inputs` and in the tables: [kind:]image[+variation][~control].

image               zero-shot: one score per class, asked by its prompt
image+description   the same with another prompt set (synth_medvlp/prompts.py) or another scorer (cos, pair ..)
image~zeroed        control: a black image; ~shuffled: another record's image; ~prompts: every class is asked by another
                    class's prompt; ~prior: a class's share of the training labels for every record; ~val: the
                    validation part, for thresholds
linear:image        a linear layer on the frozen encoder's pooled features, for each share and draw of `eval.finetune`
finetune:image      encoder and linear layer trained; both also with ~val, which scores validation too
grounding:image     zero-shot maps against masks and boxes; ~zeroed, ~shuffled, ~prompts; ~prior: the mean mask of the
                    training part for every record; +cosine: cosines with the cells, in place of GLoRIA's attention
segment:image       a U-Net on the encoder, trained on masks
"""

from dataclasses import dataclass, field

from synth_medvlp.finetune import FinetuneConfig
from synth_medvlp.grounding import GroundingConfig
from synth_medvlp.prompts import SETS
from synth_medvlp.segment import SegmentConfig
from synth_medvlp.trees import CxrSimulateConfig

CONTROLS = {
    "": ("", "zeroed", "shuffled", "prompts", "prior", "val"),
    "linear": ("", "val"),
    "finetune": ("", "val"),
    "grounding": ("", "zeroed", "shuffled", "prompts", "prior"),
    "segment": ("",),
}
COSINE = "cosine"  # a kind of map
CLASSIFIED = ("", "linear", "finetune")  # kinds that give scores of classes; the others give masks


@dataclass
class EvalConfig:
    """Section `eval:` (reference: Evaluation protocols)."""

    tasks: list[str] = field(
        default_factory=lambda: [
            "chexpert-5", "nih-14", "padchest-seen", "rsna", "siim", "covidx", "covidx-within", "padchest-unseen",
            "padchest-rare",
        ]
    )  # fmt: skip
    simulate: CxrSimulateConfig | None = None  # of every test hospital; null = the official releases
    variant: str = "corrected"  # corrected | as_published: splits and labels
    inputs: list[str] = field(default_factory=lambda: ["image"])  # see synth_medvlp/inputs.py
    prompts: str = "there_is"  # there_is | name | description | findings (synth_medvlp/prompts.py)
    scorer: str | None = None  # cos | pair | gloria; null = the method's own
    checkpoint: str | None = None  # of another run; null = this run's own
    batch: int = 128
    n_boot: int = 1000
    all_records: bool = False  # all images at hand are the test part (real samples without a split)
    grounding: GroundingConfig = field(default_factory=GroundingConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)


@dataclass(frozen=True)
class Input:
    """variation: a prompt set, a scorer or a kind of map in place of the config's; "" = none."""

    name: str
    control: str = ""
    kind: str = ""
    variation: str = ""


def expand(names: list[str], scorers: tuple[str, ...]) -> list[Input]:
    """`eval.inputs` -> one Input per evaluation; scorers: those of the model. ValueError for an unknown name."""
    found = []
    for name in dict.fromkeys(names):
        kind, _, rest = name.rpartition(":")
        what, _, control = rest.partition("~")
        what, _, variation = what.partition("+")
        varied = {"": (*SETS, *scorers), "grounding": (*SETS, COSINE)}.get(kind, ())
        if what != "image" or control not in CONTROLS.get(kind, ()) or variation not in ("", *varied):
            raise ValueError(f"eval.inputs: {name!r} is none of the inputs listed in synth_medvlp/inputs.py")
        if kind in ("linear", "finetune") and not control and f"{name}~val" in names:
            raise ValueError(f"eval.inputs: {name}~val scores the test part too; leave {name!r} out")
        found.append(Input(name, control, kind, variation))
    return found
