"""The paper's experiments in order -> predictions -> scorecard -> REPRODUCTION.md: `make reproduce-meit`.

Every run is `meit.train` then `meit.evaluate` with a few keys of the tier's YAML replaced. Finished runs are not run
again, so a killed call goes on where it stopped. What is scored are the predictions under `results/`, and scoring is a
step of its own (`--rescore`), so the committed numbers can be computed again in a minute.
"""

import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from meit import results
from meit.config import Config, data_root, dump, parse, parser
from meit.prep import prepare
from shared.ecg.decode import init_worker
from shared.metrics.scorecard import load_claims

HERE = Path(__file__).parent
FAMILIES = ("llama", "mistral", "gpt2", "gpt_neo", "gpt_neox", "gptj", "bloom", "opt")
PTB_XL = {"data.dataset": "ptb-xl", "data.split": "official_folds"}


@dataclass(frozen=True)
class Experiment:
    """One row of runs, one per seed. `after`: experiments whose checkpoints it starts from or is evaluated with."""

    overrides: dict = field(default_factory=dict)  # config keys; {x} in a value = the checkpoint of x, same seed
    inputs: tuple[str, ...] = ("ecg",)
    family: str = "llama"  # backbone
    after: tuple[str, ...] = ()
    train: bool = True
    score: bool = True
    folds: int = 0  # out-of-fold over the official folds: one run per fold, predictions pooled


CONTROLS = ("ecg", "zero", "shuffle", "majority", "nearest")
NOISE = ("noise-0.05", "noise-0.10", "noise-0.15", "noise-0.20", "snr-20", "snr-10", "snr-5", "snr-0")
EXPERIMENTS = {
    # the headline: fusion (paper Table 5), report quality and what the model reads
    "meit": Experiment(inputs=CONTROLS),
    "llava": Experiment({"model.fusion": "llava"}, ("ecg", "shuffle")),
    "flamingo": Experiment({"model.fusion": "flamingo"}, ("ecg", "shuffle")),
    "no-ecg": Experiment({"model.fusion": "none"}),
    # the real records: pre-train on simulated PTB-XL, tune on the real folds, score out of fold
    "ptb-xl": Experiment(PTB_XL, ("ecg", "shuffle", "majority")),
    "real-ptb-xl": Experiment(
        {"data.dataset": "ptb-xl", "data.simulate": None, "train.init": "{ptb-xl}"},
        CONTROLS,
        after=("ptb-xl",),
        folds=10,
    ),
    # secondary: instruction tuning, zero-shot transfer, perturbation, more ECG tokens, the nine families
    "plain": Experiment({"data.instructions": "none"}),
    "zero-shot": Experiment({**PTB_XL, "eval.checkpoint": "{meit}"}, ("ecg", "shuffle"), after=("meit",), train=False),
    "zero-shot-plain": Experiment(
        {**PTB_XL, "data.instructions": "none", "eval.checkpoint": "{plain}"}, after=("plain",), train=False
    ),
    "noise": Experiment({"eval.checkpoint": "{meit}"}, ("ecg", *NOISE), after=("meit",), train=False),
    "tokens-8": Experiment({"model.n_ecg_tokens": 8}),
    "random-encoder": Experiment({"model.encoder": None}, ("ecg", "shuffle")),
    "llava-16": Experiment({"model.fusion": "llava", "model.n_ecg_tokens": 16}),
    "flamingo-16": Experiment({"model.fusion": "flamingo", "model.n_ecg_tokens": 16}),
    "as-published": Experiment({"data.split": "as_published", "data.instructions": "fixed"}, ("ecg", "shuffle")),
    **{f"family-{f}": Experiment(inputs=("ecg", "shuffle"), family=f) for f in FAMILIES if f != "llama"},
    "family-llama-mha": Experiment(inputs=("ecg", "shuffle"), family="llama-mha"),
    "size-small": Experiment(inputs=("ecg", "shuffle"), family="llama-small"),
    "size-large": Experiment(inputs=("ecg", "shuffle"), family="llama-large"),
    # only where the tier's `reproduce.backbones` names these models
    **{f"llama2-{size}": Experiment(family=f"llama2-{size}") for size in ("7b", "13b", "70b")},
    **{f"ptb-xl-{f}": Experiment(PTB_XL, family=f) for f in ("llama2", "llama3")},
}


