"""How good are latency estimates? Validated on published results: MLPerf Inference v1.0 and v1.1, single stream.

    python benchmarks/estimator.py --data FOLDER [--json FILE]

FOLDER holds mlperf_krai_singlestream.json: Krai's open-division results (Apache-2.0,
https://github.com/mlcommons/inference_results_v1.0 and _v1.1) as rows of sys, ver, div, model, p50 (ns), valid.

A set is one system, one family (MobileNet v1 or v2) and one precision. On each set, the model of
`edgeprune.latency.estimate` is fitted to at most six networks, the narrowest and the widest at three resolutions
(`choose_anchors`: a rule that sees no time), and tested on every network of a width that it has not seen. Beside it
stand what people use instead: MACs with one anchor, and a roofline of peak and bandwidth. The layers come from the
papers (Howard et al. 2017; Sandler et al. 2018); their MACs are checked against the published ones.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from edgeprune.latency.estimate import Anchor, Work, choose_anchors, errors, fit

Set = tuple[str, str, str]
Network = tuple[float, int]
MODEL = re.compile(r"mobilenet-(v[12])-([\d.]+)-(\d+)-(non-quantized|quantized)")
FEWEST = 12
CLASSES = 1001
V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *(((512, 1),) * 5), (1024, 2), (1024, 1))
V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
PUBLISHED_MACS = {  # millions: the tables of the two papers' repositories (tensorflow/models, slim)
    ("v1", 1.0, 224): 569,
    ("v1", 0.5, 160): 76,
    ("v1", 0.25, 128): 14,
    ("v2", 1.0, 224): 300,
    ("v2", 1.4, 224): 582,
    ("v2", 0.75, 192): 153,
    ("v2", 0.5, 160): 50,
}
PEAK_GMACS, BANDWIDTH_GB_S = (
    {"rpi4": 23.95, "firefly": 14.35, "xavier": 40.0},
    {"rpi4": 2.74, "firefly": 5.0, "xavier": 30.0},
)
"""For the roofline alone. rpi4 and firefly (RK3399, big cores): cpufp's benchmark results, halved to MACs; the rest is
the order of magnitude, which is all that a roofline needs to be far off."""


def rounded(channels: float) -> int:
    """MobileNet v2's widths: multiples of 8, never below 90 % of what was asked for."""
    width = max(8, int(channels + 4) // 8 * 8)
    return width + 8 if width < 0.9 * channels else width


class Counter:
    """Adds up the work of layers, one after the other; `size` is the side of the map."""

    def __init__(self, size: int, bytes_each: int) -> None:
        self.size, self.each, self.work = size, bytes_each, Work()

    def conv(self, kind: str, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        """A convolution with "same" padding."""
        before, self.size = self.size, -(-self.size // stride)
        macs = self.size**2 * kernel**2 * outputs * (1 if kind == "depthwise" else inputs)
        moved = inputs * before**2 + outputs * self.size**2
        self.work = self.work.plus(Work(**{kind: macs}, bytes=self.each * moved, operators=1))

    def add(self, channels: int) -> None:
        """A residual addition."""
        self.work = self.work.plus(Work(bytes=3 * self.each * channels * self.size**2, operators=1))

    def linear(self, inputs: int) -> None:
        """Pooling and the classifier."""
        moved = inputs * self.size**2 + inputs + CLASSES
        self.work = self.work.plus(Work(linear=inputs * CLASSES, bytes=self.each * moved, operators=2))


def mobilenet_v1(width: float, resolution: int, bytes_each: int) -> Work:
    """Work of MobileNet v1."""
    count, inputs = Counter(resolution, bytes_each), int(32 * width)
    count.conv("convolution", 3, inputs, 3, 2)
    for channels, stride in V1:
        outputs = int(channels * width)
        count.conv("depthwise", inputs, inputs, 3, stride)
        count.conv("pointwise", inputs, outputs)
        inputs = outputs
    count.linear(inputs)
    return count.work


def mobilenet_v2(width: float, resolution: int, bytes_each: int) -> Work:
    """Work of MobileNet v2."""
    count, inputs = Counter(resolution, bytes_each), rounded(32 * width)
    count.conv("convolution", 3, inputs, 3, 2)
    for expansion, channels, repeats, stride in V2:
        outputs = rounded(channels * width)
        for repeat in range(repeats):
            inner = inputs * expansion
            if expansion > 1:
                count.conv("pointwise", inputs, inner)
            count.conv("depthwise", inner, inner, 3, 1 if repeat else stride)
            count.conv("pointwise", inner, outputs)
            if repeat:
                count.add(outputs)
            inputs = outputs
    last = rounded(1280 * width) if width > 1 else 1280
    count.conv("pointwise", inputs, last)
    count.linear(last)
    return count.work


FAMILIES: dict[str, Callable[[float, int, int], Work]] = {"v1": mobilenet_v1, "v2": mobilenet_v2}


def read_sets(path: Path) -> dict[Set, dict[Network, float]]:
    """p50 in ms (median of a network's valid runs), by set."""
    runs: dict[tuple[Set, Network], list[float]] = defaultdict(list)
    for row in json.loads(path.read_text(encoding="utf-8")):
        found = MODEL.fullmatch(row["model"])
        if found and row["div"] == "open" and row["valid"] == "VALID":
            family, width, resolution, precision = found.groups()
            key = (f"{row['ver']} {row['sys']}", family, "float32" if precision == "non-quantized" else "int8")
            runs[key, (float(width), int(resolution))].append(row["p50"] / 1e6)
    sets: dict[Set, dict[Network, float]] = defaultdict(dict)
    for (key, network), times in runs.items():
        sets[key][network] = median(times)
    return {key: networks for key, networks in sorted(sets.items()) if len(networks) >= FEWEST}


def anchor_of(key: Set, network: Network, p50_ms: float) -> Anchor:
    work = FAMILIES[key[1]](*network, 1 if key[2] == "int8" else 4)
    return Anchor(name=f"{key[1]} {network[0]:g} {network[1]}", work=work, p50_ms=p50_ms)


def by_macs(anchors: Sequence[Anchor], tests: Sequence[Anchor]) -> list[float]:
    """One anchor, the largest network, scaled by MACs."""
    most = max(anchors, key=lambda anchor: anchor.work.macs)
    rate = most.p50_ms / most.work.macs
    return [abs(rate * test.work.macs / test.p50_ms - 1) for test in tests]


def by_roofline(key: Set, tests: Sequence[Anchor]) -> list[float]:
    """Peak and bandwidth, nothing measured."""
    board = key[0].split()[1].split("-")[0]
    board = "rpi4" if board.startswith("rpi4") else board
    peak = PEAK_GMACS[board] * (2 if key[2] == "int8" else 1)
    return [
        abs(max(test.work.macs / peak, test.work.bytes / BANDWIDTH_GB_S[board]) / 1e6 / test.p50_ms - 1)
        for test in tests
    ]


def summary(off: Sequence[float]) -> dict[str, float]:
    return {"median": median(off), "within_10": sum(one <= 0.1 for one in off) / len(off), "networks": len(off)}


def check_macs() -> None:
    """The layer tables give the published MACs within 3 %."""
    for (family, width, resolution), published in PUBLISHED_MACS.items():
        found = FAMILIES[family](width, resolution, 4).macs / 1e6
        assert abs(found / published - 1) < 0.04, (family, width, resolution, found, published)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    check_macs()
    every: dict[str, list[float]] = defaultdict(list)
    lines = []
    print(f"{'system, family, precision':62} {'median':>7} {'<=10 %':>7} {'tested':>7}")
    for key, networks in read_sets(arguments.data / "mlperf_krai_singlestream.json").items():
        chosen = choose_anchors(tuple(networks))
        widths = {width for width, _ in chosen}
        anchors = [anchor_of(key, network, networks[network]) for network in chosen]
        tests = [anchor_of(key, network, p50) for network, p50 in networks.items() if network[0] not in widths]
        off = errors(fit(anchors), tests)
        every["operator classes"].extend(off)
        every["MACs, one anchor"].extend(by_macs(anchors, tests))
        every["peak roofline"].extend(by_roofline(key, tests))
        found = summary(off)
        lines.append({"set": " ".join(key), **found})
        print(f"{' '.join(key):62} {found['median']:7.1%} {found['within_10']:7.0%} {len(off):7}")
    print()
    totals = {name: summary(off) for name, off in every.items()}
    for name, found in totals.items():
        print(f"{name:62} {found['median']:7.1%} {found['within_10']:7.0%} {found['networks']:7}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"sets": lines, "methods": totals}, indent=2) + "\n")


if __name__ == "__main__":
    main()
