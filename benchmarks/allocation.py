"""Accuracy at the same measured latency: edgeprune's allocation beside torch-pruning's, network by network.

    python benchmarks/allocation.py --shared DIR --out allocation.json [--networks gtsrb_net_std,resnet18]
        [--arms ours,tp-uniform-8] [--seeds 0,1,2] [--runtime onnxruntime] [--speedup 2] [--epochs 6]
        [--phases plan,train,measure]

Every arm aims at the same speed-up, measured on exported files before recovery (`edgeprune.pruning.aim`): edgeprune
through its plans, torch-pruning by its pruning ratio. What comes out takes the same path: the same recovery for each
seed, export, clean accuracy of the file in its runtime, and the full protocol against the dense file (once an arm: the
weights of a seed do not change what it costs). Networks with random weights have no accuracy: the share of the squared
weights that stays, averaged over layers, stands in its place. An arm whose network does not run is reported as such.

The phases may run apart: `plan` and `measure` want a quiet machine, `train` does not. DIR holds `models/` (with
`nets.py`) and `data/`; torchvision is needed for mobilenet_v2 and resnet18 only. What is in the JSON file, and the
networks beside it, are not made again. Prints a table and writes JSON after every step.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch_pruning as tp
from coverage import build  # beside this file
from torch import nn

from edgeprune import protocols
from edgeprune.artifacts import Destination, export_network, timed_file
from edgeprune.config import DataConfig, LatencyConfig, ModelConfig, PruneConfig, RecoverConfig
from edgeprune.console import TerminalConsole
from edgeprune.data import open_split
from edgeprune.gauging import Range
from edgeprune.latency.measure import Bench, measure
from edgeprune.models import digest, load
from edgeprune.planning import Wish, plan_for
from edgeprune.pruning.aim import Proposals, aim_among, settled
from edgeprune.pruning.allocation import Rules
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import apply
from edgeprune.records import LatencyFile, Side
from edgeprune.recovery.recover import Task, recover
from edgeprune.robustness import evaluate
from edgeprune.types import Goal, ModelBundle, Split

DATA = {"gtsrb": ("gtsrb_train.npz", "gtsrb_test_a.npz"), "cifar10": ("cifar10_train4k.npz", "cifar10_test_a.npz")}
RANDOM = ("mobilenet_v2", "resnet18")
OURS = {
    "ours": {},
    "ours-untried": {"trials": 1},
    "ours-macs": {"cost_model": "macs"},
    "ours-local": {"ranking": "local"},
    "ours-isomorphic": {"ranking": "isomorphic"},
}
PEERS = {
    "tp-uniform": {"global_pruning": False, "round_to": None},
    "tp-uniform-8": {"global_pruning": False, "round_to": 8},
    "tp-global": {"global_pruning": True, "round_to": None},
    "tp-global-8": {"global_pruning": True, "round_to": 8},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One network with its data, and where it is timed."""

    name: str
    dense: ModelBundle
    train: Split | None
    test: Split | None
    range: Range
    criterion: str
    console: TerminalConsole


def opened(name: str, options: argparse.Namespace, console: TerminalConsole) -> Case:
    """The network, its data where it has any, and images to time with."""
    train = test = None
    if name in RANDOM:
        dense = build(name)
        images = torch.rand(8, *dense.input_shape, generator=torch.Generator().manual_seed(0)).numpy()
    else:
        sys.path.insert(0, str(options.shared / "models"))
        import nets

        path = options.out.parent / f"{name}.pt"
        if not path.exists():
            nets.save_pt(name, path, "module")
        known = json.loads((options.shared / "models" / f"{name}.json").read_text())
        scale = {key: tuple(known[key]) for key in ("mean", "std")}
        dense = load(path, ModelConfig(trust=("nets",), input_shape=(3, 32, 32), **scale))
        files = (str(options.shared / "data" / file) for file in DATA[name.partition("_")[0]])
        config = DataConfig.model_validate(dict(zip(("train", "test"), files, strict=True)))
        train = open_split(str(config.train), "train", dense)
        test = open_split(str(config.test), "test", dense)
        images = test.source.read(test.ids[:256])
    settings = LatencyConfig(runtimes=(options.runtime,))
    range_ = Range(dense, images, "real" if test else "random", settings, 0)
    return Case(name, dense, train, test, range_, options.criterion, console)


def ours(case: Case, goal: Goal, changes: dict[str, Any]) -> tuple[ModelBundle, dict[str, Any]]:
    """What edgeprune's plan for the goal leaves, and what the plan says: its notes, and what it was timed at."""
    graph = trace(case.dense)
    settings = PruneConfig(criterion=case.criterion, **changes)
    wish = Wish(goal, settings, 8, Rules(settings.ranking), case.train, 0, "cpu")
    found = plan_for(case.dense, graph, wish, case.range, case.console)
    told: dict[str, Any] = {"notes": found.notes}
    if timing := found.timing:
        told |= {"speedup": timing.speedup, "p50_ms": [timing.dense_p50_ms, timing.compressed_p50_ms]}
    return apply(found, case.dense, graph), told


