"""The twin: torch gradients of any ONNX classifier, from its own graph."""

from edgeprune.robustness.twin.building import TOLERANCES, Twin, build, check
from edgeprune.robustness.twin.layout import Layout, Served
from edgeprune.robustness.twin.source import Gradients, gradients_of, twin_of

__all__ = ["TOLERANCES", "Gradients", "Layout", "Served", "Twin", "build", "check", "gradients_of", "twin_of"]
