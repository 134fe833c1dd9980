"""The small report writer of the laptop tier, taught on reports of a simulated training hospital (reference: S2, S4).

    python -m synth_medvlp.train_writer OUT --patients 4000 --seed 11 --level middle

A causal language model reads entities with their types and writes FINDINGS, then IMPRESSION. Its texts are sentences of
real reports put together anew, so that requests of any mixture are met: a sentence is chosen for a type and string, as
the sampler does; mentions in it are exchanged for others of their kind, and places added. What the reader finds in the
result is what was "asked". Only reports are drawn, no images. Same arguments, same threads, same machine: same bytes.
"""

import argparse
import hashlib
import shutil
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from synth_medvlp.backends import END, FINDINGS, IMPRESSION, SPECIAL, listed
from synth_medvlp.entities import ANATOMY, TYPES, DictionaryNer, Entity, Mention, entities
from synth_medvlp.findings import conditional_rates, draw_findings
from synth_medvlp.journal import shows_progress
from synth_medvlp.lexicon import sentences
from synth_medvlp.simulate import HOSPITALS, prevalence_of
from synth_medvlp.simulate_reports import write_report

MAX_WORDS = 44  # of an IMPRESSION
_SENTENCES = (0.15, 0.15, 0.25, 0.25, 0.2)  # shares of batches: real FINDINGS, 1 to 4 sentences put together
_READ = DictionaryNer()


def training_reports(n: int, seed: int, level: str) -> list[tuple[str, str]]:
    """(FINDINGS, IMPRESSION) of n studies of the training hospital, without their images."""
    share_ap = HOSPITALS["mimic-cxr-jpg"].share_ap
    rates, out = conditional_rates(prevalence_of("mimic-cxr-jpg", level), share_ap), []
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        report = write_report(draw_findings(rates, "AP" if rng.random() < share_ap else "PA", rng), rng)
        out.append((report.findings, report.impression))
    return out


# --- texts for every mixture of entities ---


@dataclass
class Bank:
    """Sentences of real reports, by what they name. saying: entity -> keys (sets of entities) of the sentences that
    name it; surfaces: slot -> what stood in such a slot."""

    sentences: dict[frozenset, list[str]]
    saying: dict[Entity, list[frozenset]]
    of_type: dict[str, list[Entity]]
    surfaces: dict[tuple, list[str]] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)


def bank(reports) -> Bank:
    texts, names = defaultdict(dict), defaultdict(dict)
    for report in reports:
        for section in report:
            for _, sentence in sentences(section):
                said = sentence.strip()
                mentions = _READ([said])[0]
                texts[frozenset(entities(mentions))].setdefault(said)
                for m in mentions:
                    if not _verb(m.text):
                        names[_slot(said, m)].setdefault(m.text.lower())
    texts.pop(frozenset(), None)
    saying = defaultdict(list)
    for key in texts:
        for entity in sorted(key):
            saying[entity].append(key)
    of_type = {kind: sorted(e for e in saying if e[1] == kind) for kind in TYPES}
    places = sorted({name for kind, found in names.items() if kind[0] == ANATOMY for name in found})
    return Bank({k: list(v) for k, v in texts.items()}, dict(saying), {k: v for k, v in of_type.items() if v},
                {k: sorted(v) for k, v in names.items()}, places)  # fmt: skip


def _verb(text: str) -> bool:
    return any(word in text.lower().split() for word in ("is", "are"))


def _slot(sentence: str, m: Mention) -> tuple:
    """What may stand where this stands: group of types, number, and the article before it."""
    group = ANATOMY if m.type == ANATOMY else m.type.startswith("NON-")
    plural = m.text.endswith("s") and not m.text.endswith(("is", "ss"))
    before = sentence[: m.start].lower().split()
    return group, plural, before[-1] if before and before[-1] in ("a", "an", "the") else ""


def _choose(options, rng):
    return options[int(rng.integers(len(options)))]


def _exchange(sentence: str, bank: Bank, rng) -> str:
    """The sentence with one mention in place of another."""
    mentions = [m for m in _READ([sentence])[0] if not _verb(m.text)]
    if not mentions:
        return sentence
    m = _choose(mentions, rng)
    new = _choose(bank.surfaces.get(_slot(sentence, m), [m.text]), rng)
    new = new[0].upper() + new[1:] if m.text[0].isupper() else new
    return sentence[: m.start] + new + sentence[m.end :]


def _locate(sentence: str, bank: Bank, rng) -> str:
    """The sentence with a place behind its last clinical mention, where it names none yet."""
    mentions = _READ([sentence])[0]
    clinical = [m for m in mentions if not _verb(m.text)]
    if not clinical or any(m.type == ANATOMY for m in mentions):
        return sentence
    return f"{sentence[: clinical[-1].end]} in the {_choose(bank.places, rng)}{sentence[clinical[-1].end :]}"


