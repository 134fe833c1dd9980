"""The small text-to-image model of the laptop tier, taught on image-report pairs (reference: S5; arm "own real set").

    python -m synth_medvlp.train_diffusion --out synth_medvlp/weights/image --patients 4000 --seed 11 --level middle

Images become principal components of their blocks (`blocks`). Two stages, each resumed from its own last checkpoint
under --work: the text encoder learns what words tell of images (`Saying`), which is cheap; then diffusion in the
latents, text encoder included (v-prediction, cosine schedule, 10 % of prompts dropped, averaged weights). What
comes out is a folder of a `StableDiffusionPipeline`, written anew at every checkpoint. Prompts are IMPRESSIONs, or
sentences of FINDINGS beside them, so that every finding can be asked for. Same arguments, threads and machine: same
bytes.
"""

import argparse
import copy
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from synth_medvlp.blocks import HALVINGS, BlockAutoencoder, PlacedUNet, as_pixels
from synth_medvlp.journal import shows_progress
from synth_medvlp.pairs import Pairs, read_pairs, write_pairs

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 77  # as CLIP's, so that truncation means the same
DROPPED = 0.1  # prompts, for classifier-free guidance
LATENTS = 32  # channels


def training_pairs(folder: Path, n_patients: int, seed: int, level: str, size: int) -> Pairs:
    """Frontal images of the simulated training hospital as it recorded them, defects included; made once."""
    from synth_medvlp.simulate import simulate_patient

    if (folder / "meta.json").is_file():
        return read_pairs(folder)
    images, rows = [], []
    for patient in range(n_patients):
        for cxr in simulate_patient("mimic-cxr-jpg", seed, patient, size, level):
            if cxr.view == "LATERAL":
                continue
            images.append(cxr.image)
            rows.append({"id": f"{patient}-{cxr.study}", "patient": str(patient), "study": str(cxr.study),
                         "view": cxr.view, "findings": cxr.report.findings, "impression": cxr.report.impression,
                         "source": "simulated"})  # fmt: skip
    made_from = {"hospital": "mimic-cxr-jpg", "patients": n_patients, "seed": seed, "level": level}
    return write_pairs(folder, np.stack(images), pd.DataFrame(rows), made_from)


# --- prompts ---


