"""edgeprune's `standard` against pyautoattack and torchattacks' AutoAttack: same network, same images, one run.

    python benchmarks/attack.py --model model.onnx --data test.npz --eps 8/255 [--norm l2] [--samples 100]
        [--module package.module:function] [--threads 1 [--processes]] [--seed 0] [--json attack.json]

Ours attacks the ONNX file: verdicts from ONNX Runtime, gradients from the file's twin. The others attack a torch module
that takes pixels: the one that the function of `--module` returns, else the twin itself. Their adversarials are judged
by that module, as they judge them. Reported: clean and robust accuracy, agreement image by image with pyautoattack, how
many images fell to one of both alone (and whether ours fool the torch module, too), wall and processor seconds. A
package that is not installed is left out and named: `pip install pyautoattack`. torchattacks' AutoAttack runs 10-step
parts, so what it calls robust is an overestimate; it is here to show by how much.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune import protocols, spreading
from edgeprune.config import AttackConfig
from edgeprune.data import open_split
from edgeprune.files import sha256_of
from edgeprune.robustness import evaluate
from edgeprune.robustness.evaluate import attack_subset
from edgeprune.robustness.norms import distances
from edgeprune.robustness.second_look import EPSILON_SLACK
from edgeprune.robustness.twin import gradients_of, twin_of
from edgeprune.robustness.verdicts import predictions
from edgeprune.single import open_file
from edgeprune.types import AttackBudget, InputForm, Preprocessing, Victim

_WAYS = (("fell_but_stood", ""), ("stood_but_fell", ""), ("fell_but_stood", "_held"))
NORMS = {"linf": "Linf", "l2": "L2"}


class Bench:
    """One file, its images, and the module that the others attack."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.norm, self.epsilon, self.seed = arguments.norm, float(Fraction(arguments.eps)), arguments.seed
        # Ours share the threads: one each for as many processes, else all for the runtime and torch.
        self.processes = arguments.threads if arguments.processes else 1
        _, session = open_file(arguments.model, 1 if self.processes > 1 else arguments.threads)
        twin = twin_of(arguments.model)
        form = InputForm(twin.layout.shape, Preprocessing(), tuple(map(str, range(twin.classes))))
        split = attack_subset(open_split(arguments.data, "test", form), arguments.samples, arguments.seed)
        pixels = np.array(split.source.read(split.ids), np.float32)
        self.images, self.labels = torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(split.labels())
        self.split, self.eps, self.model = split, arguments.eps, arguments.model
        self.source = source = gradients_of(twin, arguments.model, session, pixels[:16], Preprocessing())
        self.victim = Victim(source.session.logits, source.module, (0.0, 1.0), source.pull, source.look)
        self.module = made(arguments.module) if arguments.module else source.module
        self.classes = twin.classes
        self.held = torch.zeros(len(self.labels), dtype=torch.bool)

    def ours(self) -> Tensor:
        """Bool (N,), wrong under attack in ONNX Runtime: clean mistakes count."""
        if self.processes > 1:
            return self._shared()
        attack: protocols.Attack = protocols.find("attack", "standard")
        budget = AttackBudget(self.norm, self.epsilon, 100, 1, self.seed)
        found = attack(self.victim, self.images, self.labels, budget, progress=lambda _text, _share: None)
        self.held = self._wrong(found.adversarials)
        return found.fell

    def _shared(self) -> Tensor:
        config = AttackConfig(attack="standard", norm=self.norm, eps=self.eps, processes=self.processes)
        threat = evaluate.threat_model(config, (0.0, 1.0), self.split, self.seed)
        made = {"sha256": sha256_of(self.model), "progress": lambda _text, _share: None}
        found = spreading.attack(self.source, self.split, threat, config, **made)
        self.held = self._wrong(torch.from_numpy(found.adversarials))
        return torch.from_numpy(~found.robust_right)

    def pyautoattack(self) -> Tensor:
        """The public code, standard version."""
        import pyautoattack

        logging.getLogger("auto-attack").setLevel(logging.ERROR)
        attack = pyautoattack.AutoAttack(self.module, norm=NORMS[self.norm], eps=self.epsilon, seed=self.seed)
        found, _ = attack.run_standard_evaluation(self.images.clone(), self.labels.clone(), batch_size=250)
        return self._wrong(found)

    def torchattacks(self) -> Tensor:
        """What torchattacks calls AutoAttack, with its defaults."""
        import torchattacks

        settings: dict[str, Any] = {"norm": NORMS[self.norm], "eps": self.epsilon, "n_classes": self.classes}
        with contextlib.redirect_stdout(sys.stderr):
            attack = torchattacks.AutoAttack(self.module, seed=self.seed, **settings)
            attack.set_device(torch.device("cpu"))
            return self._wrong(attack(self.images.clone(), self.labels.clone()).detach())

    def _wrong(self, found: Tensor) -> Tensor:
        near = distances(found.numpy(), self.images.numpy(), self.norm) <= self.epsilon + EPSILON_SLACK
        with torch.no_grad():
            wrong = self.module(found).argmax(1) != self.labels
            clean = self.module(self.images).argmax(1) != self.labels
        return clean | (wrong & torch.from_numpy(near))


