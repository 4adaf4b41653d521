"""Settings of what is measured around the decision boundary: distances, the security curve, certified radii."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from pydantic import Field, model_validator

from edgeprune.quantities import Epsilon
from edgeprune.sections import Section, setting

Radius = Annotated[float, Field(gt=0)]


class BoundaryConfig(Section):
    samples: int | None = setting(
        None,
        "Search the decision boundary around this many test images, the attacked ones first (default: around the "
        "attacked ones; 0: around none).",
        flag="distance-samples",
        ge=0,
    )
    steps: int = setting(60, "Gradient steps of that search.", flag="distance-steps", gt=0)
    curve: tuple[Epsilon, ...] = setting(
        (), "Check the security curve at these epsilons too, each with the attack itself.", flag="curve"
    )

    @model_validator(mode="after")
    def _something_to_check(self) -> BoundaryConfig:
        if self.curve and self.samples == 0:
            raise ValueError("a curve needs distances: set samples above 0, or leave the curve out")
        if len({Fraction(epsilon) for epsilon in self.curve}) < len(self.curve):
            raise ValueError("the curve must name each epsilon once")
        return self


class CertifyConfig(Section):
    sigma: float = setting(0.25, "Standard deviation of the smoothing noise, in pixel units.", flag="sigma", gt=0)
    samples: int | None = setting(100, "Certify this many test images.", flag="certify-samples", gt=0)
    guesses: int = setting(100, "Draws of noise that choose an image's class.", flag="certify-guesses", gt=0)
    draws: int = setting(1000, "Fresh draws that bound its share.", flag="certify-draws", gt=0)
    alpha: float = setting(
        0.001, "Largest probability that the certificate of an image is wrong.", flag="certify-alpha", gt=0, lt=0.5
    )
    radii: tuple[Radius, ...] = setting(
        (0.1, 0.25, 0.5), "l2 distances at which certified accuracy is told, in pixel units.", flag="certify-radii"
    )