def train_tokenizer(texts: list[str], vocabulary: int):
    """Byte-level BPE in lower case with single digits, in CLIP's frame: start, text, end, padded with end."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[START, END], initial_alphabet=alphabet,
                                  show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END,
                                   model_max_length=MAX_TOKENS)  # fmt: skip


class Prompts:
    """Prompts of the pairs. Half are IMPRESSIONs; the others sentences of FINDINGS and IMPRESSION in any order, as many
    as fit: alone an IMPRESSION leaves out half of what is chronic, and every device."""

    def __init__(self, table: pd.DataFrame, tokenizer):
        self.impressions, self.findings = list(table.impression), [_sentences(text) for text in table.findings]
        self.tokenizer, self.known = tokenizer, {}

    def text(self, i: int, rng: np.random.Generator) -> str:
        impression = self.impressions[i]
        if impression and rng.random() < 0.5:
            return impression
        sentences = self.findings[i] + (_sentences(impression) if rng.random() < 0.5 else [])
        kept = [s for s in sentences if rng.random() < 0.8] or sentences or [impression]
        return " ".join(kept[j] for j in rng.permutation(len(kept)))

    def ids(self, text: str) -> torch.Tensor:
        """[MAX_TOKENS] int64."""
        if text not in self.known:
            frame = {"padding": "max_length", "truncation": True, "max_length": MAX_TOKENS}
            self.known[text] = np.array(self.tokenizer(text, **frame)["input_ids"], dtype=np.int16)
        return torch.from_numpy(self.known[text].astype(np.int64))


def _sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.])\s+(?:\d+\. )?|^\d+\. ", text) if s]


# --- stage 1: what a text says of an image ---


class Saying:
    """What the words of a report tell of its image, by ridge regression: groups of up to three words -> the image at
    16 x 16 pixels, its own mean and contrast taken out, in the `n` directions that words tell most about.

    Words explain a few per cent of an image's pixels; the rest is patient and film. Their sum over the whole set tells
    the text encoder in minutes what it would take hours to find in the noise.
    """

    def __init__(self, texts: Sequence[str], images: np.ndarray, n: int = 48, penalty: float = 300.0):
        from sklearn.feature_extraction.text import CountVectorizer

        self.counter = CountVectorizer(ngram_range=(1, 3), binary=True, min_df=max(2, len(texts) // 300))
        words = self.counter.fit_transform(texts).toarray().astype(np.float32)
        self.mean = words.mean(0)
        words = words - self.mean
        small = F.adaptive_avg_pool2d(as_pixels(images), 16).flatten(1)
        small = (small - small.mean(1, keepdim=True)) / (small.std(1, keepdim=True) + 0.05)
        small = (small - small.mean(0)).clamp(-2, 2).numpy()  # images with defects do not decide
        gram = words.T @ words + penalty * np.eye(words.shape[1], dtype=np.float32)
        weights = np.linalg.solve(gram, words.T @ small)
        told = words @ weights
        directions = np.linalg.eigh(told.T @ told)[1][:, ::-1][:, :n]
        spread = (told @ directions).std(0) + 1e-6
        self.weights = weights @ (directions / (spread * spread[0]) ** 0.5)  # the first directions count most

    def __call__(self, text: str) -> torch.Tensor:
        """float32 [n]."""
        words = self.counter.transform([text])
        return torch.from_numpy((words @ self.weights - self.mean @ self.weights)[0].astype(np.float32))


class Reader(nn.Module):
    """input_ids int [B, L], told float [B, n] -> loss of a linear reading of the text encoder's pooled states."""

    def __init__(self, text_encoder, n: int):
        super().__init__()
        width = text_encoder.config.hidden_size
        self.text_encoder, self.score, self.head = text_encoder, nn.Linear(width, 1), nn.Linear(width, n)

    def forward(self, input_ids, told):
        states = self.text_encoder(input_ids)[0]
        pooled = (self.score(states).softmax(1) * states).sum(1)
        return {"loss": F.mse_loss(self.head(pooled), told)}


class Texts(torch.utils.data.Dataset):
    """Item i: a prompt drawn by (seed, i), and what it tells."""

    def __init__(self, prompts: "Prompts", saying: Saying, n: int, seed: int):
        self.prompts, self.saying, self.n, self.seed = prompts, saying, n, seed

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng([self.seed, 1, i])
        text = self.prompts.text(int(rng.integers(len(self.prompts.impressions))), rng)
        return {"input_ids": self.prompts.ids(text), "told": self.saying(text)}


# --- stage 2: diffusion ---


class Denoiser(nn.Module):
    """UNet and text encoder, with their average `ema`, which is what is saved in the end.

    latents float [B, c, h, w] of unit variance, input_ids int [B, L] -> loss.
    """

    def __init__(self, unet, text_encoder, scheduler, decay: float = 0.998):
        from diffusers import DDPMScheduler

        super().__init__()
        self.net = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
        self.ema = copy.deepcopy(self.net).requires_grad_(False)
        self.scheduler, self.decay = DDPMScheduler.from_config(scheduler.config), decay

    def forward(self, latents, input_ids):
        noise = torch.randn_like(latents)
        # More often among the noisier levels, where it is decided what the image will show.
        share = torch.rand(len(latents), device=latents.device).sqrt()
        n_levels = self.scheduler.config.num_train_timesteps
        t = (share * n_levels).long().clamp_max(n_levels - 1)
        noisy = self.scheduler.add_noise(latents, noise, t)
        states = self.net["text_encoder"](input_ids)[0]
        made = self.net["unet"](noisy, t, states).sample
        error = (made - self.scheduler.get_velocity(latents, noise, t)).square().mean((1, 2, 3))
        # Films far from the usual ones, most of them defects, would else outweigh what texts speak of.
        weight = 1 / latents.square().mean((1, 2, 3)).clamp_min(1)
        return {"loss": (weight * error).mean()}

    @torch.no_grad()
    def average(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 1 - decay)


