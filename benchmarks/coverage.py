"""Which networks can be pruned without being told how: edgeprune beside torch-pruning alone, network by network.

    python benchmarks/coverage.py [--only resnet18,vit_b_16] [--limit 240] [--json coverage.json]

Networks of torchvision and timm (needed only here) with random weights, on their default input. Each has to be pruned,
run, be exported to ONNX and give the same logits in ONNX Runtime for a batch of 1 and of 2. Edgeprune gets no settings
but `macs_ratio` 0.5 and no data; torch-pruning gets its defaults (a magnitude pruner, half the channels of every layer,
the classifier left alone) and then edgeprune's own export, so that only the pruning differs. Every attempt is a process
of its own with a time limit. MACs are counted by torch's own counter, the same one for both.

What it cannot see: whether torch-pruning's network is still the dense one without some of its channels. Edgeprune
proves that before it hands a network out. Prints a table (`trace`: seconds of tracing and proving) and the reason of
every failure; writes JSON after each network.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the parent process stays light: its size would count as its children's
    from torch import nn

    from edgeprune.types import ModelBundle

TORCHVISION = [
    "alexnet", "vgg11", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "googlenet",
    "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mnasnet1_0", "shufflenet_v2_x1_0", "squeezenet1_0",
    "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "swin_t",
    "swin_v2_t", "maxvit_t", "vit_b_16",
]  # fmt: skip
TIMM = [
    "ghostnet_100", "repvgg_a0", "mobilevit_s", "efficientformerv2_s0", "fastvit_t8", "mobilenetv4_conv_small",
    "edgenext_xx_small", "levit_128s", "res2net50_26w_4s", "hardcorenas_a", "deit_tiny_patch16_224",
    "mixer_s32_224", "poolformer_s12", "repghostnet_050", "tinynet_e", "mobileone_s0", "ghostnetv2_100",
    "xception41", "dla34", "hrnet_w18_small", "resnest14d", "ecaresnet26t", "cspresnet50", "nf_resnet26",
    "convnextv2_atto", "starnet_s1",
]  # fmt: skip
MACS_RATIO = 0.5
PARITY = 1e-3  # of the largest logit: random weights make logits of any size
SIDES = {"ours": "edgeprune", "peer": "torch-pruning"}


@dataclasses.dataclass(slots=True)
class Attempt:
    """What came of one network on one side; a reason where it failed, at the stage that was reached."""

    network: str
    side: str
    ok: bool = False
    stage: str = "start"
    reason: str = ""
    macs_removed: float | None = None
    parity: float | None = None
    groups: int | None = None
    refusals: int | None = None
    trace_seconds: float | None = None
    seconds: float = 0.0
    peak_mb: float = 0.0


def attempt(network: str, side: str, note: Path, threads: int) -> None:
    """Try one network in this process; the result is written to `note` whenever a stage begins, and at the end."""
    result, started = Attempt(network, side), time.monotonic()

    def at(stage: str) -> None:
        result.stage = stage
        result.seconds = time.monotonic() - started
        result.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        note.write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")

    warnings.simplefilter("ignore")
    try:
        import torch

        torch.set_num_threads(threads)
        at("build")
        bundle = build(network)
        started = time.monotonic()
        at("prune")
        pruned = PRUNERS[side](bundle, result)
        at("forward")
        check_forward(pruned, bundle, result)
        at("export")
        check_export(pruned, result, lambda: at("parity"))
        result.ok = True
    except Exception as error:  # noqa: BLE001  # the reason of a failure is what this script is for
        lines = str(error).strip().splitlines() or ["no message"]
        where = getattr(error, "where", "")
        result.reason = f"{type(error).__name__}: {lines[0]}"[:240] + (f" ({where.splitlines()[0]})" if where else "")
    at("done" if result.ok else result.stage)


def build(name: str) -> ModelBundle:
    """A network by name, torchvision's before timm's: weights random by seed 0, none all zero, no trivial batch norm.

    SkipError when it is timm's and timm is not there.
    """
    import torch

    declare_torchvision()
    import torchvision

    from edgeprune.config import ModelConfig
    from edgeprune.models import from_module

    torch.manual_seed(0)
    if name in torchvision.models.list_models():
        more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        module = torchvision.models.get_model(name, weights=None, **more)
        shape = (3, 299, 299) if name == "inception_v3" else (3, 224, 224)
    else:
        try:
            import timm
        except ImportError as error:
            raise SkipError(f"timm cannot be imported: {error}") from error
        module = timm.create_model(name, exportable=True)
        shape = module.default_cfg["input_size"]
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.9, 1.1)
    with torch.no_grad():  # a head or a branch that starts at zero would hide whatever happens to it
        for leaf, parameter in module.named_parameters():
            if not leaf.endswith("bias") and not bool(parameter.any()):
                parameter.normal_(0, 0.1)
    return from_module(module.eval(), ModelConfig(input_shape=shape), source=name)


class SkipError(Exception):
    """The network cannot be built here."""


def declare_torchvision() -> None:
    """Make torchvision importable beside a torch that its binary operators do not fit: they are only declared."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        import torch

        global _OPERATORS  # noqa: PLW0603  # a library's operators live as long as it does
        _OPERATORS = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