def compose(bank: Bank, n: int, rng: np.random.Generator) -> tuple[set[Entity], str, str]:
    """(entities, FINDINGS, IMPRESSION) of n sentences at most: the same entities in both."""
    findings, impression, taken = [], [], set()
    for _ in range(n):
        entity = _choose(bank.of_type[_choose(list(bank.of_type), rng)], rng)
        key = min((_choose(bank.saying[entity], rng) for _ in range(2)), key=len)
        first, second = _choose(bank.sentences[key], rng), _choose(bank.sentences[key], rng)
        second = first if any(c.isdigit() for c in first + second) else second  # measurements are said twice alike
        change = rng.random()
        if change < 0.6:
            first = second = _exchange(first, bank, rng)
        if change < 0.3 or rng.random() < 0.2:
            first = second = _locate(first, bank, rng)
        named = entities(_READ([first])[0])
        if not named & taken and named == entities(_READ([second])[0]):
            taken |= named
            findings.append(first)
            impression.append(second)
    impression = [impression[i] for i in rng.permutation(len(impression))]
    if len(impression) > 1 and rng.random() < 0.4:
        impression = [f"{i}. {line}" for i, line in enumerate(impression, 1)]
    return taken, " ".join(findings), " ".join(impression)


class Texts(torch.utils.data.Dataset):
    """Item i follows from (seed, i): ids and labels; the loss is on FINDINGS and IMPRESSION only.

    The items of a batch are in order and of one kind, so that little is padded: real FINDINGS, or 1 to 4 sentences.
    """

    def __init__(self, n: int, batch: int, reports, tokenizer, seed: int):
        self.n, self.batch, self.reports, self.tokenizer, self.seed = n, batch, reports, tokenizer, seed
        self.bank = bank(reports)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict:
        rng, of_batch = np.random.default_rng([self.seed, 3, i]), np.random.default_rng([self.seed, 4, i // self.batch])
        n = int(of_batch.choice(5, p=_SENTENCES))
        taken, findings, impression = set(), "", ""
        if n == 0:
            findings = _choose(self.reports, rng)[0]
            taken = entities(_READ([findings])[0])
        while not taken or len(impression.split()) > MAX_WORDS:
            taken, findings, impression = compose(self.bank, max(n, 1), rng)
        order = sorted(taken)
        order = [order[j] for j in rng.permutation(len(order))]
        order.sort(key=lambda e: e[1] == ANATOMY)
        said = f" {findings}{IMPRESSION}" + (f" {impression}{END}" if impression else "")
        asked = self.tokenizer(listed(order) + FINDINGS)["input_ids"]
        target = self.tokenizer(said)["input_ids"]
        return {"input_ids": asked + target, "labels": [-100] * len(asked) + target}


def _padded(items: list[dict]) -> dict:
    longest = max(len(item["input_ids"]) for item in items)
    batch = {"input_ids": 0, "labels": -100}
    padded = {k: torch.tensor([it[k] + [fill] * (longest - len(it[k])) for it in items]) for k, fill in batch.items()}
    lengths = torch.tensor([[len(item["input_ids"])] for item in items])
    return padded | {"attention_mask": (torch.arange(longest)[None] < lengths).long()}


# --- the model ---


def train_tokenizer(texts: list[str], vocabulary: int):
    """Byte-level BPE; single digits, so that measurements are spelt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet,
                                  show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=END, padding_side="left",
                                   additional_special_tokens=list(SPECIAL[2:]))  # fmt: skip


def train(out: Path, args: argparse.Namespace) -> None:
    """Write weights and tokenizer to `out`; a run that was killed goes on at its last checkpoint."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

    set_seed(args.seed)
    reports = training_reports(round(1.4 * args.patients), args.seed, args.level)
    lines = [text for report in reports for text in report]
    names = [listed(sorted(entities(found))) for found in _READ(lines)]
    tokenizer = train_tokenizer(lines + names, args.vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=args.width, intermediate_size=2 * args.width,
        num_hidden_layers=args.layers, num_attention_heads=4,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    data = Texts(args.steps * args.batch, args.batch, reports, tokenizer, args.seed)
    options = TrainingArguments(
        output_dir=str(out / "trainer"), max_steps=args.steps, per_device_train_batch_size=args.batch, use_cpu=True,
        learning_rate=args.lr, lr_scheduler_type="cosine", warmup_steps=100, weight_decay=0.01, seed=args.seed,
        save_steps=200, save_total_limit=1, report_to="none", logging_steps=100, disable_tqdm=not shows_progress(),
        remove_unused_columns=False, adam_beta2=0.98, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = Trainer(model=model, args=options, train_dataset=data, data_collator=_padded)
    trainer.train(resume_from_checkpoint=any((out / "trainer").glob("checkpoint-*")))
    model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.rmtree(out / "trainer")


def describe(out: Path, command: str, args: argparse.Namespace) -> None:
    """README.md of the weights: the command that remakes them, and their hash."""
    weights = out / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    text = f"""# Report writer of the laptop tier

A {args.layers}-layer causal language model of width {args.width} (`transformers`, float16) with its own tokenizer:
entities in, FINDINGS and IMPRESSION out. Taught on simulated reports only (training hospital, seed {args.seed}, level
"{args.level}"); it has seen no real report and no image.

```bash
{command}
```

model.safetensors: {weights.stat().st_size:,} bytes, sha256 `{digest}`
"""
    (out / "README.md").write_text(text)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the weights")
    parser.add_argument("--patients", type=int, default=4000, help="of the training hospital, 1.4 reports each")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--level", default="middle", help="defects, here the long tail, of the training hospital")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=1024)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    train(args.out, args)
    shown = " ".join(f"--{k} {v}" for k, v in vars(args).items() if k != "out")
    describe(args.out, f"python -m synth_medvlp.train_writer synth_medvlp/weights/writer {shown}", args)


if __name__ == "__main__":
    main()