def stock(case: Case, ratio: float, changes: dict[str, Any]) -> ModelBundle:
    """torch-pruning's base pruner as its README shows it, on a copy, with weight magnitude as the importance."""
    module = copy.deepcopy(case.dense.module)
    classes = len(case.dense.classes)
    last = [m for m in module.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    pruner = tp.pruner.BasePruner(
        module,
        torch.randn(1, *case.dense.input_shape),
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=last,
        **changes,
    )
    pruner.step()
    return dataclasses.replace(case.dense, module=module.eval(), digest=digest(module))


def aimed_peer(case: Case, goal: Goal, changes: dict[str, Any]) -> tuple[ModelBundle, dict[str, Any]]:
    """The peer at the pruning ratio whose network was measured to meet the goal, found as edgeprune finds its own."""
    whole = macs(case.dense.module, case.dense.input_shape)
    made: dict[float, tuple[ModelBundle, float]] = {}

    def at(ratio: float) -> tuple[ModelBundle, float]:
        if ratio not in made:
            bundle = stock(case, ratio, changes)
            made[ratio] = bundle, macs(bundle.module, bundle.input_shape) / whole
        return made[ratio]

    def propose(share: float) -> float:
        low, high = 0.02, 0.95
        for _ in range(7):
            middle = round((low + high) / 2, 3)
            low, high = (middle, high) if at(middle)[1] > share else (low, middle)
        return min((low, high), key=lambda ratio: abs(math.log(at(ratio)[1] / share)))

    with case.range.opened() as timed:
        known = partial(settled, goal)
        found = aim_among(
            goal, Proposals(propose, lambda ratio: at(ratio)[1]), lambda ratio: timed(at(ratio)[0], known)
        )
    timing = found.timing
    told = {"notes": found.notes, "speedup": timing.speedup, "p50_ms": [timing.dense_ms, timing.latency_ms]}
    return at(found.widths)[0], told


def macs(module: nn.Module, shape: tuple[int, int, int]) -> float:
    """MACs an image, by torch-pruning's counter."""
    return float(tp.utils.count_ops_and_params(module, torch.zeros(1, *shape))[0])


def kept_weights(pruned: ModelBundle, dense: ModelBundle) -> float:
    """The mean over layers of the share of squared weights that stays."""
    shares = []
    for name, layer in dense.module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            left = pruned.module.get_submodule(name).get_parameter("weight")
            shares.append(float(left.detach().square().sum() / layer.weight.detach().square().sum()))
    return mean(shares)


class Study:
    """The results so far: a JSON file, and beside it the networks that an arm left."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def note(self, key: str, part: str, figures: dict[str, Any]) -> None:
        """Add to what is known of one arm, and write it: another process may have added something, too."""
        if self.path.exists():
            self.found = json.loads(self.path.read_text())
        self.found.setdefault(key, {}).setdefault(part, {}).update(figures)
        self.path.write_text(json.dumps(self.found, indent=2) + "\n", encoding="utf-8")

    def has(self, key: str, part: str) -> bool:
        """Is this part of the arm done?"""
        return part in self.found.get(key, {})

    def file(self, key: str, seed: str = "") -> Path:
        """Where a network of the arm lies."""
        name = "".join(each if each.isalnum() else "-" for each in f"{key} {seed}".strip())
        return self.path.parent / f"{self.path.stem}-networks" / f"{name}.pt"


def plan(study: Study, case: Case, key: str, arm: str, speedup: float) -> None:
    """Cut the network for the goal; what it lost. An arm that breaks the network is noted with its error."""
    started, goal = time.perf_counter(), Goal("speedup", speedup)
    choose: Callable[..., tuple[ModelBundle, dict[str, Any]]] = ours if arm in OURS else aimed_peer
    try:
        pruned, told = choose(case, goal, (OURS | PEERS)[arm])
        share = macs(pruned.module, pruned.input_shape) / macs(case.dense.module, pruned.input_shape)
    except Exception as error:  # a peer may cut a network so that it no longer runs: that is its result
        if arm in OURS:
            raise
        study.note(key, "plan", {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
        return
    path = study.file(key)
    path.parent.mkdir(exist_ok=True)
    torch.save(pruned.module, path)
    figures = {"macs": share, "kept_weights": kept_weights(pruned, case.dense), **told}
    study.note(key, "plan", {**figures, "planning_s": time.perf_counter() - started})


def opened_arm(study: Study, case: Case, key: str, seed: str = "") -> ModelBundle:
    """The network that an arm left, recovered with a seed or not."""
    module = torch.load(study.file(key, seed), weights_only=False)  # our own file
    return dataclasses.replace(case.dense, module=module.eval(), digest=digest(module))


def train(study: Study, case: Case, key: str, seed: str, epochs: int) -> None:
    """Recover the arm's network, export it, and find the accuracy of the file in the runtime."""
    assert case.train
    assert case.test
    task = Task(RecoverConfig(epochs=epochs), case.train, int(seed))
    pruned, _ = recover(opened_arm(study, case, key), case.dense, task)
    torch.save(pruned.module, study.file(key, seed))
    wanted = protocols.find("runtime", case.range.settings.runtimes[0])
    with tempfile.TemporaryDirectory() as name:
        session = wanted.open(Path(exported(case, pruned, "compressed", Path(name)).path), threads=1)
        accuracy = float((evaluate.predict(session, case.test) == case.test.labels()).mean())
    study.note(key, "accuracy", {seed: accuracy})


def exported(case: Case, bundle: ModelBundle, side: Side, root: Path) -> LatencyFile:
    """The file of one side for the case's runtime."""
    wanted = protocols.find("runtime", case.range.settings.runtimes[0])
    made = export_network(bundle, Destination(root, side, side), (wanted.name,), case.range.images, case.range.inputs)
    return timed_file(root, next(a for a in made.artifacts if a.format == wanted.format))


def clocked(study: Study, case: Case, key: str, seed: str) -> None:
    """The full protocol for the arm's file against the dense one."""
    pruned = opened_arm(study, case, key, seed)
    settings, images = case.range.settings, case.range.images
    with tempfile.TemporaryDirectory() as name:
        files = [exported(case, b, side, Path(name)) for b, side in ((case.dense, "dense"), (pruned, "compressed"))]
        found = measure(
            *files,
            settings.runtimes[0],
            images,
            settings,
            bench=Bench("cpu"),
            seed=0,
            progress=lambda *_: None,
        )
    assert found.speedup
    assert found.compressed
    interval = [found.speedup.interval.low, found.speedup.interval.high]
    p50s = [found.dense.p50_ms, found.compressed.p50_ms]  # beside the plan's: is the machine in the state of then
    timed = {"speedup": found.speedup.value, "interval": interval, "verdict": found.verdict, "p50_ms": p50s}
    study.note(key, "latency", timed)


def table(found: dict[str, Any]) -> str:
    """A line for each network, runtime, goal and arm: accuracy is the mean over its seeds."""
    head = f"{'speed-up':>8} {'interval':>14} {'realised':>8} {'MACs':>6} {'kept':>6} {'planned':>7} {'accuracy':>8}"
    lines = [f"{'network / runtime / goal / arm':58} {head}  seeds"]
    for key, arm in sorted(found.items()):
        planned, latency, accuracy = (arm.get(part, {}) for part in ("plan", "latency", "accuracy"))
        if "failed" in planned:
            lines.append(f"{key:58} no network: {planned['failed'][:80]}")
            continue
        line = f"{key:58} "
        if latency:
            low, high = latency["interval"]
            line += f"{latency['speedup']:7.2f}x {low:6.2f} - {high:5.2f} {latency['speedup'] * planned['macs']:8.2f} "
        else:
            line += f"{'-':>8} {'-':>14} {'-':>8} "
        line += f"{planned['macs']:6.1%} {planned['kept_weights']:6.1%} {planned['planning_s']:6.0f}s "
        line += f"{mean(accuracy.values()):8.2%}  {len(accuracy)}" if accuracy else f"{'-':>8}  0"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Parse, do what is missing of the phases asked for, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--out", type=Path, default=Path("allocation.json"))
    parser.add_argument("--networks", default="gtsrb_net_std,gtsrb_net_adv,cifar10_resnet20_A,mobilenet_v2,resnet18")
    parser.add_argument("--arms", default=",".join((*OURS, *PEERS)))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--criterion", default="l2")
    parser.add_argument("--phases", default="plan,train,measure")
    options = parser.parse_args()
    from rich.console import Console

    torch.set_num_threads(1)
    console, study, seeds = TerminalConsole(Console(stderr=True)), Study(options.out), options.seeds.split(",")
    for phase in options.phases.split(","):
        for name in options.networks.split(","):
            case = opened(name, options, console)
            for arm in options.arms.split(","):
                key = f"{name} / {options.runtime} / {options.speedup:g}x / {arm}"
                with console.task(f"{phase}: {key}"):
                    if phase == "plan" and not study.has(key, "plan"):
                        plan(study, case, key, arm, options.speedup)
                    if not study.file(key).exists():
                        continue
                    known = study.found[key].get("accuracy", {})
                    for seed in seeds if phase == "train" and case.test else ():
                        if seed not in known:
                            train(study, case, key, seed, options.epochs)
                    if phase == "measure" and not study.has(key, "latency"):
                        clocked(study, case, key, seeds[0] if study.file(key, seeds[0]).exists() else "")
    print(table(study.found))


if __name__ == "__main__":
    main()
