"""What a plugin is: criteria, runtimes, attacks and devices. Built-ins register like everybody else.

Each protocol has an entry-point group (`edgeprune.criteria`, `.block_criteria`, `.runtimes`, `.attacks`, `.devices`);
`find` loads one by name and `names` lists what is installed. In `.attack_families` and `.criterion_families` stand
functions from a name to an attack or a criterion: for packages that bring many, and for what takes a number.
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgeprune.errors import RuntimeMissingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from edgeprune.latency.kernels import Found, Point
    from edgeprune.latency.settings import RemoteConfig
    from edgeprune.records import BlockSamples, Environment, LatencyFile, LatencyRequest, RuntimeInfo
    from edgeprune.types import (
        AttackBudget,
        AttackOutcome,
        BlockScores,
        ChannelGraph,
        Floats,
        ModelBundle,
        Progress,
        Scores,
        Split,
        Victim,
    )

GROUPS = {
    "criterion": "edgeprune.criteria",
    "block criterion": "edgeprune.block_criteria",
    "criterion family": "edgeprune.criterion_families",
    "runtime": "edgeprune.runtimes",
    "attack": "edgeprune.attacks",
    "attack family": "edgeprune.attack_families",
    "device": "edgeprune.devices",
}


class Criterion(Protocol):
    """Scores the channels of every group: what may go first. A function."""

    def __call__(self, bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores: ...


class BlockCriterion(Protocol):
    """Scores the blocks of a network (`graph.blocks`): which may go first. A function."""

    def __call__(self, bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> BlockScores: ...


class Session(Protocol):
    """A file opened in its runtime.

    One that knows what the runtime itself took for the last inference has a method `runtime_ms()` besides (ms, without
    the caller's part); it is reported beside the latency, which is what a caller waits for.
    """

    info: RuntimeInfo
    input_shape: tuple[int, int, int] | None
    """Channels, height, width as the file declares them; None when it leaves one of them open."""

    def logits(self, images: Floats) -> Floats:
        """Pixels float32 (N, C, H, W) to logits float32 (N, K)."""


class Runtime(Protocol):
    """What serves a file: names its format, makes it from the ONNX graph, opens it.

    One that can profile has a method `node_times(path, images, *, threads, seconds)` besides, which gives the number of
    inferences and a `NodeTime` a node; without it, the report says that the layers were not profiled.
    """

    name: str
    format: str
    suffix: str

    def version(self) -> str: ...

    def convert(self, onnx: Path, destination: Path) -> tuple[Path, ...]:
        """Make this runtime's file at `destination` from the ONNX file; all files that belong to it."""

    def open(self, path: Path, *, threads: int) -> Session:
        """Open a file in float32 with `threads` threads; ExportError when the runtime refuses it."""


class Attack(Protocol):
    """Looks for adversarials of an exported file. A function."""

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress
    ) -> AttackOutcome: ...


class Device(Protocol):
    """Where latency is measured. `kind` is what its figures are called; `machine` is None where it is this one."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Literal["measured-local", "measured-remote"]: ...

    @property
    def machine(self) -> Environment | None: ...

    def attach(self, settings: RemoteConfig) -> AbstractContextManager[Device]:
        """The device that the settings name, connected; DeviceError when it cannot be used."""

    def measure(self, request: LatencyRequest, *, progress: Progress) -> tuple[BlockSamples, ...]:
        """Run the request's interleaved blocks there."""

    def logits(self, file: LatencyFile, runtime: str, images: Floats, *, threads: int) -> tuple[RuntimeInfo, Floats]:
        """What the file gives there for images, float32 (N, C, H, W): float32 (N, K), and what ran it."""

    def time_layers(self, runtime: str, threads: int, batch_size: int, points: Sequence[Point], found: Found) -> None:
        """Time single layers there, as `edgeprune.latency.kernels` does here.

        Each figure (ms of the point) is handed to `found` as soon as it is here.
        """

    def probe(self) -> dict[str, Any]:
        """What the machine says of itself, and what was measured: see `edgeprune.latency.board.probe`."""


def names(kind: str) -> tuple[str, ...]:
    """Names of the installed plugins of a kind ("criterion", "runtime", "attack" or "device"), sorted."""
    return tuple(sorted({point.name for point in entry_points(group=GROUPS[kind])}))


def find(kind: str, name: str) -> Any:
    """The plugin of that name; UsageError with the nearest name when there is none.

    FAMILY:MEMBER, as in torchattacks:CW or adv-taylor:2/255, asks the plugin of the kind "attack family" or "criterion
    family" for its member of that name.
    """
    family, colon, member = name.partition(":")
    if colon and f"{kind} family" in GROUPS:
        return find(f"{kind} family", family)(member)
    for point in entry_points(group=GROUPS[kind]):
        if point.name == name:
            try:
                return point.load()
            except ImportError as error:
                raise RuntimeMissingError(
                    f"the {kind} {name} needs a package that is not installed: {error.name or error}",
                    hint=f"install it, or leave {name} out",
                ) from error
    raise UsageError(f"unknown {kind}: {name}", hint=did_you_mean(name, names(kind)))


def did_you_mean(word: str, known: tuple[str, ...]) -> str:
    """A hint that names the nearest of the known words, or all of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "known: " + ", ".join(known)
