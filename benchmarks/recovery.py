"""What recovery wins back, in the same minutes as a plain loop on stock pruning: file by file, seed by seed.

    python benchmarks/recovery.py --shared DIR --out recovery.json [--networks gtsrb_net_std,gtsrb_net_adv]
        [--speedups 2.0,2.8] [--recipes distill,robust-distill] [--seeds 0,1,2] [--unlabelled 500] [--estimate]
        [--ratio 0.5] [--epochs 30] [--natural] [--settings '{"natural_share": 0.4}'] [--phases plan,train]

The peer: torch-pruning, uniform at the ratio whose exported file was measured to meet the speed-up, rounded to 8, then
a plain loop (SGD, one-cycle, six epochs, distillation; eager, contiguous, float32), and a plain loop on images that one
step of an adversary has moved. Ours: edgeprune's plan for the same speed-up, then each recipe for as many seconds as
the plain loop of its kind took on the same seed. All end as exported files: clean accuracy and robust accuracy
(`--attack`, the standard suite unless told) are the file's, in ONNX Runtime, on test images; the speed-up is measured
against the dense file, once an arm, before recovery: the weights of a seed do not change what it costs. Prints a table
and writes JSON after every run; what is in the file is not done again. The recipe is distill, and robust-distill as
well where the network was trained for robustness.

--phases: `plan` cuts and times, and wants a quiet machine; `train` recovers and attacks, and several may run at once.
--natural: recipes that train on perturbed images get the plain loop without adversaries, and its seconds, too.
--epochs N: ours alone, for so many epochs, in place of the plain loop's seconds; with --settings of [recover].

--ratio: both arms lose this share of every layer's channels, widths on multiples of 8: what recovery alone makes of it.
--estimate: how many runs are missing, and for about how long, by the wall time of those in the file; nothing is run.
--unlabelled N: every recipe that needs no labels, on N images without them, in place of the comparison.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from plain_loop import plain_loop  # beside this file
from recovery_cases import CASES, Case, opened
from torch import nn

from edgeprune import protocols
from edgeprune.artifacts import Destination, export_network, timed_file
from edgeprune.config import PruneConfig
from edgeprune.console import TerminalConsole
from edgeprune.latency.measure import Bench, measure
from edgeprune.models import digest
from edgeprune.planning import Wish, plan_for
from edgeprune.pruning.aim import Proposals, aim_among, settled
from edgeprune.pruning.allocation import Rules
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import allocate, apply, kept_outputs, make_plan
from edgeprune.records import LatencyFile, Side
from edgeprune.recovery.recover import Task, recover
from edgeprune.recovery.settings import ROBUST, RecoverConfig
from edgeprune.robustness import evaluate
from edgeprune.robustness.twin.source import CHECKED, gradients_of, twin_of
from edgeprune.types import Goal, ModelBundle

PLAIN = "plain loop on torch-pruning uniform"
PLAIN_ROBUST = "plain adversarial loop on torch-pruning uniform"
_FEW_EPOCHS = 30  # on few images


def ours(case: Case, speedup: float, console: TerminalConsole) -> tuple[ModelBundle, dict[str, tuple[int, ...]]]:
    """edgeprune's pruned network, and what each layer kept."""
    graph = trace(case.dense)
    if case.ratio:
        goal, scores = Goal("ratio", case.ratio), protocols.find("criterion", "l2")(case.dense, graph, None, seed=0)
        fixed = make_plan(case.dense, graph, scores, allocate(graph, scores, goal, 8), goal, 8, 0)
        return apply(fixed, case.dense, graph), kept_outputs(fixed, graph)
    settings = PruneConfig(speedup=speedup)
    wish = Wish(settings.goal(), settings, 8, Rules(settings.ranking), case.train, 0, "cpu")
    plan = plan_for(case.dense, graph, wish, case.range, console)
    return apply(plan, case.dense, graph), kept_outputs(plan, graph)


