"""Instruction text of MEIT: what the user turn of every training pair asks for.

The paper, as relayed, lets an LLM paraphrase seed prompts into 256 instructions and draws one per ECG-report pair; the
public code uses one fixed instruction. Neither the seed prompts nor the paraphrases are public, so both are of our own
writing: `FIXED_INSTRUCTION` for the protocol `as_published`, the pool of 256 for `corrected`.

The pool is composed from parts: every object meets every style (16 x 16), while opener and verb rotate, so that any two
instructions differ in object or style and mostly in the opener or verb too. It is committed as `instructions.txt`;
after a change of the parts run `python -m meit.instructions`.
"""

from pathlib import Path

# A sentence that no record of `corrected` trains with, made of words that the pool holds: the small tiers' language
# models know no others. With two new words (10 of 31 prompt tokens, embeddings as drawn) GPT-NeoX did not read the ECG.
FIXED_INSTRUCTION = "Give me a short clinical account of what can be seen in this ECG."

POOL_FILE = Path(__file__).with_name("instructions.txt")

# (opening words, end of sentence); each is followed by a verb in its base form.
OPENERS = (
    ("", "."),
    ("Please", "."),
    ("Could you", "?"),
    ("As a cardiologist,", "."),
    ("Your task is to", "."),
    ("Would you please", "?"),
    ("Acting as an ECG reader,", "."),
    ("I would like you to", "."),
)
# Verbs that take each of the OBJECTS.
VERBS = ("write", "draft", "provide", "prepare", "generate", "compose", "give me", "produce")
OBJECTS = (
    "a report of this 12-lead ECG",
    "an interpretation of the electrocardiogram",
    "the diagnostic report for this recording",
    "a clinical description of the ECG",
    "a summary of the findings in this electrocardiogram",
    "an assessment of the heart tracing",
    "a reading of this patient's ECG",
    "an ECG report for the recorded signal",
    "a diagnostic statement about this ECG trace",
    "the findings section for this electrocardiogram",
    "a medical report based on the attached ECG signal",
    "a concise account of this twelve-lead tracing",
    "an evaluation of this short ECG recording",
    "the overall conclusion for this electrocardiogram",
    "a description of the heart's electrical activity",
    "a report on the cardiac signal of this patient",
)
# Adverbial phrases and participles that refer to the writing, not to the noun before them.
STYLES = (
    "in plain clinical language",
    "in the usual hospital style",
    "with attention to rhythm, conduction and morphology",
    "using standard cardiology terms",
    "in a few short statements",
    "while keeping to what the signal supports",
    "and name every abnormality that can be seen",
    "and state the rhythm before anything else",
    "without adding anything that cannot be seen",
    "so that it can go into the medical record",
    "and mention any conduction disturbance",
    "and point out signs of ischaemia or infarction if there are any",
    "with the most important finding first",
    "in the words a cardiologist would use",
    "and say so if nothing is abnormal",
    "covering rhythm, axis, intervals and ST-T changes",
)


def compose() -> list[str]:
    """The 256 instructions, in a fixed order."""
    pool = []
    for o, thing in enumerate(OBJECTS):
        for s, style in enumerate(STYLES):
            opener, end = OPENERS[(o + s) % len(OPENERS)]
            verb = VERBS[(3 * o + s // 2) % len(VERBS)]
            sentence = f"{opener} {verb} {thing} {style}{end}".strip()
            pool.append(sentence[0].upper() + sentence[1:])
    return list(dict.fromkeys(pool))


def instruction_pool() -> list[str]:
    """The committed pool, one instruction per line of `instructions.txt`."""
    return POOL_FILE.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    POOL_FILE.write_text("\n".join(compose()) + "\n", encoding="utf-8")
