"""Attacks on an exported file: gradients from a twin, verdicts from the runtime. Each is a `protocols.Attack`.

`run` judges and keeps the books, `pool` packs the survivors; `descent`, `apgd`, `fab`, `fmn` follow gradients, `square`
asks the runtime alone, `replay` brings adversarials from elsewhere, `cascade` puts them in a row, and `foreign` lets
torchattacks propose.
"""

from edgeprune.robustness.attacks.descent import fgsm, pgd, step_lengths
from edgeprune.robustness.attacks.run import batch_size

__all__ = ["batch_size", "fgsm", "pgd", "step_lengths"]
