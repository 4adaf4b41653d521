"""The stages around the decision boundary: distances, thin ice, the security curve. `pipeline.compress` calls `survey`.

Each search and each check is a stage of the run folder of its own, so that a killed run goes on from the last one. What
they find goes into the report and, image by image, into evidence.npz.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.records import (
    DistanceSearch,
    RobustnessComparison,
    SecurityCurve,
    Side,
    ThinIce,
    ThreatModel,
    Unmeasured,
)
from edgeprune.runfolder import STAGES
from edgeprune.stages import EVIDENCE, STEMS, Exported
from edgeprune.steps import Run
from edgeprune.types import Split

if TYPE_CHECKING:
    from edgeprune.robustness.curve import Check, Fallen
    from edgeprune.robustness.distances import Distances
    from edgeprune.robustness.outcome import FileOutcome
    from edgeprune.types import Ints

_NOT_ASKED = Unmeasured(unmeasured="distances were not asked for (--distance-samples 0)")
_SIDES: tuple[Side, Side] = ("dense", "compressed")


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What was found around the boundary."""

    thin_ice: ThinIce | Unmeasured
    curve: SecurityCurve | Unmeasured


@dataclass(frozen=True, slots=True, eq=False)
class _Site:
    """Where the survey works: a run, its files, and what the attack left. `outcomes`: dense, compressed."""

    run: Run
    exported: Exported
    robustness: RobustnessComparison
    outcomes: tuple[FileOutcome, FileOutcome]

    def __post_init__(self) -> None:
        assert np.array_equal(self.outcomes[0].ids, self.outcomes[1].ids)

    @property
    def attacked(self) -> Ints:
        return self.outcomes[0].ids

    def sha256(self, side: Side) -> str:
        return self.robustness.dense.sha256 if side == "dense" else self.robustness.compressed.sha256


def survey(run: Run, exported: Exported, robustness: RobustnessComparison | Unmeasured) -> Surveyed:
    """Search the boundary of both files and check the curve; Unmeasured where there is nothing to survey.

    Then, with every stage finished, write evidence.npz: a stage that is made again removes it.
    """
    from edgeprune.robustness.evidence import write_evidence
    from edgeprune.robustness.outcome import FileOutcome

    if isinstance(robustness, Unmeasured):
        return Surveyed(robustness, robustness)
    paths = (run.folder.path / STAGES / f"attack-{side}.npz" for side in STEMS)
    dense, compressed = (FileOutcome.load(path) for path in paths)
    site = _Site(run, exported, robustness, (dense, compressed))
    surveyed, distances = _survey(site)
    files: dict[str, FileOutcome] = dict(zip(STEMS, site.outcomes, strict=True))
    write_evidence(run.folder.path / EVIDENCE, files, robustness.threat, {**distances, **_divergent(run)})
    return surveyed


def _divergent(run: Run) -> dict[str, Any]:
    """What the attack stage found that divides the files, image by image; nothing where it did not look."""
    from edgeprune.robustness.archives import read_arrays

    path = run.folder.path / STAGES / "divergence.npz"
    return dict(read_arrays(path, ("divergent_found", "divergent_points"))) if path.is_file() else {}


def _survey(site: _Site) -> tuple[Surveyed, dict[str, Any]]:
    run, threat = site.run, site.robustness.threat
    if run.config.boundary.samples == 0:
        return Surveyed(_NOT_ASKED, _NOT_ASKED), {}
    from edgeprune.robustness.distances import NORMS

    why = ""
    if threat.norm not in NORMS:
        why = f"no search for the nearest adversarial in {threat.norm}, only in {', '.join(NORMS)}"
    elif threat.target is not None:
        why = "distances are to any other class, the attack was aimed at one"
    if why:
        return Surveyed(Unmeasured(unmeasured=why), Unmeasured(unmeasured=why)), {}
    split = _split(site)
    dense, how = _distances(site, "dense", split, _how(site, split))
    compressed, _ = _distances(site, "compressed", split, _how(site, split))
    found = (dense, compressed)
    done = list(_checks(site, found))
    known = tuple(_widened(one, each) for one, each in zip(found, done[-1].known, strict=True))
    thin_ice = _thin_ice(site, split, how, known[0], known[1])
    return Surveyed(thin_ice, _curve(site, how, done)), _evidence(known[0], known[1])


