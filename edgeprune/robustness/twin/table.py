"""The table of operators: ONNX operator to the rule that makes it torch.

Opsets 7 to 23, in what torch's exporters, tf2onnx, keras2onnx and others emit for classification networks. A rule
reads the version from the node; what it does not cover it names (`Unsupported`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgeprune.robustness.twin import (
    attention,
    elementwise,
    ir_rules,
    movement,
    quantised,
    resampling,
    statistics,
    windows,
)
from edgeprune.robustness.twin.node import Compute, Node, Rule, Unsupported, numbers, require_reasonable
from edgeprune.robustness.twin.reading import tensor_of

MICROSOFT = "com.microsoft"


def _constant_of_shape(node: Node) -> Compute:
    proto = node.attributes.get("value")
    value = torch.zeros(1) if proto is None else tensor_of(proto)

    def fill(shape: Tensor) -> Tensor:
        sizes = numbers(shape) or []
        require_reasonable(sizes)
        return torch.full(sizes, value.item(), dtype=value.dtype)

    return fill


RULES: Mapping[tuple[str, str], Rule] = {
    **{("", name): rule for name, rule in elementwise.RULES.items()},
    **{("", name): rule for name, rule in windows.RULES.items()},
    **{("", name): rule for name, rule in statistics.RULES.items()},
    **{("", name): rule for name, rule in movement.RULES.items()},
    **{("", name): rule for name, rule in resampling.RULES.items()},
    **{("", name): rule for name, rule in quantised.RULES.items()},
    **{("", name): rule for name, rule in attention.RULES.items()},
    ("", "ConstantOfShape"): _constant_of_shape,
    **{(MICROSOFT, name): rule for name, rule in quantised.MICROSOFT_RULES.items()},
    (MICROSOFT, "Gelu"): elementwise.RULES["Gelu"],
    **{(ir_rules.DOMAIN, name): rule for name, rule in ir_rules.RULES.items()},
}
"""(domain, operator) to rule."""


def compute_of(node: Node) -> Compute:
    """What the node does in torch; Unsupported, naming the operator, when the table has no rule for it."""
    rule = RULES.get((node.domain, node.op))
    if rule is None:
        raise Unsupported(node.label)
    try:
        return rule(node)
    except Unsupported as error:
        raise Unsupported(f"{node.label} ({error})") from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise Unsupported(f"{node.label} (attributes that make no sense: {error})") from error


def host_inputs(node: Node) -> frozenset[int]:
    """The inputs of a node that are read as numbers: they may stay on the CPU whatever the device."""
    if node.op.startswith("Reduce"):
        return frozenset({1})
    return movement.HOST_INPUTS.get(node.op, frozenset())
