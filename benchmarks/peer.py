"""edgeprune against torch-pruning's stock pruner: same network, same recovery, same runtime, same attack, one run.

    python benchmarks/peer.py MODEL --config edgeprune.toml [--ratio 0.5] [--round-to 8] [--json peer.json]

The peer prunes uniformly with `tp.pruner.MagnitudePruner` (L2, its defaults, `round_to` as given). Its network then
takes edgeprune's own path: the same recovery, export, timing and attack, so that only the choice of channels differs.
Both are timed against the dense file in the same protocol. Prints a table of ratios and writes JSON.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from edgeprune import protocols
from edgeprune.artifacts import Destination, export_network, timed_file
from edgeprune.config import Config, load_config
from edgeprune.console import TerminalConsole
from edgeprune.data import open_split
from edgeprune.latency.measure import Bench, measure
from edgeprune.models import digest, load
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import allocate, apply, make_plan
from edgeprune.recovery.recover import Task, recover
from edgeprune.robustness import evaluate
from edgeprune.robustness.twin.source import EXPORTED_MODULE, Gradients
from edgeprune.types import ModelBundle, Split


def stock(bundle: ModelBundle, ratio: float, round_to: int | None) -> ModelBundle:
    """torch-pruning's uniform magnitude pruning, as its README shows it, on a copy."""
    module = copy.deepcopy(bundle.module)
    example = torch.randn(1, *bundle.input_shape)
    last = [m for m in module.modules() if isinstance(m, nn.Linear) and m.out_features == len(bundle.classes)]
    pruner = tp.pruner.MagnitudePruner(
        module,
        example,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=last,
        round_to=round_to,
    )
    pruner.step()
    return dataclasses.replace(bundle, module=module.eval(), digest=digest(module))


def ours(bundle: ModelBundle, config: Config, train: Split | None, multiple: int) -> ModelBundle:
    """edgeprune's plan for the configured goal."""
    graph = trace(bundle, ignore=config.prune.ignore)
    criterion: protocols.Criterion = protocols.find("criterion", config.prune.criterion)
    scores = criterion(bundle, graph, train, seed=config.run.seed)
    goal = config.prune.goal()
    widths = allocate(graph, scores, goal, multiple)
    return apply(make_plan(bundle, graph, scores, widths, goal, multiple, config.run.seed), bundle, graph)


def judge(pruned: ModelBundle, dense: ModelBundle, config: Config, splits: tuple[Split, Split]) -> dict[str, Any]:
    """Recover, export, time against the dense file, attack; the figures of one pruned network."""
    train, test = splits
    runtime, seed = config.latency.runtimes[0], config.run.seed
    recovered, _ = recover(pruned, dense, Task(config.recover, train, seed, config.run.device))
    subset = evaluate.attack_subset(test, config.attack.samples, seed)
    threat = evaluate.threat_model(config.attack, dense.preprocessing.bounds, subset, seed)
    images = test.source.read(test.ids[:256])
    figures: dict[str, Any] = {"parameters": sum(p.numel() for p in recovered.module.parameters())}
    with tempfile.TemporaryDirectory() as name:
        root, files = Path(name), {}
        for side, bundle in (("dense", dense), ("compressed", recovered)):
            made = export_network(bundle, Destination(root, side, side), (runtime,), images, "real")
            files[side] = timed_file(root, made.artifacts[0])
        compared = measure(
            files["dense"],
            files["compressed"],
            runtime,
            images,
            config.latency,
            bench=Bench("cpu"),
            seed=seed,
            progress=lambda *_: None,
        )
        assert compared.speedup
        interval = compared.speedup.interval
        figures |= {"speedup": compared.speedup.value, "speedup_interval": [interval.low, interval.high]}
        figures["verdict"] = compared.verdict
        session = protocols.find("runtime", runtime).open(Path(files["compressed"].path), threads=1)
        figures["accuracy"] = float((evaluate.predict(session, test) == test.labels()).mean())
        outcome = evaluate.attack_file(
            Gradients(recovered.network(), session, EXPORTED_MODULE),
            subset,
            threat,
            sha256=files["compressed"].sha256,
            progress=lambda *_: None,
        )
        figures["robust_accuracy"] = outcome.record.robust.value
    return figures


def main() -> None:
    """Parse, run both, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--config", type=Path, default=Path("edgeprune.toml"))
    parser.add_argument("--ratio", type=float, default=0.5, help="the peer's pruning ratio")
    parser.add_argument("--round-to", type=int, default=8, help="the peer's round_to (0: none)")
    parser.add_argument("--json", type=Path, default=Path("peer.json"))
    options = parser.parse_args()
    from rich.console import Console

    console = TerminalConsole(Console(stderr=True))
    config = load_config(options.config, {})
    dense = load(options.model, config.model)
    if config.data.train is None or config.data.test is None:
        parser.error("the configuration must name train and test data")
    train = open_split(config.data.train, "train", dense, seed=config.run.seed)
    test = open_split(config.data.test, "test", dense, samples=config.data.samples, seed=config.run.seed)
    candidates = {
        f"torch-pruning {version('torch-pruning')} uniform {options.ratio:g}": lambda: stock(
            dense, options.ratio, options.round_to or None
        ),
        f"edgeprune {config.prune.goal().kind} {config.prune.goal().value:g}": lambda: ours(
            dense, config, train, config.prune.channel_multiple or 8
        ),
    }
    results = {}
    for name, make in candidates.items():
        with console.task(name):
            results[name] = judge(make(), dense, config, (train, test))
    print(f"{'':44} {'speed-up':>22} {'accuracy':>9} {'robust':>8} {'parameters':>11}")
    for name, row in results.items():
        low, high = row["speedup_interval"]
        spread = f"{row['speedup']:.2f}x ({low:.2f}-{high:.2f})"
        print(f"{name:44} {spread:>22} {row['accuracy']:9.1%} {row['robust_accuracy']:8.1%} {row['parameters']:11,}")
    options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
