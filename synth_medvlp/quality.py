"""The laptop tier's screener: a small network taught in the run on annotated images (reference: A2, A3).

The annotated images are of the simulated training hospital, other patients than the training set's; who annotates them
knows their defect and answers the six questions by `NO_TO`. Its last features, centred and normalised, stand in for
RAD-DINO's.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from synth_medvlp.screening import NO, QUESTIONS, YES, SampleConfig

# Which defect of the simulator means NO to which question; a mismatched report is no defect of the image.
NO_TO = {
    "non_frontal": ("frontal",),
    "wrong_body_part": ("is_cxr", "frontal", "fidelity"),
    "unreadable:too_dark": ("quality", "fidelity"),
    "unreadable:too_bright": ("quality", "fidelity"),
    "unreadable:noisy": ("quality", "clean", "fidelity"),
    "unreadable:blurred": ("quality", "fidelity"),
    "unreadable:cropped": ("quality", "clean", "fidelity"),
    "unreadable:turned": ("clean",),
    "unreadable:blank": tuple(QUESTIONS),
    "mismatched_report": (),
    "": (),
}
_BATCH = 512  # at inference


def annotate(defect: str, view: str = "PA") -> list[int]:
    """Answers of one image, int [6]. defect: `simulate.Cxr.defect`; KeyError where it is unknown."""
    no = set(NO_TO[defect] if defect in NO_TO else NO_TO[defect.partition(":")[0]])
    no |= {"frontal"} if view == "LATERAL" else set()
    return [NO if name in no else YES for name in QUESTIONS]


def annotated_sample(cfg: SampleConfig, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [n, size, size], answers int8 [n, 6]) of the simulated hospital, lateral images included."""
    from synth_medvlp.simulate import simulate

    made = simulate("mimic-cxr-jpg", cfg.patients, cfg.seed, size, cfg.level)
    return np.stack([c.image for c in made]), np.array([annotate(c.defect, c.view) for c in made], np.int8)


class QualityNet(nn.Module):
    """uint8 [b, s, s] -> (logits [b, 6], features [b, 2 * width])."""

    def __init__(self, width: int = 64):
        super().__init__()
        channels, layers = (1, width // 4, width // 2, width, width), []
        for i, (a, b) in enumerate(pairwise(channels)):
            stride = 2 if i < 3 else 1
            layers += [nn.Conv2d(a, b, 3, stride, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(2 * width, len(QUESTIONS))
        self.register_buffer("centre", torch.zeros(2 * width))

    def forward(self, images: torch.Tensor):
        maps = self.body(images[:, None].float() / 127.5 - 1)
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
        return self.head(pooled), pooled


class Classifier:
    """A taught `QualityNet` as a `screening.Screener`."""

    def __init__(self, net: QualityNet, told: dict):
        self.net, self.told, self.counts = net.eval(), told, {}
        weights = b"".join(t.numpy().tobytes() for t in net.state_dict().values())
        self.identity = {"backend": "classifier", "weights": sha256(weights).hexdigest()[:16]}

    def answers(self, images: np.ndarray) -> np.ndarray:
        """int8 [n, 6]."""
        return np.where(self._over(images, lambda out: out[0]) > 0, YES, NO).astype(np.int8)

    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 [n, 2 * width]; centred, or all images would look alike."""
        return self._over(images, lambda out: nn.functional.normalize(out[1] - self.net.centre, dim=1))

    @torch.inference_mode()
    def _over(self, images: np.ndarray, take: Callable) -> np.ndarray:
        parts = [torch.from_numpy(np.array(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)]
        return torch.cat([take(self.net(part)) for part in parts]).numpy()


def teach(images: np.ndarray, answers: np.ndarray, epochs: int = 20, seed: int = 0) -> Classifier:
    """A classifier of uint8 [n, s, s] images and their answers int8 [n, 6]; a fifth is held out and measured:
    told = {"images", "held_out", "accuracy": per question, "no_rate": per question}."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = QualityNet()
        order = np.random.default_rng(seed).permutation(len(images))
        held_out, rest = order[: len(order) // 5], order[len(order) // 5 :]
        x, y = torch.from_numpy(np.array(images)), torch.from_numpy(np.array(answers)).float()
        _optimise(net, x[rest], y[rest], epochs)
    net.eval()
    with torch.inference_mode():
        net.centre.copy_(torch.cat([net(part)[1] for part in x[rest].split(_BATCH)]).mean(0))
    classifier = Classifier(net, {})
    right = classifier.answers(images[held_out]) == answers[held_out]
    rates = {"accuracy": right.mean(axis=0), "no_rate": (answers[held_out] == NO).mean(axis=0)}
    classifier.told = {"images": len(rest), "held_out": len(held_out)} | {
        key: dict(zip(QUESTIONS, values.tolist(), strict=True)) for key, values in rates.items()
    }
    return classifier


def _optimise(net: QualityNet, x: torch.Tensor, y: torch.Tensor, epochs: int, batch: int = 64) -> None:
    steps = epochs * -(-len(x) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for items in torch.randperm(len(x)).split(batch):
            loss = nn.functional.binary_cross_entropy_with_logits(net(x[items])[0], y[items])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def taught(cfg: SampleConfig, size: int, folder: Path | None = None) -> Classifier:
    """The classifier of a sample; kept in `folder` under a name of its settings, and read back from there."""
    from safetensors.torch import load_file, save_file

    key = sha256(json.dumps([asdict(cfg), size, NO_TO]).encode()).hexdigest()[:12]
    path = folder / f"quality-{key}.safetensors" if folder else None
    if path and path.exists() and path.with_suffix(".json").exists():
        net = QualityNet()
        net.load_state_dict(load_file(path))
        return Classifier(net, json.loads(path.with_suffix(".json").read_text()))
    classifier = teach(*annotated_sample(cfg, size), cfg.epochs, cfg.seed)
    if path:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(classifier.net.state_dict(), path)
        path.with_suffix(".json").write_text(json.dumps(classifier.told, indent=1))
    return classifier
