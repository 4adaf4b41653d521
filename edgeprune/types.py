"""What flows between the rooms while it stays in memory: the seams.

Everything here is frozen. What crosses a file boundary stands in `edgeprune.records`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

    Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

Role = Literal["train", "test"]
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What happens to pixels before the network sees them; it lives inside every exported graph.

    `mean` and `std` have one value a channel (empty: no normalisation) and are in units of the pixels, whose
    range is `bounds` ([0, 1] unless the data says otherwise). An attack's epsilon is in the same units.
    `fit`, `resize` and `interpolation` say how an image *file* becomes pixels of the input shape; that happens
    before the graph, once, when the file is decoded.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    bounds: tuple[float, float] = (0.0, 1.0)
    fit: Literal["exact", "crop", "squash"] = "exact"
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True, slots=True)
class Architecture:
    """How the module of a bundle is built again.

    `kind` is "constructor" (`reference` is ``package.module:callable``, called with `arguments`) or "module"
    (a whole module came in; there is no constructor to call).
    """

    kind: Literal["constructor", "module"]
    reference: str
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class ModelBundle:
    """A network with everything that is needed to run it.

    `module` is in eval mode and maps *normalised* images, float32 of shape (N, *input_shape), to logits,
    float32 of shape (N, len(classes)). `network()` maps pixels to logits. `digest` is the sha256 of names,
    shapes, dtypes and bytes of the module's state. `source` names the file that it came from.
    """

    module: nn.Module
    input_shape: Shape
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    architecture: Architecture
    digest: str
    source: str = ""

    def network(self) -> nn.Module:
        """Pixels in, logits out: the module behind its preprocessing, in eval mode, sharing its weights."""
        from edgeprune.models.preprocessing import with_preprocessing

        return with_preprocessing(self.module, self.preprocessing)


@dataclass(frozen=True, slots=True)
class InputForm:
    """What images and labels must fit: a bundle has it, and so has an exported file that stands alone."""

    input_shape: Shape
    preprocessing: Preprocessing
    classes: tuple[str, ...]


class ImageSource(Protocol):
    """Images and labels that can be read at random; need not fit in memory."""

    @property
    def labels(self) -> Ints:
        """Class indices, int64 (N,)."""

    def read(self, ids: Ints) -> Floats:
        """Images `ids` as pixels: float32 (len(ids), C, H, W) inside the bounds, in the order asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The samples `ids` (int64, ascending) of a source, in one role. `digest` covers pixels, labels, and ids."""

    role: Role
    name: str
    source: ImageSource
    ids: Ints
    digest: str

    def __len__(self) -> int:
        return len(self.ids)

    def labels(self) -> Ints:
        """Labels of this split's samples, int64 (N,)."""
        return self.source.labels[self.ids]

    def groups(self) -> Ints | None:
        """Which samples show the same thing (frames of one sign), int64 (N,); None where the data does not say."""
        groups: Ints | None = getattr(self.source, "groups", None)
        return None if groups is None else groups[self.ids]

    def batches(self, size: int) -> Iterator[tuple[Floats, Ints]]:
        """(pixels, labels) in order, at most `size` samples at a time; the next ones are read meanwhile."""
        from edgeprune.data.ahead import ahead

        parts = (self.ids[start : start + size] for start in range(0, len(self.ids), size))
        return ahead((self.source.read(part), self.source.labels[part]) for part in parts)