def stock(case: Case, speedup: float) -> ModelBundle:
    """torch-pruning, uniform, widths on multiples of 8, at the ratio that was measured to meet the speed-up."""

    def at(ratio: float) -> ModelBundle:
        module, classes = copy.deepcopy(case.dense.module), len(case.dense.classes)
        last = [m for m in module.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
        example, importance = torch.randn(1, *case.dense.input_shape), tp.importance.MagnitudeImportance(p=2)
        tp.pruner.BasePruner(module, example, importance, pruning_ratio=ratio, ignored_layers=last, round_to=8).step()
        return dataclasses.replace(case.dense, module=module.eval(), digest=digest(module))

    if case.ratio:
        return at(case.ratio)
    made = {ratio: at(ratio) for ratio in np.linspace(0.05, 0.9, 18).round(3)}
    shape = case.dense.input_shape

    def macs(bundle: ModelBundle) -> float:
        return float(tp.utils.count_ops_and_params(bundle.module, torch.zeros(1, *shape))[0])

    shares = {ratio: macs(bundle) / macs(case.dense) for ratio, bundle in made.items()}
    goal = Goal("speedup", speedup)
    with case.range.opened() as timed:
        found = aim_among(
            goal,
            Proposals(lambda share: min(shares, key=lambda ratio: abs(shares[ratio] - share)), shares.__getitem__),
            lambda ratio: timed(made[ratio], partial(settled, goal)),
        )
    return made[found.widths]


def clocked(case: Case, pruned: ModelBundle) -> dict[str, Any]:
    """The measured speed-up of the exported file over the dense one, with its interval."""
    with tempfile.TemporaryDirectory() as name:
        files = [exported(case, bundle, Path(name), side) for side, bundle in (("d", case.dense), ("c", pruned))]
        timed = measure(
            *(*files, "onnxruntime", case.range.images, case.range.settings),
            bench=Bench("cpu"),
            seed=0,
            progress=lambda *_: None,
        )
    assert timed.speedup
    return {"speedup": timed.speedup.value, "interval": [timed.speedup.interval.low, timed.speedup.interval.high]}


def exported(case: Case, bundle: ModelBundle, root: Path, name: str) -> LatencyFile:
    """The ONNX file of a network."""
    side: Side = "dense" if bundle is case.dense else "compressed"
    made = export_network(bundle, Destination(root, name, side), ("onnxruntime",), case.range.images, "real")
    return timed_file(root, made.artifacts[0])


def judged(case: Case, recovered: ModelBundle) -> dict[str, Any]:
    """The figures of the exported file: clean and robust accuracy on test images."""
    with tempfile.TemporaryDirectory() as name:
        file = exported(case, recovered, Path(name), "judged")
        session = protocols.find("runtime", "onnxruntime").open(Path(file.path), threads=1)
        accuracy = float((evaluate.predict(session, case.test) == case.test.labels()).mean())
        subset = evaluate.attack_subset(case.test, case.attack.samples, 0)
        threat = evaluate.threat_model(case.attack, case.dense.preprocessing.bounds, subset, 0)
        path, checked = Path(file.path), subset.source.read(subset.ids[:CHECKED])
        twin = twin_of(path, case.dense.input_shape)
        outcome = evaluate.attack_file(
            gradients_of(twin, path, session, checked, case.dense.preprocessing),
            subset,
            threat,
            sha256=file.sha256,
            progress=lambda *_: None,
        )
    return {"accuracy": accuracy, "robust": outcome.record.robust.value, "attacked": len(subset)}


def configured(recipe: str, case: Case, **more: Any) -> RecoverConfig:
    """The recipe's settings, its adversary as far-reaching as the attack."""
    return RecoverConfig.model_validate({"recipe": recipe, "eps": case.attack.eps, **more})


def cut_once(
    case: Case, arm: str, speedup: float, options: argparse.Namespace, console: TerminalConsole
) -> tuple[ModelBundle, dict[str, tuple[int, ...]] | None, dict[str, Any]]:
    """An arm's pruned network, what its layers kept (ours), and its speed-up: made and timed once, kept on disk."""
    goal = f"{speedup:g}x" if case.ratio is None else f"ratio-{case.ratio:g}"
    path = options.out.parent / f"{options.out.stem}-networks" / f"{case.name}-{goal}-{arm}.pt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        pruned, kept = ours(case, speedup, console) if arm == "ours" else (stock(case, speedup), None)
        torch.save((pruned.module, kept, clocked(case, pruned)), path)
    module, kept, timed = torch.load(path, weights_only=False)  # our own file
    return dataclasses.replace(case.dense, module=module.eval(), digest=digest(module)), kept, timed


def compare(case: Case, options: argparse.Namespace, results: dict[str, Any], console: TerminalConsole) -> None:
    """The peer and every recipe in the peer's minutes, for each speed-up and seed. Writes after every run."""
    if "train" in options.phases:
        store(options, results, f"{case.name} / dense", "0", lambda: {"speedup": 1.0, **judged(case, case.dense)})
    for speedup in options.speedups if case.ratio is None else [0.0]:
        head = f"{case.name} / " + (f"{speedup:g}x" if case.ratio is None else f"ratio {case.ratio:g}")
        if not options.epochs:
            peer, _, peer_timed = cut_once(case, "peer", speedup, options, console)
        mine, kept, timed = cut_once(case, "ours", speedup, options, console)
        for seed in options.seeds if "train" in options.phases else ():

            def plain(robust: bool, seed: int = seed) -> dict[str, Any]:
                found, seconds = plain_loop(case, peer, seed, robust=robust)  # noqa: B023 - called before the next turn
                return {**peer_timed, **judged(case, found), "seconds": seconds}  # noqa: B023

            for recipe in case.recipes:
                length: dict[str, Any] = {"epochs": options.epochs}
                if not options.epochs:
                    robust = recipe in ROBUST and not options.natural
                    arm = f"{head} / {PLAIN_ROBUST if robust else PLAIN}"
                    took = store(options, results, arm, str(seed), partial(plain, robust))["seconds"]
                    length = {"minutes": took / 60}
                task = Task(configured(recipe, case, **length, **options.settings), case.train, seed, kept=kept)
                said = f" / {options.epochs} epochs" if options.epochs else ""
                said += " / in the seconds of the natural loop" if options.natural and recipe in ROBUST else ""
                said += "".join(f" / {name} {value}" for name, value in options.settings.items())
                store(
                    *(options, results, f"{head} / {recipe}{said}", str(seed)),
                    lambda task=task, mine=mine, timed=timed: {**timed, **won(case, mine, task)},
                )


def unlabelled(case: Case, options: argparse.Namespace, results: dict[str, Any], console: TerminalConsole) -> None:
    """Every recipe that needs no labels, on a few images, at the first speed-up."""
    mine, kept, timed = cut_once(case, "ours", options.speedups[0], options, console)
    for seed in options.seeds:
        chosen = np.random.default_rng(seed).permutation(case.train.ids)[: options.unlabelled]
        few = dataclasses.replace(case.train, ids=np.sort(chosen))
        for recipe in ("none", "calibrate", "distill", "robust-distill"):
            settings = configured(recipe, case, labels=False, epochs=options.epochs or _FEW_EPOCHS)
            task = Task(settings, few, seed, kept=kept)
            goal = f"{options.speedups[0]:g}x" if case.ratio is None else f"ratio {case.ratio:g}"
            key = f"{case.name} / {goal} / {options.unlabelled} unlabelled / {recipe}"
            store(options, results, key, str(seed), lambda task=task: {**timed, **won(case, mine, task)})


def won(case: Case, pruned: ModelBundle, task: Task) -> dict[str, Any]:
    """Recover, and judge the file."""
    started = time.perf_counter()
    found, info = recover(pruned, case.dense, task)
    seconds = time.perf_counter() - started
    return {**judged(case, found), "seconds": seconds, "recovery": info.model_dump(mode="json")}


def store(options: argparse.Namespace, results: dict[str, Any], key: str, seed: str, work: Any) -> dict[str, Any]:
    """The result under this key and seed: the one in the file, or a new one, written at once."""
    if seed not in results.get(key, {}):
        started = time.perf_counter()
        found = {**work(), "wall": time.perf_counter() - started}
        if options.out.exists():  # another process may have added something, too
            results.update(json.loads(options.out.read_text()))
        results.setdefault(key, {})[seed] = found
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return dict(results[key][seed])


def table(results: dict[str, Any]) -> str:
    """A line for each network, speed-up and arm: means over its seeds."""
    lines = [f"{'network / goal / arm':64} {'seeds':>5} {'speed-up':>8} {'accuracy':>8} {'robust':>7} {'seconds':>7}"]
    for key, runs in results.items():
        each = list(runs.values())
        mean = {
            name: statistics.mean(run.get(name, 0.0) for run in each)
            for name in ("speedup", "accuracy", "robust", "seconds")
        }
        lines.append(
            f"{key:64} {len(each):5} {mean['speedup']:7.2f}x {mean['accuracy']:8.2%} {mean['robust']:7.2%} "
            f"{mean['seconds']:7.1f}"
        )
    return "\n".join(lines)


def estimate(options: argparse.Namespace, results: dict[str, Any]) -> str:
    """Runs that are missing, and their wall time by the mean of those that were made of the same network."""
    lines = []
    for name in options.networks:
        recipes = options.recipes or CASES[name].recipes
        plain = len({recipe in ROBUST for recipe in recipes})
        arms = (4 if options.unlabelled else plain + len(recipes)) * len(options.seeds)
        planned = arms if options.unlabelled else 1 + arms * (1 if options.ratio else len(options.speedups))
        walls = [run["wall"] for key, runs in results.items() if key.startswith(name) for run in runs.values()]
        missing = max(0, planned - len(walls))
        said = f"about {missing * statistics.mean(walls) / 60:.0f} min" if walls else "none was made to go by"
        lines.append(f"{name:24} {missing:3} runs missing, {said}")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--out", type=Path, default=Path("recovery.json"))
    parser.add_argument("--networks", type=lambda text: text.split(","), default=list(CASES))
    parser.add_argument("--speedups", type=lambda text: [float(part) for part in text.split(",")], default=[2.0, 2.8])
    parser.add_argument("--ratio", type=float, default=None, help="of channels, in place of speed-ups")
    parser.add_argument("--recipes", type=lambda text: tuple(text.split(",")), default=(), help="for every network")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--attack", default="standard")
    parser.add_argument("--samples", type=int, default=300, help="test images that are attacked")
    parser.add_argument("--estimate", action="store_true", help="print what is missing, and about how long it takes")
    parser.add_argument("--unlabelled", type=int, default=0, help="compare recipes on so many images without labels")
    parser.add_argument("--epochs", type=int, help="of ours; with --unlabelled 30 unless told")
    parser.add_argument("--natural", action="store_true", help="robust recipes beside the natural plain loop")
    parser.add_argument("--settings", type=json.loads, default={}, help="of [recover], as JSON")
    parser.add_argument("--phases", type=lambda text: text.split(","), default=["plan", "train"])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Parse, run what is missing, print."""
    options = parsed()
    torch.set_num_threads(options.threads)
    from rich.console import Console

    console = TerminalConsole(Console(stderr=True))
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.estimate:
        print(estimate(options, results))
        return
    for name in options.networks:
        case = opened(name, options)
        with console.task(name):
            (unlabelled if options.unlabelled else compare)(case, options, results, console)
    print(table(results))


if __name__ == "__main__":
    main()