_OPERATORS: Any = None


def ours(bundle: ModelBundle, result: Attempt) -> ModelBundle:
    """What `edgeprune compress --macs-ratio 0.5` does up to recovery, with every other setting at its default."""
    from edgeprune import protocols
    from edgeprune.config import Config
    from edgeprune.latency.profiles import load_profile
    from edgeprune.pruning.graph import trace
    from edgeprune.pruning.plan import allocate, apply, make_plan
    from edgeprune.types import Goal

    config, goal = Config(), Goal("macs_ratio", MACS_RATIO)
    multiple = load_profile(config.run.target).multiple_for(config.latency.runtimes[0])
    graph = trace(bundle)
    result.groups, result.refusals, result.trace_seconds = len(graph.groups), len(graph.refusals), graph.seconds
    scores = protocols.find("criterion", config.prune.criterion)(bundle, graph, None, seed=0)
    widths = allocate(graph, scores, goal, multiple)
    return apply(make_plan(bundle, graph, scores, widths, goal, multiple, 0), bundle, graph)


def peer(bundle: ModelBundle, result: Attempt) -> ModelBundle:
    """torch-pruning's README: a magnitude pruner with its defaults, the layers that make the logits left alone."""
    import copy

    import torch
    import torch_pruning as tp

    from edgeprune.models import digest

    module = copy.deepcopy(bundle.module)
    example = torch.randn(1, *bundle.input_shape)
    classes = len(bundle.classes)
    last = [
        layer
        for layer in module.modules()
        if classes == (getattr(layer, "out_features", None) or getattr(layer, "out_channels", None))
    ]
    pruner = tp.pruner.MagnitudePruner(
        module, example, importance=tp.importance.MagnitudeImportance(), ignored_layers=last
    )
    pruner.step()
    return dataclasses.replace(bundle, module=module.eval(), digest=digest(module))


PRUNERS: dict[str, Callable[[Any, Attempt], Any]] = {"ours": ours, "peer": peer}


def check_forward(pruned: ModelBundle, dense: ModelBundle, result: Attempt) -> None:
    """The pruned network runs on two images, its logits are finite, and MACs have gone."""
    import torch

    images = torch.rand(2, *pruned.input_shape)
    with torch.no_grad():
        logits = pruned.module(images)
    if logits.shape != (2, len(dense.classes)) or not bool(torch.isfinite(logits).all()):
        raise ValueError(f"logits of shape {tuple(logits.shape)}, finite: {bool(torch.isfinite(logits).all())}")
    result.macs_removed = 1 - macs(pruned.module, images[:1]) / macs(dense.module, images[:1])
    if not result.macs_removed > 0:
        raise ValueError("nothing was removed")


