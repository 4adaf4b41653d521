"""Thin ice and the security curve in words and formatted numbers: one wording for HTML, Markdown and terminal.

What was not measured is here as the reason why.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from edgeprune.records import CurveCheck, FlipRank, ImageAtRisk, Report, SecurityCurve, ThinIce, Unmeasured
from edgeprune.reporting import numbers as n
from edgeprune.reporting.view import Figure, drop, proportion

KINDS = {
    "lost": ("Lost", "right in the dense file, wrong in the compressed one"),
    "won": ("Won", "wrong in the dense file, right in the compressed one"),
    "lost at epsilon": ("Lost at {}", "stood under attack in the dense file alone"),
    "won at epsilon": ("Won at {}", "stood under attack in the compressed file alone"),
}
FATES = {
    "lost": ("Lost", "The dense file gets these right, the compressed one does not."),
    "lost at epsilon": (
        "Lost under attack",
        "They stood under attack in the dense file and fall in the compressed one.",
    ),
    "held": ("Held, on the thinnest ice", "Nearest to the boundary of all that held: the next change may flip these."),
}
_SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Rank:
    """A line of the rank table: what flipped, of how many, and whether flips are nearer."""

    label: str
    detail: str
    images: int
    flipped: int
    auroc: Figure
    test: str


@dataclass(frozen=True, slots=True)
class Tenth:
    """A line of the table by decile: the distances, and the share lost, clean and at epsilon."""

    span: str
    images: int
    lost: Figure
    lost_at_epsilon: Figure


@dataclass(frozen=True, slots=True)
class Risk:
    """One thumbnail: a PNG in base64, the true class, what the compressed file says, how far the boundary was."""

    id: int
    thumbnail: str
    label: str
    said: str
    distance: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """The images of one fate."""

    title: str
    words: str
    images: tuple[Risk, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """A line of the curve's table."""

    epsilon: str
    dense: Figure
    compressed: Figure
    change: Figure
    test: str
    remark: str
    doubts: tuple[str, ...]


def distance(value: float | None, epsilon: str) -> str:
    """A distance in the unit of the run's epsilon: "1.3/255" where that is a fraction of 255."""
    if value is None:
        return "none found"
    return f"{n.significant(255 * value, 2)}/255" if epsilon.endswith("/255") else n.significant(value, 3)


def lead(ice: ThinIce) -> str:
    """The answer in a sentence: are images lost where the ice was thin?"""
    first, attacked = ice.ranks[0], ice.ranks[2]
    said = [
        _told(one, words) for one, words in ((first, "lost"), (attacked, "lost under attack")) if one.auroc is not None
    ]
    if not said:
        return "No image was lost, clean or under attack, so there is nothing to rank."
    return " ".join(said)


def ranks(ice: ThinIce) -> tuple[Rank, ...]:
    """The rank table, in the order of the record."""
    return tuple(_rank(one, ice.epsilon) for one in ice.ranks)


def tenths(ice: ThinIce) -> tuple[Tenth, ...]:
    """The table by decile, nearest first."""
    return tuple(
        Tenth(
            span=f"{distance(one.low, ice.epsilon)} to {distance(one.high, ice.epsilon)}",
            images=one.lost.total,
            lost=_share(one.lost.count, one.lost.total, proportion(one.lost).spread),
            lost_at_epsilon=Figure("none stood")
            if one.lost_at_epsilon is None
            else _share(one.lost_at_epsilon.count, one.lost_at_epsilon.total, proportion(one.lost_at_epsilon).spread),
        )
        for one in ice.deciles
    )


def galleries(ice: ThinIce, classes: tuple[str, ...]) -> tuple[Gallery, ...]:
    """The list at risk by fate; a fate without an image has no gallery."""
    found = []
    for fate, (title, words) in FATES.items():
        images = tuple(_risk(one, classes, ice.epsilon) for one in ice.at_risk if one.fate == fate)
        if images:
            found.append(Gallery(title, words, images))
    return tuple(found)


def net(ice: ThinIce) -> str:
    """Losses and gains apart, then the net change, which hides both."""
    lost, won, lost_eps, won_eps = (one.flipped for one in ice.ranks)
    return (
        f"Clean: {lost:,} lost, {won:,} won, net {_signed(-ice.net_lost)}. "
        f"At {ice.epsilon}: {lost_eps:,} lost, {won_eps:,} won, net {_signed(-ice.net_lost_at_epsilon)}."
    )


def how(ice: ThinIce) -> str:
    """How distances were found, on how many images, and what was not found."""
    search = ice.search
    quartiles = ""
    if ice.quartiles is not None:
        low, middle, high = (distance(value, ice.epsilon) for value in ice.quartiles)
        quartiles = (
            f" Half of the {ice.right:,} images that it gets right lie within {middle} (quartiles {low} and {high})."
        )
    missed = f" {ice.censored:,} have none: nothing was found, so they count as farthest." if ice.censored else ""
    return (
        f"{search.norm} distance to the dense file's boundary, searched by {search.attack} with {search.steps} steps "
        f"around {search.samples:,} images and judged by {ice.runtime.name}: an upper bound of the true distance."
        f"{quartiles}{missed}"
    )


