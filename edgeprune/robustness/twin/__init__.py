"""The twin: torch gradients of any ONNX classifier, from its own graph."""

from edgeprune.robustness.twin.building import TOLERANCES, Twin, build, check
from edgeprune.robustness.twin.layout import Layout, Served

__all__ = ["TOLERANCES", "Layout", "Served", "Twin", "build", "check"]
