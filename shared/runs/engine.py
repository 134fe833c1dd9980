"""The paper's experiments in order -> predictions -> scorecard -> REPRODUCTION.md: `make reproduce-<paper>`.

Every run is `<paper>.train` then `<paper>.evaluate` with a few keys of the tier's YAML replaced. Finished runs are not
run again, so a killed call goes on where it stopped. What is scored are the predictions under `results/`, and scoring
is a step of its own (`--rescore`), so the committed numbers can be computed again in seconds.
"""

import ctypes
import importlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from shared.ecg.decode import init_worker
from shared.locks import write_whole
from shared.metrics.scorecard import load_claims
from shared.runs import evidence
from shared.runs.config import RunConfig, check_writable, dump, hash_of, parse_as, parser
from shared.runs.paper import Paper


def experiments_for(paper: Paper, cfg: RunConfig, claims: list[dict], claim: str | None, everything: bool) -> list[str]:
    """Names of the experiments to run, in the paper's order, with all that they need."""
    blocked = {name: paper.cannot_run(cfg, name) for name in paper.experiments}
    if claim is not None:
        needs = {c["id"]: claim_experiments(paper, c) for c in claims} | {name: {name} for name in paper.experiments}
        if claim not in needs or any(blocked.get(n, n) for n in needs[claim]):
            known = ", ".join(c for c in needs if not any(blocked.get(n, n) for n in needs[c]))
            raise SystemExit(f"--claim {claim}: no claim or experiment that can be run at this tier; known: {known}")
        wanted = set(needs[claim])
    else:
        wanted = set(paper.experiments if everything else cfg.reproduce.headline)
        if unknown := sorted(wanted - paper.experiments.keys()):
            raise SystemExit(f"reproduce.headline: {', '.join(unknown)} is no experiment of {paper.name}")
    wanted |= {a for name in wanted for a in paper.experiments[name].after}
    for name in sorted(wanted):
        if blocked[name]:
            print(f"{name}: left out, {blocked[name]}")
    return [name for name in paper.experiments if name in wanted and not blocked[name]]


def claim_experiments(paper: Paper, claim: dict) -> set[str]:
    """The runs that a claim compares; `meit@shuffle` is the run meit given another kind of input."""
    sides = {side.split("@")[0] for pair in evidence.claim_pairs(claim) for side in pair}
    return {run for side in sides for run in paper.stands_for(side)}


def run_arguments(paper: Paper, cfg: RunConfig, name: str, seed: int, fold: int = 0) -> list[str]:
    """The command line of one run: this tier's config as it was resolved, then the experiment's keys, then the tier's
    own keys for that experiment."""
    experiment = paper.experiment(cfg, name)
    keys = {"experiment": _folder(name, fold), "seed": seed}
    if experiment.inputs:
        keys["eval.inputs"] = list(experiment.inputs)
    keys |= paper.keys(cfg, name)
    keys |= {key: str(cfg.dir_of(run, 0) / "checkpoint") for key, run in paper.starts_from(cfg, name).items()}
    keys |= experiment.overrides
    if fold:
        keys["data.split"] = f"fold-{fold}"
    keys |= cfg.reproduce.keys_of(name)
    paths = {e: cfg.dir_of(e, seed) / "checkpoint" for e in experiment.after}
    values = {k: v.format(**paths) if isinstance(v, str) else json.dumps(v) for k, v in keys.items()}
    return [f"--config={tier_file(cfg)}", *(f"--{k}={v}" for k, v in values.items())]


def tier_file(cfg: RunConfig) -> Path:
    """The tier's config with what the command line replaced; named by its content, so never half read or rewritten."""
    text = dump(cfg)
    file = cfg.tier_dir / f"tier-{hash_of(text)[:8]}.yaml"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)
    return file


def _folder(name: str, fold: int) -> str:
    return f"{name}/fold-{fold}" if fold else name


def one_run(paper: str, args: list[str], train: bool, score: bool) -> None:
    """Train and evaluate in this process."""
    for module, wanted in (("train", train), ("evaluate", score)):
        if wanted:
            importlib.import_module(f"{paper}.{module}").main(args)


def launch(paper: str, args: list[str], train: bool, score: bool, processes: int) -> None:
    """The same in several processes, one per GPU."""
    for module, wanted in (("train", train), ("evaluate", score)):
        if wanted:
            in_processes(f"{paper}.{module}", args, processes)


def in_processes(module: str, args: list[str], n: int) -> None:
    """`python -m module args` by n processes; raises CalledProcessError where one fails, the others are ended then."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
    subprocess.run([*torchrun, "-m", module, *args], check=True, preexec_fn=_end_with_parent)


def _end_with_parent() -> None:
    """Linux tells this process, torchrun, when its parent was killed; it ends its own processes then. Otherwise they
    would write on beside those of the next call."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


Run = tuple[str, int, int]  # experiment, seed, fold