def experiments_for(cfg: Config, claims: list[dict], claim: str | None, everything: bool) -> list[str]:
    """Names of the experiments to run, in the order of EXPERIMENTS, with all that they need."""
    if claim is not None:
        needs = {c["id"]: claim_experiments(c) for c in claims} | {name: {name} for name in EXPERIMENTS}
        here = {n for n in EXPERIMENTS if EXPERIMENTS[n].family in cfg.reproduce.backbones}
        if claim not in needs or not needs[claim] <= here:
            known = ", ".join(c for c in needs if needs[c] <= here)
            raise SystemExit(f"--claim {claim}: no claim or experiment that can be run at this tier; known: {known}")
        wanted = set(needs[claim])
    else:
        wanted = set(EXPERIMENTS if everything else cfg.reproduce.headline)
    wanted |= {a for name in wanted for a in EXPERIMENTS[name].after}
    if not cfg.data.simulate:  # `ptb-xl` is the real release here, and its training folds would be scored
        wanted -= {"real-ptb-xl"}
    if not (data_root() / "ptb-xl").is_dir() and "real-ptb-xl" in wanted:
        print(f"real-ptb-xl: left out, {data_root() / 'ptb-xl'} is missing (`make data-ptb-xl`, or set DATA_ROOT)")
        wanted -= {"real-ptb-xl"}
    missing = {EXPERIMENTS[n].family for n in wanted} - set(cfg.reproduce.backbones)
    return [name for name in EXPERIMENTS if name in wanted and EXPERIMENTS[name].family not in missing]


def claim_experiments(claim: dict) -> set[str]:
    """The runs that a claim compares; `meit@shuffle` is the run meit given another kind of input."""
    return {side.split("@")[0] for pair in results.claim_pairs(claim) for side in pair}


def experiment_named(cfg: Config, name: str) -> Experiment:
    """A row of EXPERIMENTS, or what such a row starts from: `lm-<text>-<family>`, `encoder-<text>`."""
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    kind, text, *family = name.split("-", 2)
    keys = dict(PTB_XL) if text == "ptb" else {}
    if kind == "encoder":
        return Experiment({**keys, "model.fusion": "words", "data.instructions": "none"}, score=False)
    keys |= {"model.fusion": "none", "model.lora_r": 0, "data.instructions": "mixed"}
    return Experiment(keys, family=family[0], score=False)


def run_arguments(cfg: Config, name: str, seed: int, fold: int = 0) -> list[str]:
    """The command line of one run: this tier's config as it was resolved, then the experiment's keys, then the tier's
    own keys for that experiment."""
    experiment = experiment_named(cfg, name)
    keys = {"experiment": f"{name}/fold-{fold}" if fold else name, "seed": seed}
    keys |= {"eval.inputs": list(experiment.inputs), "model.backbone": cfg.reproduce.backbones[experiment.family]}
    keys |= {key: str(run_dir(cfg, run, 0) / "checkpoint") for key, run in pretrained(cfg, name).items()}
    keys |= {"eval.metrics": ["bleu", "rouge", "cider_d"]}  # METEOR's start-up is paid once, when all runs are scored
    keys |= experiment.overrides
    if fold:
        keys["data.split"] = f"fold-{fold}"
    for prefix, extra in cfg.reproduce.overrides.items():
        if name.startswith(prefix):
            keys |= extra
    paths = {e: run_dir(cfg, e, seed) / "checkpoint" for e in experiment.after}
    values = {k: v.format(**paths) if isinstance(v, str) else json.dumps(v) for k, v in keys.items()}
    return [f"--config={tier_file(cfg)}", *(f"--{k}={v}" for k, v in values.items())]


def tier_file(cfg: Config) -> Path:
    """The tier's config with what the command line replaced; named by its content, so never half read or rewritten."""
    text = dump(cfg)
    file = Path(cfg.runs) / "meit" / cfg.tier / f"tier-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.part")
        partial.write_text(text)
        partial.rename(file)
    return file


def run_dir(cfg: Config, name: str, seed: int) -> Path:
    return Path(cfg.runs) / "meit" / cfg.tier / name / f"seed{seed}"


def pretrained(cfg: Config, name: str) -> dict[str, str]:
    """Config key -> the run whose checkpoint it names: small tiers pre-train their own language model and encoder."""
    experiment = experiment_named(cfg, name)
    if not (experiment.train and experiment.score) or experiment.after:
        return {}
    text = "ptb" if experiment.overrides.get("data.dataset") == "ptb-xl" else "mimic"
    runs = {}
    if cfg.reproduce.backbones[experiment.family].startswith("scratch:"):
        runs["model.backbone"] = f"lm-{text}-{experiment.family}"
    if cfg.reproduce.pretrain_encoder and experiment.overrides.get("model.fusion") != "none":
        runs["model.encoder"] = f"encoder-{text}"
    return {key: run for key, run in runs.items() if key not in experiment.overrides}