def checked(curve: SecurityCurve) -> tuple[Checked, ...]:
    """The curve's table, smallest epsilon first."""
    return tuple(_checked(one, len(curve.checks)) for one in curve.checks)


def beyond(report: Report) -> str:
    """What the distances found at the run's own epsilon that the attack had not; empty where that is nothing."""
    robust, curve = report.robustness, report.curve
    if isinstance(robust, Unmeasured) or isinstance(curve, Unmeasured) or curve.search.samples != robust.drop.total:
        return ""
    own = next((one for one in curve.checks if one.epsilon == robust.threat.epsilon), None)
    sides = (
        ()
        if own is None
        else (
            ("dense", robust.dense.robust.count - own.dense.count),
            ("compressed", robust.compressed.robust.count - own.compressed.count),
        )
    )
    more = [f"{count:,} {side}" for side, count in sides if count > 0]
    if not more:
        return ""
    return (
        f"The search for distances found adversarials within {robust.threat.epsilon} that {robust.threat.attack} did "
        f"not ({', '.join(more)}): the robust accuracy above is too high by as much."
    )


def summary(report: Report) -> tuple[tuple[str, str], ...]:
    """(name, line) for a terminal: thin ice and the curve, or why there is none where there is an attack."""
    if isinstance(report.robustness, Unmeasured):
        return ()
    ice, curve = report.thin_ice, report.curve
    if isinstance(ice, Unmeasured) or isinstance(curve, Unmeasured):
        return (("Thin ice and curve", f"unmeasured: {_reason(ice, curve)}"),)
    shown = "; ".join(
        f"{one.epsilon}: {one.dense.text} dense, {one.compressed.text} compressed" for one in checked(curve)
    )
    return (("Thin ice", f"{lead(ice)} {net(ice)}"), ("Robust accuracy at most", shown))


def _reason(*measured: object) -> str:
    return next(one.unmeasured for one in measured if isinstance(one, Unmeasured))


def _told(one: FlipRank, words: str) -> str:
    assert one.auroc is not None
    assert one.p_value is not None
    assert one.interval is not None
    chance, interval, where = one.auroc, one.interval, "nearer to"
    if one.auroc < 0.5:
        chance, where = 1 - one.auroc, "farther from"
        interval = interval.model_copy(update={"low": 1 - one.interval.high, "high": 1 - one.interval.low})
    spread = f"{100 * interval.confidence:g} % interval {n.span(interval, n.percent)}, {n.p_value(one.p_value)}"
    if one.p_value >= _SIGNIFICANT:
        return f"Nearness does not significantly tell which images are {words} ({n.percent(chance)} {where}; {spread})."
    image = "An image" if one.flipped > 1 else "The one image"
    return f"{image} {words} lies {where} the boundary than one that held in {n.percent(chance)} of pairs ({spread})."


def _rank(one: FlipRank, epsilon: str) -> Rank:
    label, detail = KINDS[one.kind]
    label = label.format(epsilon)
    if one.auroc is None or one.interval is None or one.p_value is None:
        return Rank(label, detail, one.images, one.flipped, Figure("unmeasured"), one.unmeasured)
    spread = n.span(one.interval, lambda value: f"{value:.2f}")
    test = n.p_value(one.p_value) if one.exact else f"{n.p_value(one.p_value)} (approximate)"
    return Rank(label, detail, one.images, one.flipped, Figure(f"{one.auroc:.2f}", spread), test)


def _share(count: int, total: int, spread: str) -> Figure:
    return Figure(f"{count:,} of {total:,}", f"{n.percent(count / total)}, {spread}")


def _risk(one: ImageAtRisk, classes: tuple[str, ...], epsilon: str) -> Risk:
    def name(index: int) -> str:
        said = classes[index] if 0 <= index < len(classes) else str(index)
        return f"class {said}" if said.isdigit() else said

    said = name(one.compressed) if one.fate == "lost" else ""
    return Risk(one.id, one.thumbnail, name(one.label), said, distance(one.distance, epsilon))


def _checked(one: CurveCheck, checks: int) -> Checked:
    extra = [
        f"{more:,} {side}"
        for side, more in (
            ("dense", one.dense_alone - one.dense.count),
            ("compressed", one.compressed_alone - one.compressed.count),
        )
        if more
    ]
    remark = f"{one.attack} found more than the distances ({', '.join(extra)}): the lower value stands" if extra else ""
    adjusted = " (Holm)" if checks > 1 else ""
    differs = "differ" if one.p_holm < _SIGNIFICANT else "no significant difference"
    return Checked(
        epsilon=one.epsilon,
        dense=proportion(one.dense),
        compressed=proportion(one.compressed),
        change=drop(one.drop),
        test=f"{differs}, {n.p_value(one.p_holm)}{adjusted}",
        remark=remark,
        doubts=one.warnings,
    )


def _signed(value: int) -> str:
    return n.signed(f"{value:,}".replace("-", "−"))


def in_units(epsilon: str) -> int:
    """How many times an axis value is shown: 255 where epsilons are fractions of 255, else 1."""
    return 255 if Fraction(epsilon) and epsilon.endswith("/255") else 1