# ------------------------------------------------------------------------------------------------- distances


def _split(site: _Site) -> Split:
    """The images to search around: the attacked ones first, drawn by the seed like them."""
    from edgeprune.data.splits import stratified
    from edgeprune.robustness.evaluate import attack_subset, part_of

    test, wanted, seed = site.run.test, site.run.config.boundary.samples, site.run.config.run.seed
    assert test is not None
    attacked = replace(test, ids=site.attacked, digest=site.robustness.threat.samples_digest)
    if wanted is None or wanted == len(attacked):
        return attacked
    if wanted < len(attacked):
        return attack_subset(attacked, wanted, seed)
    others = np.setdiff1d(test.ids, attacked.ids)
    more = others[stratified(test.source.labels[others], min(wanted - len(attacked), len(others)), seed)]
    return part_of(test, np.sort(np.concatenate([attacked.ids, more])))


def _how(site: _Site, split: Split) -> DistanceSearch:
    from edgeprune.robustness.distances import TARGETS

    threat = site.robustness.threat
    return DistanceSearch(
        attack=f"fmn and fab-t ({TARGETS} targets)",
        norm=threat.norm,
        steps=site.run.config.boundary.steps,
        restarts=1,
        seed=threat.seed,
        samples=len(split),
        samples_digest=split.digest,
    )


def _distances(site: _Site, side: Side, split: Split, how: DistanceSearch) -> tuple[Distances, DistanceSearch]:
    """A stage: the dense file's boundary around every image, the compressed one's where it is attacked and right."""
    from edgeprune.robustness.distances import Distances

    path = site.run.folder.path / STAGES / f"distances-{side}.npz"
    wanted = None if side == "dense" else site.attacked
    inputs = {
        **site.run.attack_inputs(site.exported),
        "search": how.model_dump(),
        "wanted": wanted is not None,
        "attacked": site.robustness.threat.samples_digest,
        "bounds": site.robustness.threat.bounds,
    }
    work = partial(_search, site, side, split, how, wanted, path)
    shared = site.run.on_one(side, f"distances-{side}", DistanceSearch, inputs, work)
    done = site.run.folder.stage(f"distances-{side}", DistanceSearch, inputs, shared)
    return Distances.load(path), done


def _search(
    site: _Site, side: Side, split: Split, how: DistanceSearch, wanted: Ints | None, path: Path
) -> tuple[DistanceSearch, list[Path]]:
    from edgeprune.robustness.distances import search

    source, bounds = site.run.gradients(site.exported, side, split), site.robustness.threat.bounds
    with site.run.console.task(f"searching the boundary of the {side} file") as progress:
        device = site.run.config.run.device
        found = search(source, split, how, bounds, wanted, device=device, progress=progress)
    found.save(path)
    return how.model_copy(update={"gradient_source": source.said}), [path]


def _widened(every: Distances, known: Distances) -> Distances:
    """All distances, with what the checks know of some of the images."""
    rows = np.flatnonzero(known.right)
    return every.known(known.ids[rows], known.distances[rows])


# --------------------------------------------------------------------------------------------------- the curve


def _checks(site: _Site, found: tuple[Distances, Distances]) -> Iterator[Check]:
    """The attack at every epsilon of the curve, smallest first; its own epsilon was attacked already."""
    from edgeprune.robustness.curve import Check, fallen, with_fallen
    from edgeprune.robustness.distances import rows_of

    test = site.run.test
    assert test is not None
    rows = np.flatnonzero(np.isin(found[0].ids, site.attacked))
    alone = (found[0].at(rows), found[1].at(rows))
    own, known = site.robustness.threat, alone
    for outcome, side in zip(site.outcomes, _SIDES, strict=True):
        fate = fallen(outcome.at(rows_of(outcome.ids, alone[0].ids)), test, own, side)
        pair = [with_fallen(each, fate) if name == side else each for name, each in zip(_SIDES, known, strict=True)]
        known = (pair[0], pair[1])
    for epsilon in sorted({own.epsilon, *site.run.config.boundary.curve}, key=Fraction):
        if Fraction(epsilon) == Fraction(own.epsilon):
            if epsilon == own.epsilon:
                yield Check(own, alone, known, site.robustness.warnings)
            continue
        threat = own.model_copy(
            update={
                "epsilon": epsilon,
                "epsilon_value": float(Fraction(epsilon)),
                "attack": site.run.config.attack.attack,  # the record's name says where it was not finished
            }
        )
        fates = [_check(site, side, each, threat) for side, each in zip(_SIDES, known, strict=True)]
        known = (with_fallen(known[0], fates[0]), with_fallen(known[1], fates[1]))
        yield Check(threat, alone, known, tuple(line for fate in fates for line in fate.warnings))