def planned(paper: Paper, cfg: RunConfig, names: list[str], seeds: list[int]) -> dict[Run, set[Run]]:
    """Every run, with the runs whose checkpoints it needs.

    All seeds of an experiment follow each other: they work while the data of the next experiment are made.
    """

    def runs(name: str, seed: int) -> list[Run]:
        n_folds = paper.experiments[name].folds
        return [(name, seed, fold) for fold in (range(1, n_folds + 1) if n_folds else (0,))]

    once = dict.fromkeys(run for n in names for run in paper.starts_from(cfg, n).values())
    plan: dict[Run, set[Run]] = {(run, 0, 0): set() for run in once}
    for name in names:
        for seed in seeds:
            needs = {(run, 0, 0) for run in paper.starts_from(cfg, name).values()}
            needs.update(run for before in paper.experiments[name].after for run in runs(before, seed))
            plan |= {run: set(needs) for run in runs(name, seed)}
    return {run: needs & plan.keys() for run, needs in plan.items()}


def run_all(paper: Paper, cfg: RunConfig, names: list[str], seeds: list[int]) -> None:
    """All runs, `reproduce.jobs` at a time, each when what it needs is there; the first error ends the call."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // cfg.reproduce.jobs))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # glibc gives the pages of large tensors back after each use, and taking them again takes time in every step.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**25))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))
    waiting = planned(paper, cfg, names, seeds)
    prepared: set[str] = set()
    at_work: dict[Future, Run] = {}
    done: set[Run] = set()
    context = multiprocessing.get_context("spawn")
    with (
        Progress(console=Console(stderr=True), disable=not os.isatty(2)) as progress,
        ProcessPoolExecutor(cfg.reproduce.jobs, mp_context=context, initializer=init_worker) as pool,
    ):
        bar = progress.add_task(f"{paper.name}, {cfg.tier}", total=len(waiting))
        try:
            while waiting or at_work:
                ready = next((run for run, needs in waiting.items() if needs <= done), None)
                if ready:
                    del waiting[ready]
                    at_work[_submit(pool, paper, cfg, ready, prepared)] = ready
                for future in wait(at_work, 0 if ready else None, FIRST_COMPLETED).done:
                    run = at_work.pop(future)
                    if error := future.exception():
                        raise RuntimeError(f"{_label(run)} failed: {error}") from error
                    done.add(run)
                    progress.advance(bar)
                    print(f"done: {_label(run)}", flush=True)
        except BaseException:  # Ctrl-C too: what waits is dropped, what runs is ended; finished runs stay
            print("stopped; the same command goes on from here", file=sys.stderr, flush=True)
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _submit(pool: ProcessPoolExecutor, paper: Paper, cfg: RunConfig, run: Run, prepared: set[str]) -> Future:
    """Start one run, once its data are there: made here, before the workers that share them start."""
    args = run_arguments(paper, cfg, *run)
    config = parse_as(paper.config, args)
    if paper.same_data(config) not in prepared:
        paper.prepare(config)
        prepared.add(paper.same_data(config))
    experiment = paper.experiment(cfg, run[0])
    work = (paper.name, args, experiment.train, experiment.score)
    n = cfg.reproduce.processes
    return pool.submit(launch, *work, n) if n else pool.submit(one_run, *work)


def _label(run: Run) -> str:
    name, seed, fold = run
    return f"{name} seed {seed}" + (f" fold {fold}" if fold else "")


def main(paper: Paper, args: list[str] | None = None) -> dict:
    """Run what is asked for, collect the predictions under `results/`, score; returns the scorecard."""
    command = parser(paper.config)
    command.add_argument("--all", action="store_true", help="also every ablation and secondary table")
    command.add_argument("--claim", type=str, default=None, help="only what this claim (or experiment) needs")
    command.add_argument("--rescore", action="store_true", help="only score the predictions under results/ again")
    args = sys.argv[1:] if args is None else args
    values = vars(command.instantiate(command.parse_args(args)))
    if not values["config"]:
        command.error(f"--config: name the file of a tier, such as {paper.name}/configs/laptop.yaml")
    everything, claim, rescore = (values.pop(k) for k in ("all", "claim", "rescore"))
    tier = parse_as(paper.config, [f"--config={file}" for file in values.pop("config")])
    cfg = paper.config(**values)
    claims = load_claims(paper.folder / "claims.yaml")
    started, timed = time.monotonic(), False
    if not rescore:
        names = experiments_for(paper, cfg, claims, claim, everything)
        seeds = cfg.reproduce.seeds + (cfg.reproduce.more_seeds if everything or claim else [])
        evidence.check(cfg)
        runs = planned(paper, cfg, names, seeds)
        from_nothing = not any(cfg.dir_of(_folder(name, fold), seed).exists() for name, seed, fold in runs)
        check_writable("runs", cfg.runs)
        check_writable("results", cfg.results)
        run_all(paper, cfg, names, seeds)
        own = (cfg.tier_hash(), cfg.reproduce) == (tier.tier_hash(), tier.reproduce)
        timed = from_nothing and own and claim is None and not everything
        evidence.collect(paper, cfg, names, seeds, peak_rss_mb(cfg))
    return evidence.score(paper, cfg, claims, started if timed else None)


def peak_rss_mb(cfg: RunConfig) -> int:
    """Upper bound of the memory of runs: the largest worker times the number of workers, plus this process."""
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (worker * cfg.reproduce.jobs + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) // 1024
