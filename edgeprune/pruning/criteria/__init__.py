"""What makes a channel important. Each criterion is a function; each is registered like a third party's.

`weights` need nothing but the network; `gradients` and `activations` need labelled training data. How scores of
different groups are made comparable stands in `scoring`.
"""

from edgeprune.pruning.criteria.activations import apoz
from edgeprune.pruning.criteria.gradients import adv_taylor, adv_taylor_at, obd, taylor, thin_taylor
from edgeprune.pruning.criteria.weights import bn_scale, fpgm, l1, l2, lamp, random

__all__ = [
    "adv_taylor",
    "adv_taylor_at",
    "apoz",
    "bn_scale",
    "fpgm",
    "l1",
    "l2",
    "lamp",
    "obd",
    "random",
    "taylor",
    "thin_taylor",
]