def _check(site: _Site, side: Side, known: Distances, threat: ThreatModel) -> Fallen:
    """A stage: the attack at this epsilon on what is not known to fall there."""
    from edgeprune.robustness.curve import Fallen, standing
    from edgeprune.robustness.evaluate import part_of

    test = site.run.test
    assert test is not None
    left = part_of(test, known.ids[standing(known, threat.epsilon_value)])
    threat = threat.model_copy(update={"samples": len(left), "samples_digest": left.digest})
    inputs = {**site.run.attack_inputs(site.exported), "threat": threat.model_dump()}
    name = f"curve-{side}-{threat.epsilon.replace('/', '-')}"
    work = partial(_attack, site, side, left, threat)
    return site.run.folder.stage(name, Fallen, inputs, site.run.on_one(side, name, Fallen, inputs, work))


def _attack(site: _Site, side: Side, left: Split, threat: ThreatModel) -> tuple[Fallen, list[Path]]:
    from edgeprune.robustness.curve import attack_standing

    with site.run.console.task(f"checking the curve of the {side} file at {threat.epsilon}") as progress:
        source = site.run.gradients(site.exported, side, left)
        device = site.run.config.run.device
        found = attack_standing(
            source, left, threat, side=side, sha256=site.sha256(side), device=device, progress=progress
        )
    return found, []


def _curve(site: _Site, how: DistanceSearch, done: list[Check]) -> SecurityCurve:
    from edgeprune.robustness.curve import checks, curve_side

    confidence = site.run.config.budget.confidence
    dense, compressed = done[-1].known
    return SecurityCurve(
        runtime=site.robustness.runtime,
        search=how.model_copy(update={"samples": len(dense.ids)}),
        confidence=confidence,
        dense=curve_side(site.sha256("dense"), dense),
        compressed=curve_side(site.sha256("compressed"), compressed),
        checks=checks(done, confidence),
    )


# ---------------------------------------------------------------------------------------------------- thin ice


def _thin_ice(site: _Site, split: Split, how: DistanceSearch, dense: Distances, compressed: Distances) -> ThinIce:
    from edgeprune.robustness import ice
    from edgeprune.robustness.curve import standing

    confidence, bounds = site.run.config.budget.confidence, site.robustness.threat.bounds
    attacked = np.flatnonzero(np.isin(dense.ids, site.attacked))
    # What stands is what neither the attack nor the search felled, as in the curve.
    stands = [standing(found, site.robustness.threat.epsilon_value)[attacked] for found in (dense, compressed)]
    fates = ice.Fates(dense, compressed.predictions, attacked, stands[0], stands[1])
    lost, lost_at_epsilon = ice.net(fates)

    def thumbnails(ids: Ints) -> dict[int, str]:
        return {
            int(one): ice.thumbnail(split.source.read(ids[index : index + 1])[0], bounds)
            for index, one in enumerate(ids)
        }

    return ThinIce(
        dense_sha256=site.sha256("dense"),
        compressed_sha256=site.sha256("compressed"),
        runtime=site.robustness.runtime,
        search=how,
        epsilon=site.robustness.threat.epsilon,
        right=int(dense.right.sum()),
        censored=int(np.isinf(dense.distances).sum()),
        quartiles=ice.quartiles(dense.distances[dense.right]),
        ranks=ice.ranks(fates, confidence),
        deciles=ice.deciles(fates, confidence),
        net_lost=lost,
        net_lost_at_epsilon=lost_at_epsilon,
        at_risk=ice.at_risk(fates, thumbnails),
        conclusive=site.robustness.conclusive,
    )


def _evidence(dense: Distances, compressed: Distances) -> dict[str, Any]:
    """What `write_evidence` adds."""
    arrays: dict[str, Any] = {"distance_ids": dense.ids}
    for side, found in zip(STEMS, (dense, compressed), strict=True):
        arrays[f"{side}_distance_clean"] = found.predictions
        arrays[f"{side}_distances"] = found.distances
    return arrays
