"""Known answers: edgeprune's attacks on networks and boxes of the VNN-COMP competitions, through foreign ONNX files.

    python benchmarks/vnncomp.py FOLDER [--attack pgd] [--steps 40] [--starts 3] [--json vnncomp.json]

FOLDER holds ONNX files and `.npz` files with `net` (the ONNX file), `lo` and `hi` (the box, flat, in C order of the
network's own input), `label`, `target` (-1: any other class) and `truth`. Where tools have proved that a box holds no
counterexample (`unsat`), an attack that finds one is wrong; where one is known (`sat`), it should be found. Gradients
come from the twin, verdicts from ONNX Runtime; every find is judged once more inside its box. Beside it stands a plain
attack (signed steps of constant length on the margin, the same number of steps and starts).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgeprune.export.onnx import RUNTIME
from torch import Tensor, nn

from edgeprune import protocols
from edgeprune.errors import UsageError
from edgeprune.robustness.twin import Layout, Served, Twin, build, check
from edgeprune.types import AttackBudget, Victim

ANY = -1


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """One question: is there an image between `low` and `high` (1, C, H, W) that is not `label`, or is `target`?"""

    low: np.ndarray
    high: np.ndarray
    label: int
    target: int
    truth: str


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A foreign file: runtime and twin, both on images (N, C, H, W) of its own input space."""

    name: str
    session: Served
    twin: Twin
    parity: float


class Inside(nn.Module):
    """Scores of the images lo + u (hi - lo), u in [0, 1]; against one target: the best other class, and the target."""

    def __init__(self, network: nn.Module, box: Box) -> None:
        super().__init__()
        self.network, self.target = network, box.target
        self.register_buffer("low", torch.from_numpy(box.low))
        self.register_buffer("high", torch.from_numpy(box.high))

    def images(self, units: Tensor) -> Tensor:
        return torch.clamp(self.low + units * (self.high - self.low), self.low, self.high)

    def forward(self, units: Tensor) -> Tensor:
        return two_sided(self.network(self.images(units)), self.target)


def two_sided(logits: Tensor, target: int) -> Tensor:
    """The logits, or (best other class, target) where only the target counts as wrong."""
    if target == ANY:
        return logits
    others = logits.index_fill(1, torch.tensor([target]), -torch.inf).amax(1)
    return torch.stack([others, logits[:, target]], 1)


def ours(network: Network, box: Box, attack: str, budget: AttackBudget) -> np.ndarray | None:
    """A counterexample that the named attack of edgeprune finds in unit coordinates around the middle, or None."""
    inside = Inside(network.twin.scores, box)

    def logits(units: np.ndarray) -> np.ndarray:
        images = inside.images(torch.from_numpy(units)).numpy()
        return two_sided(torch.from_numpy(network.session.logits(images)), box.target).numpy()

    run: protocols.Attack = protocols.find("attack", attack)
    middle = torch.full(box.low.shape, 0.5)
    label = torch.tensor([box.label if box.target == ANY else 0])
    found = run(Victim(logits, inside, (0.0, 1.0)), middle, label, budget, progress=lambda _text, _share: None)
    return inside.images(found.adversarials).numpy() if bool(found.fell[0]) else None


def plain(network: Network, box: Box, budget: AttackBudget) -> np.ndarray | None:
    """The plain attack: `restarts` uniform starts at once, signed steps of a fortieth of the box times 2.5 each."""
    inside = Inside(network.twin.scores, box)
    generator = torch.Generator().manual_seed(budget.seed)
    units = torch.rand(budget.restarts, *box.low.shape[1:], generator=generator)
    for _ in range(budget.steps + 1):
        images = inside.images(units).numpy()
        wrong = is_wrong(network.session.logits(images), box)
        if wrong.any():
            return images[wrong][:1]
        units.requires_grad_(True)
        scores = inside(units)
        label = box.label if box.target == ANY else 0
        others = scores.index_fill(1, torch.tensor([label]), -torch.inf).amax(1)
        (gradient,) = torch.autograd.grad((others - scores[:, label]).sum(), units)
        units = torch.clamp(units.detach() + 2.5 * 0.5 / budget.steps * gradient.sign(), 0, 1)
    return None