class Latents(torch.utils.data.Dataset):
    """Item i: a pair drawn by (seed, i), its prompt worded or dropped likewise."""

    def __init__(self, latents: torch.Tensor, prompts: Prompts, n: int, seed: int):
        self.latents, self.prompts, self.n, self.seed = latents, prompts, n, seed

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict:
        rng = np.random.default_rng([self.seed, 2, i])
        j = int(rng.integers(len(self.latents)))
        text = "" if rng.random() < DROPPED else self.prompts.text(j, rng)
        return {"latents": self.latents[j], "input_ids": self.prompts.ids(text)}


# --- networks and training ---


def networks(args: argparse.Namespace, tokenizer, size: int) -> dict:
    """The parts of a StableDiffusionPipeline by their names in it."""
    from diffusers import DPMSolverMultistepScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = PlacedUNet(
        sample_size=size // 2**HALVINGS, in_channels=LATENTS, out_channels=LATENTS, layers_per_block=1,
        block_out_channels=(args.width,), down_block_types=["CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D"], attention_head_dim=4, norm_num_groups=16,
        cross_attention_dim=args.text_width, resnet_time_scale_shift="scale_shift",
        addition_embed_type="text", addition_embed_type_num_heads=4,
    )  # fmt: skip
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=args.text_width, intermediate_size=4 * args.text_width,
        num_attention_heads=4, num_hidden_layers=args.text_layers, max_position_embeddings=MAX_TOKENS, **ids,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1
    )
    text_encoder = CLIPTextModel(text)
    text_encoder.get_input_embeddings().weight.data.normal_(0, 0.5)  # CLIP's 0.02 lets words drown in their places
    return {"unet": unet, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler}