@dataclass(frozen=True, slots=True)
class Member:
    """One tensor dimension that loses channels with its group.

    `name` is the module's (or the bare parameter's) qualified name, `kind` torch-pruning's operator type,
    `channels[i]` the indices of that dimension that go when the group's channel i goes. `dim` is the dimension of a
    bare parameter (a module's follows from its kind and role).

    Three kinds are edgeprune's own: MIX, a module that computes a mean over the channels; ATTRIBUTE, a number that a
    module keeps (`num_heads`), taken as a dimension of that size; SCALE, rows that are multiplied by the root of the
    share of units that stay. The role "zero": an activation multiplies the channels, so what makes them is zeroed
    where others would have their readers zeroed; nothing is cut there.
    """

    name: str
    kind: str
    role: Literal["out", "in", "zero"]
    channels: tuple[tuple[int, ...], ...]
    dim: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that must be removed together, named after the layer that makes them.

    `width` counts units, what can only go together: a channel, or one channel of each group of a grouped
    convolution, or one of each half of a split. Every unit takes equally many channels from a member.
    """

    name: str
    width: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A group that is left alone, and why."""

    name: str
    reason: str
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer: `macs` multiply-accumulates an image, `parameters` of the weight."""

    name: str
    kind: str
    out_channels: int
    in_channels: int
    macs: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Block:
    """A module that can be removed as a whole, and what stays in its place.

    kind "residual": its branches go and its shortcut stays, with what follows the sum; "chain": it goes from a chain of
    modules, and its input stays. `layers` are the convolutions and linear layers that go, `macs` and `parameters` what
    they and their norms cost. `keep` is what an input meets instead, in order: ("module", a name inside the block) or
    ("activation", a class of torch.nn); nothing: the identity. `silencers` are the parameters, named inside the block,
    that silence its branches when they are zero.
    """

    name: str
    kind: Literal["residual", "chain"]
    layers: tuple[str, ...]
    macs: int
    parameters: int
    keep: tuple[tuple[Literal["module", "activation"], str], ...] = ()
    silencers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChannelGraph:
    """Proved groups, refused ones, and the layers whose cost they share. `seconds`: tracing and proving.

    `blocks` and `block_refusals` are there when `edgeprune.pruning.blocks.with_blocks` has looked for blocks.
    """

    groups: tuple[Group, ...]
    refusals: tuple[Refusal, ...]
    layers: tuple[Layer, ...]
    macs: int
    parameters: int
    seconds: float = 0.0
    blocks: tuple[Block, ...] = ()
    block_refusals: tuple[Refusal, ...] = ()

    def group(self, name: str) -> Group:
        """The proved group called `name`; KeyError when there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Importance of every channel of every group: float64 (width,), comparable between groups.

    `normalisation` says in words what made them comparable.
    """

    criterion: str
    values: Mapping[str, np.ndarray[tuple[int], np.dtype[np.float64]]]
    normalisation: str


@dataclass(frozen=True, slots=True, eq=False)
class BlockScores:
    """Importance of every block, by name: finite, never below zero, with a mean of 1.

    `normalisation` says in words what the numbers were before.
    """

    criterion: str
    values: Mapping[str, float]
    normalisation: str


GoalKind = Literal["ratio", "macs_ratio", "speedup", "latency_ms"]


@dataclass(frozen=True, slots=True)
class Goal:
    """What pruning aims at.

    ratio: share of the channels of every group to remove, and share of the blocks. macs_ratio: share of the MACs to
    keep. speedup: dense over compressed p50 on the first runtime. latency_ms: p50 of the compressed file there.
    """

    kind: GoalKind
    value: float

    def share(self, speedup: float, latency_ms: float) -> float:
        """Share of a goal in time that these figures reach: 1 is exactly met, above 1 is faster."""
        return speedup / self.value if self.kind == "speedup" else self.value / latency_ms


GOAL_TOLERANCE = 0.03
"""A goal in time is met where the measured figure lies within this share of it."""


Progress = Callable[[str, float], None]
"""Called with a line of text and the share done in [0, 1]."""


class Looked(Protocol):
    """A forward pass of the file's graph at some points, from which their gradients can still be had."""

    @property
    def logits(self) -> Floats:
        """float32 (N, K)."""

    def of(self, mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Looked:
        """The points of `mask`, bool (N,)."""

    def gradients(self, seeds: Tensor) -> Tensor:
        """Of `seeds * logits`, seeds float32 (N, K), at the points: float32 (N, C, H, W)."""


@dataclass(frozen=True, slots=True, eq=False)
class Victim:
    """An exported file under attack: judged by its runtime, differentiated through `module`.

    `logits` runs the artifact: float32 (N, C, H, W) pixels to float32 (N, K). `module` is a torch network from
    pixels to logits that stands for the artifact in backward passes only; its own verdict never counts. `pull` gives
    the same gradients without torch, on the CPU: points (N, ...) and seeds (N, K) to logits (N, K) and the gradient of
    their product; None: `module` gives them. `look`, for files whose runtime it can stand in for: a forward pass whose
    gradients can be asked for later.
    """

    logits: Callable[[Floats], Floats]
    module: nn.Module
    bounds: tuple[float, float]
    pull: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    look: Callable[[Tensor], Looked] | None = None


@dataclass(frozen=True, slots=True)
class Course:
    """How long an attack may take, and where it notes how far it got.

    `seconds` in all, over every time that it is taken up again; None: as long as it needs. `journal`: a file that a
    killed attack goes on from, if it was written under the same `key`; None: none is kept.
    """

    seconds: float | None = None
    journal: Path | None = None
    key: str = ""


ENDLESS = Course()


@dataclass(frozen=True, slots=True)
class AttackBudget:
    """Norm, radius and effort of one attack. `epsilon` is in pixel units.

    `targets`: other classes that a targeted attack tries, nearest first; `queries`: questions that a black-box attack
    asks about an image. An attack uses what it knows of; a named suite has settings of its own. One that knows nothing
    of `course` runs from its start to its end.
    """

    norm: Literal["linf", "l2", "l1"]
    epsilon: float
    steps: int
    restarts: int
    seed: int
    targets: int = 9
    queries: int = 5000
    course: Course = ENDLESS


@dataclass(frozen=True, slots=True, eq=False)
class AttackOutcome:
    """What an attack found.

    adversarials: float32 (N, C, H, W), the clean image where none was found. fell: bool (N,), True where the
    *runtime* misclassified an iterate. gradient_health: bool (N,), False where the gradient was zero or not
    finite at the start of every restart. gain: float32 (N,), the largest fall of the runtime's margin from a start to
    a later iterate, as a share of the clean margin; None where an attack cannot say. late: float32 (N,), how far the
    lowest margin of all fell in the last tenth of the last pass's steps, the same share. black_box: bool (N,), stood
    against every part that follows gradients and fell to one that does not. unfinished: what was still to do when the
    time was up, in words; empty where everything was done.
    """

    adversarials: Tensor
    fell: Tensor
    gradient_health: Tensor
    gain: Tensor | None = None
    late: Tensor | None = None
    black_box: Tensor | None = None
    unfinished: tuple[str, ...] = ()