def is_wrong(logits: np.ndarray, box: Box) -> np.ndarray:
    said = logits.argmax(1)
    return said != box.label if box.target == ANY else said == box.target


def verified(network: Network, box: Box, found: np.ndarray | None) -> bool:
    """Whether the find lies in its box and the runtime, asked again, gets it wrong."""
    if found is None:
        return False
    inside = bool((found >= box.low).all() and (found <= box.high).all())
    return inside and bool(is_wrong(network.session.logits(found), box).all())


def as_images(flat: np.ndarray, layout: Layout) -> np.ndarray:
    """Numbers in the order of the file's input as images (1, C, H, W)."""
    c, h, w = layout.shape
    if layout.order == "NHWC":
        return np.ascontiguousarray(flat.reshape(1, h, w, c).transpose(0, 3, 1, 2))
    return flat.reshape(1, c, h, w)


def open_network(path: Path, size: int) -> Network:
    """The file in ONNX Runtime and as a twin; the shape of a flat input is taken for one channel."""
    try:
        twin = build(path)
    except UsageError:  # a flat input says nothing but its size
        twin = build(path, (1, 1, size))
    if twin.module is None:
        raise SystemExit(f"{path}: no rule for {', '.join(twin.unsupported)}")
    session = Served(RUNTIME.open(path, threads=1), twin.layout)
    noise = np.random.default_rng(0).random((8, *twin.layout.shape), dtype=np.float32)
    return Network(path.name, session, twin, check(twin, session, noise))


def boxes(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file of the network, the numbers of one box) for each row of an .npz."""
    with np.load(path) as rows:
        columns = {name: rows[name] for name in ("net", "lo", "hi", "label", "target", "truth")}
    for index, net in enumerate(columns["net"]):
        yield str(net), {name: column[index] for name, column in columns.items()}


def attack_all(folder: Path, attack: str, budget: AttackBudget) -> list[dict[str, Any]]:
    """One row for each network and truth."""
    networks: dict[str, Network] = {}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.npz")):
        for net, entry in boxes(path):
            if net not in networks:
                networks[net] = open_network(folder / net, entry["lo"].size)
            network = networks[net]
            low, high = (as_images(entry[side], network.twin.layout) for side in ("lo", "hi"))
            box = Box(low, high, int(entry["label"]), int(entry["target"]), str(entry["truth"]))
            row = rows.setdefault((net, box.truth), {"boxes": 0, "plain": 0, attack: 0, "plain_s": 0.0, "ours_s": 0.0})
            row["boxes"] += 1
            began = time.perf_counter()
            row["plain"] += verified(network, box, plain(network, box, budget))
            middle = time.perf_counter()
            row[attack] += verified(network, box, ours(network, box, attack, budget))
            row["plain_s"] += middle - began
            row["ours_s"] += time.perf_counter() - middle
    return [
        {"net": net, "truth": truth, "parity": networks[net].parity, "producer": networks[net].twin.producer, **row}
        for (net, truth), row in sorted(rows.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--attack", default="pgd", help="one of edgeprune's attacks")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("vnncomp.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    budget = AttackBudget("linf", 0.5, given.steps, given.starts, given.seed)
    rows = attack_all(given.folder, given.attack, budget)
    print(f"{'network':<40} {'truth':<8} {'parity':>8} {'boxes':>6} {'plain':>6} {given.attack:>9} {'s':>7}")
    for row in rows:
        print(
            f"{row['net'][:40]:<40} {row['truth']:<8} {row['parity']:>8.0e} {row['boxes']:>6} {row['plain']:>6} "
            f"{row[given.attack]:>9} {row['ours_s']:>7.1f}"
        )
    given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if any(row["truth"] == "unsat" and (row["plain"] or row[given.attack]) for row in rows):
        raise SystemExit("a counterexample where tools have proved that there is none: the attack or the file is wrong")


if __name__ == "__main__":
    main()
