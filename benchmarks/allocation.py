"""Accuracy at the same measured latency: edgeprune's allocation beside torch-pruning's, network by network.

    python benchmarks/allocation.py --shared DIR --out allocation.json [--networks gtsrb_net_std,resnet18]
        [--arms ours,tp-uniform-8] [--seeds 0,1,2] [--runtime onnxruntime] [--speedup 2.4] [--epochs 6]

Every arm aims at the same speed-up, measured on exported files before recovery (`edgeprune.pruning.aim`): edgeprune
through its plans, torch-pruning by its pruning ratio. What comes out takes the same path: the same recovery for each
seed, export, clean accuracy of the file in its runtime, and the full protocol against the dense file. Networks with
random weights have no accuracy: the share of the squared weights that stays, averaged over layers, stands in its place.

DIR holds `models/` (with `nets.py`) and `data/`; torchvision is needed for mobilenet_v2 and resnet18 only. What is in
the JSON file is not done again, so that a long comparison can be made in pieces. Prints a table and writes JSON after
every run.
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
from edgeprune.latency.measure import Bench, measure
from edgeprune.models import digest, load
from edgeprune.planning import Range, Wish, plan_for
from edgeprune.pruning.aim import aim_among
from edgeprune.pruning.allocation import Rules
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import apply
from edgeprune.recovery.recover import Task, recover
from edgeprune.robustness import evaluate
from edgeprune.types import Goal, ModelBundle, Split

DATA = {"gtsrb": ("gtsrb_train.npz", "gtsrb_test_a.npz"), "cifar10": ("cifar10_train4k.npz", "cifar10_test_a.npz")}
RANDOM = ("mobilenet_v2", "resnet18")
OURS = {
    "ours": {},
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
        dense = load(path, ModelConfig(trust=("nets",), input_shape=(3, 32, 32)))
        files = (str(options.shared / "data" / file) for file in DATA[name.partition("_")[0]])
        config = DataConfig.model_validate(dict(zip(("train", "test"), files, strict=True)))
        train = open_split(str(config.train), "train", dense)
        test = open_split(str(config.test), "test", dense)
        images = test.source.read(test.ids[:256])
    settings = LatencyConfig(runtimes=(options.runtime,))
    range_ = Range(dense, images, "real" if test else "random", settings, 0)
    return Case(name, dense, train, test, range_, options.criterion, console)


def ours(case: Case, goal: Goal, changes: dict[str, Any]) -> ModelBundle:
    """edgeprune's plan for the goal."""
    graph = trace(case.dense)
    settings = PruneConfig(criterion=case.criterion, **changes)
    wish = Wish(goal, settings, 8, Rules(settings.ranking), case.train, 0)
    return apply(plan_for(case.dense, graph, wish, case.range, case.console), case.dense, graph)


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


def aimed_peer(case: Case, goal: Goal, changes: dict[str, Any]) -> ModelBundle:
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
        found = aim_among(goal, propose, lambda ratio: at(ratio)[1], lambda ratio: timed(at(ratio)[0]))
    return at(found.widths)[0]


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


def judged(case: Case, pruned: ModelBundle, seed: int, epochs: int, runtime: str) -> dict[str, Any]:
    """Recover, export, measure: the figures of one pruned network and seed."""
    found: dict[str, Any] = {"kept_weights": kept_weights(pruned, case.dense)}
    if case.train is not None:
        task = Task(RecoverConfig(epochs=epochs), case.train, seed)
        pruned, _ = recover(pruned, case.dense, task)
    share = macs(pruned.module, pruned.input_shape) / macs(case.dense.module, pruned.input_shape)
    images = case.range.images
    with tempfile.TemporaryDirectory() as name:
        root, files = Path(name), {}
        wanted = protocols.find("runtime", runtime)
        for side, bundle in (("dense", case.dense), ("compressed", pruned)):
            made = export_network(bundle, Destination(root, side, side), (runtime,), images, case.range.inputs)
            files[side] = timed_file(root, next(a for a in made.artifacts if a.format == wanted.format))
        timed = measure(
            files["dense"],
            files["compressed"],
            runtime,
            images,
            case.range.settings,
            bench=Bench("cpu"),
            seed=seed,
            progress=lambda *_: None,
        )
        assert timed.speedup
        ratio = timed.speedup.value
        interval = [timed.speedup.interval.low, timed.speedup.interval.high]
        found |= {"speedup": ratio, "interval": interval, "verdict": timed.verdict, "macs": share}
        found["realised"] = ratio * share
        if case.test is not None:
            session = wanted.open(Path(files["compressed"].path), threads=1)
            found["accuracy"] = float((evaluate.predict(session, case.test) == case.test.labels()).mean())
    return found


def table(results: dict[str, Any]) -> str:
    """A line for each network, runtime, goal and arm: means over its seeds."""
    head = f"{'speed-up':>8} {'realised':>8} {'MACs':>6} {'kept':>6} {'accuracy':>8}"
    lines = [f"{'network / runtime / goal / arm':58} {'seeds':>5} {head}"]
    for key, runs in sorted(results.items()):
        each = list(runs.values())
        accuracy = f"{mean(r['accuracy'] for r in each):8.2%}" if "accuracy" in each[0] else "       -"
        figures = [mean(run[name] for run in each) for name in ("speedup", "realised", "macs", "kept_weights")]
        speedup, realised, share, kept = figures
        lines.append(f"{key:58} {len(each):5} {speedup:7.2f}x {realised:8.2f} {share:6.1%} {kept:6.1%} {accuracy}")
    return "\n".join(lines)


def main() -> None:
    """Parse, run what is missing, write after each run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--out", type=Path, default=Path("allocation.json"))
    parser.add_argument("--networks", default="gtsrb_net_std,gtsrb_net_adv,cifar10_resnet20_A,mobilenet_v2,resnet18")
    parser.add_argument("--arms", default=",".join((*OURS, *PEERS)))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--speedup", type=float, default=2.4)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--criterion", default="l2")
    options = parser.parse_args()
    from rich.console import Console

    torch.set_num_threads(1)
    console = TerminalConsole(Console(stderr=True))
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.networks.split(","):
        case = opened(name, options, console)
        for arm in options.arms.split(","):
            key = f"{name} / {options.runtime} / {options.speedup:g}x / {arm}"
            seeds = options.seeds.split(",") if name not in RANDOM else ["0"]
            missing = [seed for seed in seeds if seed not in results.get(key, {})]
            if not missing:
                continue
            started, goal = time.perf_counter(), Goal("speedup", options.speedup)
            choose: Callable[..., ModelBundle] = ours if arm in OURS else aimed_peer
            pruned = choose(case, goal, (OURS | PEERS)[arm])
            planned_s = time.perf_counter() - started
            for seed in missing:
                with console.task(f"{key}, seed {seed}"):
                    found = judged(case, pruned, int(seed), options.epochs, options.runtime)
                results.setdefault(key, {})[seed] = {**found, "planning_s": planned_s}
                options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