def fit(model: nn.Module, data, folder: Path, args: argparse.Namespace, stage: dict, *callbacks) -> None:
    """Train with `Trainer` for stage["steps"], going on from the last checkpoint in `folder`."""
    from transformers import Trainer, TrainingArguments, set_seed
    from transformers.trainer_utils import get_last_checkpoint

    set_seed(args.seed)
    options = TrainingArguments(
        output_dir=str(folder), max_steps=stage["steps"], per_device_train_batch_size=stage["batch"],
        learning_rate=stage["lr"], lr_scheduler_type="cosine", warmup_steps=min(100, stage["steps"] // 10),
        weight_decay=0.01, adam_beta2=0.99, max_grad_norm=1.0, seed=args.seed,
        use_cpu=not torch.cuda.is_available(), save_steps=args.save_steps, save_total_limit=2, logging_steps=50,
        report_to="none", disable_tqdm=not shows_progress(), remove_unused_columns=False,
    )  # fmt: skip
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    trainer = Trainer(model=model, args=options, train_dataset=data, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=last)


def train(args: argparse.Namespace) -> Path:
    """Both stages; returns --out."""
    pairs = training_pairs(args.pairs or args.work / "pairs", args.patients, args.seed, args.level, args.size)
    torch.manual_seed(args.seed)
    images = np.asarray(pairs.images)
    tokenizer = train_tokenizer([*pairs.table.findings, *pairs.table.impression], args.vocabulary)
    parts = networks(args, tokenizer, pairs.meta["size"])
    parts["vae"] = vae = BlockAutoencoder.fit(images, LATENTS)
    latents = torch.cat([vae.encode(as_pixels(images[i : i + 512])) for i in range(0, len(images), 512)])
    prompts = Prompts(pairs.table, tokenizer)
    saying = Saying((pairs.table.findings + " " + pairs.table.impression).tolist(), images)
    stage = {"steps": args.text_steps, "batch": args.text_batch, "lr": args.lr}
    data = Texts(prompts, saying, args.text_steps * args.text_batch, args.seed)
    fit(Reader(parts["text_encoder"], saying.weights.shape[1]), data, args.work / "text", args, stage)
    denoiser = Denoiser(parts["unet"], parts["text_encoder"], parts["scheduler"])
    stage = {"steps": args.steps, "batch": args.batch, "lr": args.lr}
    data = Latents(latents, prompts, args.steps * args.batch, args.seed + 1)
    fit(denoiser, data, args.work / "diffusion", args, stage, _averaging(denoiser, parts, args))
    export(denoiser, parts, args)
    return args.out


def _averaging(denoiser: Denoiser, parts: dict, args: argparse.Namespace):
    from transformers import TrainerCallback

    class Averaging(TrainerCallback):
        def on_step_end(self, arguments, state, control, **kwargs):
            denoiser.average(state.global_step)

        def on_save(self, arguments, state, control, **kwargs):
            export(denoiser, parts, args)

    return Averaging()


def export(denoiser: Denoiser, parts: dict, args: argparse.Namespace) -> None:
    """Write the averaged networks as a StableDiffusionPipeline in float16, and README.md."""
    from diffusers import StableDiffusionPipeline

    trained = {name: copy.deepcopy(denoiser.ema[name]) for name in ("unet", "text_encoder")}
    pipeline = StableDiffusionPipeline(
        **(parts | trained | {"vae": copy.deepcopy(parts["vae"])}), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(dtype=torch.float16).save_pretrained(args.out)
    describe(args)


def describe(args: argparse.Namespace) -> None:
    """README.md of the weights: the command that remakes them, and their hashes."""
    files = sorted(p for p in args.out.rglob("*") if p.is_file() and p.name != "README.md")
    rows = [f"| {p.relative_to(args.out).as_posix()} | {p.stat().st_size:,} | "
            f"`{hashlib.sha256(p.read_bytes()).hexdigest()}` |" for p in files]  # fmt: skip
    options = {k: v for k, v in vars(args).items() if k not in ("out", "work", "pairs", "save_steps")}
    words = " ".join(f"--{k.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, list) else v}"
                     for k, v in options.items())  # fmt: skip
    n_bytes = sum(p.stat().st_size for p in files)
    text = f"""# Image generator of the laptop tier

A `StableDiffusionPipeline` of {args.size} x {args.size} px grey images, float16, {n_bytes:,} bytes: principal
components of blocks of pixels (`synth_medvlp/blocks.py`), a UNet on them and a CLIP text encoder of {MAX_TOKENS}
tokens, trained from scratch on simulated pairs (training hospital, {args.patients} patients, seed {args.seed}, level
"{args.level}"). It has seen no real radiograph.

```bash
python -m synth_medvlp.train_diffusion --out synth_medvlp/weights/image {words}
```

| file | bytes | sha256 |
| --- | --- | --- |
"""
    (args.out / "README.md").write_text(text + "\n".join(rows) + "\n")


def main(argv=None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--work", type=Path, default=Path("runs/synth_medvlp/image-generator"), help="checkpoints")
    parser.add_argument("--pairs", type=Path, help="folder of pairs; simulated into WORK/pairs where not given")
    parser.add_argument("--patients", type=int, default=4000, help="of the simulated hospital, 1.4 images each")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--level", default="middle", help="defects of the simulated hospital")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--text-steps", type=int, default=1000)
    parser.add_argument("--text-batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=96, help="channels of the UNet")
    parser.add_argument("--text-width", type=int, default=96)
    parser.add_argument("--text-layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=768)
    parser.add_argument("--save-steps", type=int, default=250)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    kept = {k: str(v) for k, v in vars(args).items() if k not in ("out", "work", "pairs", "save_steps")}
    _same_run(args.work / "arguments.json", kept)
    return train(args)


def _same_run(file: Path, kept: dict) -> None:
    """Checkpoints of other arguments are not gone on from."""
    if file.is_file() and json.loads(file.read_text()) != kept:
        raise ValueError(f"{file.parent} holds checkpoints of other arguments; give another --work or remove it")
    file.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