def made(name: str) -> nn.Module:
    """What `package.module:function` returns, in eval mode."""
    module, _, function = name.partition(":")
    network: nn.Module = getattr(importlib.import_module(module), function)()
    return network.eval()


def timed(attack: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """What it found, its wall seconds, and its processor seconds (which other processes disturb less)."""
    wall, processor = time.perf_counter(), sum(os.times()[:4])  # with the processes that it started
    fell = attack()
    return fell, time.perf_counter() - wall, sum(os.times()[:4]) - processor


def rows(bench: Bench, chosen: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row an attack, ours first."""
    found: list[dict[str, Any]] = []
    fallen: dict[str, Tensor] = {}
    for name in chosen:
        if name != "ours" and importlib.util.find_spec(name) is None:
            found.append({"attack": name, "missing": f"not installed: pip install {name}"})
            continue
        fallen[name], wall, processor = timed(getattr(bench, name))
        robust = float((~fallen[name]).double().mean())
        found.append({"attack": name, "robust": robust, "wall_s": wall, "processor_s": processor})
    reference = fallen.get("pyautoattack")
    for row in found:
        if reference is not None and "robust" in row:
            row["agreement"] = float((fallen[row["attack"]] == reference).double().mean())
            row["stood_but_fell_there"] = int((~fallen[row["attack"]] & reference).sum())
            row["fell_but_stood_there"] = int((fallen[row["attack"]] & ~reference).sum())
            if row["attack"] == "ours":
                row["fell_but_stood_there_held"] = int((fallen["ours"] & ~reference & bench.held).sum())
    return found


def table(result: dict[str, Any]) -> str:
    """The rows in columns, for people."""
    what = f"{result['model']}  {result['norm']} {result['eps']}  {result['samples']} images"
    lines = [f"{what}  clean {result['clean']:.2%}"]
    lines.append(f"{'attack':<14}{'robust':>9}{'agreement':>11}{'wall s':>9}{'cpu s':>9}")
    for row in result["rows"]:
        if "missing" in row:
            lines.append(f"{row['attack']:<14}{row['missing']}")
            continue
        agreement = f"{row['agreement']:.2%}" if "agreement" in row else "-"
        times = f"{row['wall_s']:>9.1f}{row['processor_s']:>9.1f}"
        lines.append(f"{row['attack']:<14}{row['robust']:>9.2%}{agreement:>11}{times}")
    for row in result["rows"]:
        if "fell_but_stood_there_held" in row:
            more, less, held = (row[f"{name}_there{end}"] for name, end in _WAYS)
            lines.append(
                f"against pyautoattack: {more} more fell to ours, {held} of them on the torch module too; {less} fewer"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="the ONNX file")
    parser.add_argument("--data", type=Path, required=True, help="images and labels (.npz)")
    parser.add_argument("--module", help="package.module:function, whose network the others attack (default: the twin)")
    parser.add_argument("--eps", required=True)
    parser.add_argument("--norm", choices=tuple(NORMS), default="linf")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", action="store_true", help="ours in as many processes of one thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attacks", default="ours,pyautoattack,torchattacks")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments)
    clean = predictions(bench.victim.logits(bench.images.numpy())) == bench.labels.numpy()
    result = {
        "model": arguments.model.name,
        "norm": arguments.norm,
        "eps": arguments.eps,
        "samples": len(bench.labels),
        "threads": arguments.threads,
        "processes": bench.processes,
        "seed": arguments.seed,
        "others_attack": arguments.module or "the twin",
        "torch": torch.__version__,
        "clean": float(clean.mean()),
        "rows": rows(bench, tuple(arguments.attacks.split(","))),
    }
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
