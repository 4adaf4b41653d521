"""Training throughput: images a second of a plain eager loop and of ours, interleaved, in one run.

    python benchmarks/throughput.py --shared DIR [--rounds 12] [--threads 1]

Both distil into cifar10_resnet20_A, on the same threads. The plain loop: eager, contiguous, float32, SGD. Ours: the
step of `edgeprune.recovery`, its teacher looking at every image anew: what draws that take turns save comes on top
(`--recover-draws`). Prints both rates and the ratio of interleaved steps.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from plain_loop import BATCH, plain_step  # beside this file
from recovery_cases import opened

from edgeprune.recovery.images import images_of, shuffled
from edgeprune.recovery.learner import optimizer_of
from edgeprune.recovery.precision import choose
from edgeprune.recovery.recipes import Lesson, teacher_of
from edgeprune.recovery.settings import RecoverConfig


def throughput(options: argparse.Namespace) -> None:
    """Images a second of the plain loop's step and of ours, interleaved; prints both and the ratio."""
    case = opened("cifar10_resnet20_A", options)
    settings = RecoverConfig()
    plain = [copy.deepcopy(case.dense.network()) for _ in range(2)]
    optimizer = torch.optim.SGD(plain[0].parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    placed = [copy.deepcopy(case.dense.network()).to(memory_format=torch.channels_last) for _ in range(2)]
    images, labels = images_of(case.train, "cpu"), torch.from_numpy(case.train.labels())
    lesson = Lesson(settings, images, labels, teacher_of(placed[1].eval(), settings, images), (0.0, 1.0))
    mine = optimizer_of(placed[0].train())
    plain[0].train()
    batches, generator = shuffled(len(images), 0, BATCH), torch.Generator().manual_seed(0)

    def ours(precision: str, positions: Any = batches[0]) -> None:
        dataclasses.replace(lesson, precision=precision).loss(placed[0], positions, 1, generator).backward()
        mine.step()
        mine.zero_grad()

    precision = choose("auto", "cpu", ours)
    arms = {
        "plain": lambda p: plain_step(
            plain[0], plain[1], optimizer, torch.from_numpy(case.train.source.read(case.train.ids[p])).contiguous()
        ),
        "ours": lambda p: ours(precision, p),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for positions in batches[: options.rounds]:
        for name, arm in arms.items():
            started = time.perf_counter()
            arm(positions)
            times[name].append(time.perf_counter() - started)
    rates = {name: BATCH / statistics.median(each[1:]) for name, each in times.items()}
    ratios = sorted(p / o for p, o in zip(times["plain"][1:], times["ours"][1:], strict=True))
    print(f"threads {torch.get_num_threads()}, precision {precision}, {len(ratios)} interleaved steps of {BATCH}")
    print(f"plain {rates['plain']:,.0f} images/s, ours {rates['ours']:,.0f} images/s: {statistics.median(ratios):.2f}x")
    quarter = len(ratios) // 4
    print(f"half of the pairs between {ratios[quarter]:.2f}x and {ratios[-1 - quarter]:.2f}x")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.set_defaults(attack="standard", samples=1, recipes=(), ratio=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        options.out = Path(folder) / "throughput"  # the network's file lies beside it
        throughput(options)


if __name__ == "__main__":
    main()