def one_run(args: list[str], train: bool, score: bool) -> None:
    """Train and evaluate in this process."""
    from meit import evaluate
    from meit import train as training

    if train:
        training.main(args)
    if score:
        evaluate.main(args)


def launch(cfg: Config, args: list[str], train: bool, score: bool) -> None:
    """The same in `reproduce.processes` processes, one per GPU."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={cfg.reproduce.processes}",
    ]
    for module, wanted in (("meit.train", train), ("meit.evaluate", score)):
        if wanted:
            subprocess.run([*torchrun, "-m", module, *args], check=True)


def waves(cfg: Config, names: list[str]) -> list[list[tuple[str, int, int]]]:
    """Runs (experiment, seed, fold) in waves: pre-training, then models, then what starts from those."""
    found = [[(run, 0, 0) for run in dict.fromkeys(run for n in names for run in pretrained(cfg, n).values())]]
    for late in (False, True):
        group = [n for n in names if bool(EXPERIMENTS[n].after) == late]
        folds = {n: range(1, EXPERIMENTS[n].folds + 1) if EXPERIMENTS[n].folds else (0,) for n in group}
        found.append([(n, s, f) for s in cfg.reproduce.seeds for n in group for f in folds[n]])
    return [wave for wave in found if wave]


def run_all(cfg: Config, names: list[str]) -> None:
    """All runs of all waves, `reproduce.jobs` at a time; the first error ends the call."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // cfg.reproduce.jobs))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    plan = waves(cfg, names)
    prepared = set()
    context = multiprocessing.get_context("spawn")
    with (
        Progress(console=Console(stderr=True), disable=not os.isatty(2)) as progress,
        ProcessPoolExecutor(cfg.reproduce.jobs, mp_context=context, initializer=init_worker) as pool,
    ):
        bar = progress.add_task(f"meit, {cfg.tier}", total=sum(map(len, plan)))
        for wave in plan:
            futures = {}
            for name, seed, fold in wave:
                args = run_arguments(cfg, name, seed, fold)
                data = parse(args).data
                if repr(data) not in prepared:  # once, before the workers start
                    prepare(data)
                    prepared.add(repr(data))
                experiment = experiment_named(cfg, name)
                work = (launch, cfg, args) if cfg.reproduce.processes else (one_run, args)
                label = f"{name} seed {seed}" + (f" fold {fold}" if fold else "")
                futures[pool.submit(*work, experiment.train, experiment.score)] = label
            try:
                for future in as_completed(futures):
                    if future.exception():
                        raise RuntimeError(f"{futures[future]} failed") from future.exception()
                    progress.advance(bar)
                    print(f"done: {futures[future]}", flush=True)
            except BaseException:  # Ctrl-C too: what waits is dropped, what runs is ended; finished runs stay
                print("stopped; the same command goes on from here", file=sys.stderr, flush=True)
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in multiprocessing.active_children():
                    worker.terminate()
                raise


def main(args: list[str] | None = None) -> dict:
    """Run what is asked for, collect the predictions under `results/`, score; returns the scorecard."""
    command = parser()
    command.add_argument("--all", action="store_true", help="also every ablation and secondary table")
    command.add_argument("--claim", type=str, default=None, help="only what this claim needs")
    command.add_argument("--rescore", action="store_true", help="only score the predictions under results/ again")
    args = sys.argv[1:] if args is None else args
    values = vars(command.instantiate(command.parse_args(args)))
    everything, claim, rescore = (values.pop(k) for k in ("all", "claim", "rescore"))
    values.pop("config")
    cfg = Config(**values)
    claims = load_claims(HERE / "claims.yaml")
    if not rescore:
        names = experiments_for(cfg, claims, claim, everything)
        results.check(cfg)
        run_all(cfg, names)
        results.collect(cfg, names, peak_rss_mb(cfg))
    return results.score(cfg, claims)


def peak_rss_mb(cfg: Config) -> int:
    """Upper bound of the memory in use: the largest worker times the number of workers, plus this process."""
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (worker * cfg.reproduce.jobs + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) // 1024


if __name__ == "__main__":
    main()