def macs(module: nn.Module, image: Any) -> float:
    """Multiply-accumulates of one image, by torch's counter (convolutions, matrix products, attention)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(image)
    return float(counter.get_total_flops()) / 2


def check_export(pruned: ModelBundle, result: Attempt, exported: Callable[[], None]) -> None:
    """ONNX Runtime gives the logits of torch for a batch of 1 and of 2."""
    import numpy as np
    import torch
    from edgeprune.export.onnx import export_onnx

    from edgeprune import protocols

    images = np.random.default_rng(0).random((2, *pruned.input_shape), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(pruned, path)
        exported()
        session = protocols.find("runtime", "onnxruntime").open(path, threads=1)
        differences = []
        for size in (1, 2):
            with torch.no_grad():
                expected = pruned.network()(torch.from_numpy(images[:size])).numpy()
            differences.append(float(np.abs(session.logits(images[:size]) - expected).max() / np.abs(expected).max()))
    result.parity = max(differences)
    if not np.max(differences) <= PARITY:
        raise ValueError(f"the exported file differs by {result.parity:.2g} of the largest logit")


def supervised(network: str, side: str, limit: float, threads: int, memory_gb: float = 12) -> dict[str, Any]:
    """One attempt in a process of its own, ended with all that it started when its time is over.

    Its address space is limited: one that grows without end must not take others with it.
    """
    started, most = time.monotonic(), int(memory_gb * 1e9)
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "attempt.json"
        command = [sys.executable, __file__, "--attempt", network, side, str(note), "--threads", str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),  # noqa: PLW1509  # no threads here
        )
        try:
            _, errors = process.communicate(timeout=limit)
            lost = f"the process ended with {process.returncode}: {errors.decode(errors='replace').strip()[-200:]}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            lost = f"not done after {limit:g} s"
        result: dict[str, Any] = dataclasses.asdict(Attempt(network, side))
        if note.exists():
            result = json.loads(note.read_text(encoding="utf-8"))
    if not result["ok"] and not result["reason"]:
        result["reason"], result["seconds"] = lost, time.monotonic() - started
    return result


def row(pair: dict[str, dict[str, Any]]) -> str:
    """One network, both sides."""
    cells = [f"{next(iter(pair.values()))['network']:26}"]
    for result in pair.values():
        removed = "-" if result["macs_removed"] is None else f"{result['macs_removed']:.0%}"
        verdict = "ok" if result["ok"] else "skip" if "SkipError" in result["reason"] else f"no: {result['stage']}"
        traced = result.get("trace_seconds")
        cells.append(
            f"{verdict:12} {removed:>6} {'-' if traced is None else format(traced, '.1f'):>6} "
            f"{result['seconds']:6.0f} {result['peak_mb']:7.0f}"
        )
    return " | ".join(cells)


def report(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Counts and the reasons of all failures."""
    lines = []
    for side, name in SIDES.items():
        tried = [pair[side] for pair in results.values() if side in pair and "SkipError" not in pair[side]["reason"]]
        good = [result for result in tried if result["ok"]]
        much = sum(result["macs_removed"] >= 0.4 for result in good)
        lines.append(f"{name}: {len(good)} of {len(tried)}, {much} of them with at least 40 % of the MACs removed")
    lines += [
        f"  {network}, {SIDES[side]}, {result['stage']}: {result['reason']}"
        for network, pair in results.items()
        for side, result in pair.items()
        if not result["ok"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse, try every network on both sides, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names, separated by commas (default: all 49)")
    parser.add_argument("--sides", default=",".join(SIDES), help="ours, peer, or both (default)")
    parser.add_argument("--limit", type=float, default=240, help="seconds for each network and side")
    parser.add_argument("--memory-gb", type=float, default=12, help="address space of each process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("coverage.json"))
    parser.add_argument("--attempt", nargs=3, metavar=("NETWORK", "SIDE", "NOTE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attempt:
        network, side, note = options.attempt
        attempt(network, side, Path(note), options.threads)
        return
    networks = options.only.split(",") if options.only else [*TORCHVISION, *TIMM]
    heading = f"{'result':12} {'MACs':>6} {'trace':>6} {'s':>6} {'MB':>7}"
    print(f"{'':26} | {SIDES['ours']:41} | {SIDES['peer']}\n{'network':26} | {heading} | {heading}", flush=True)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for network in networks:
        results[network] = {
            side: supervised(network, side, options.limit, options.threads, options.memory_gb)
            for side in options.sides.split(",")
        }
        print(row(results[network]), flush=True)
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(report(results))


if __name__ == "__main__":
    main()
