"""The settings of `[recover]`: what wins accuracy and robustness back, and for how long."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from pydantic import model_validator

from edgeprune.quantities import Epsilon, Minutes
from edgeprune.sections import Section, setting

Augmentation = Literal["shift", "vary", "none"]
ROBUST = ("adversarial", "robust-distill")
"""Recipes that train on adversarial images."""
_LABELS, _ROBUST_LABELS = 0.1, 0.3
_PERTURBED = 0.75
_BATCH, _SHORT_STEPS = 128, 400
_DRAWS, _LOOKS_A_DRAW, _EPOCHS_A_DRAW = 4, 3, 8


class RecoverConfig(Section):
    recipe: Literal["none", "calibrate", "finetune", "distill", "adversarial", "robust-distill"] = setting(
        "distill",
        "How accuracy is won back: none, calibrate (closed form), finetune (labels), distill (dense teacher), "
        "adversarial (labels, perturbed images), robust-distill (dense teacher, perturbed images).",
        flag="recover",
    )
    epochs: int = setting(6, "Passes over the training images.", flag="recover-epochs", gt=0)
    minutes: Minutes | None = setting(
        None, "Train for this time instead (10m); the schedule is fitted to it.", flag="recover-for"
    )
    iteration_epochs: int | None = setting(
        None, "Passes between two steps of iterative pruning (default: the epochs are split).", gt=0
    )
    batch_size: int | None = setting(
        None,
        "Images a training step (default: a sixteenth of the images, at least 16 and at most 128, or at most 64 where "
        "robust-distill has fewer than 400 steps).",
        flag="recover-batch-size",
        gt=1,
    )
    optimizer: Literal["muon", "sgd"] = setting(
        "muon", "muon: orthogonalised steps, a share of each weight's length; sgd: Nesterov.", flag="recover-optimizer"
    )
    learning_rate: float | None = setting(
        None,
        "Peak of the schedule (default: muon 0.014; sgd 0.05, without batch norm 0.01).",
        flag="recover-learning-rate",
        gt=0,
    )
    schedule: Literal["one-cycle", "cosine"] = setting(
        "one-cycle", "How the learning rate goes: up and down, or down along a cosine.", flag="recover-schedule"
    )
    warmup: float | None = setting(
        None,
        "Share of the schedule over which the rate rises (default: 0.2 of one-cycle, nothing of cosine).",
        flag="recover-warmup",
        ge=0,
        lt=1,
    )
    label_smoothing: float = setting(0.0, "Share of a label that is spread over all classes.", ge=0, lt=1)
    temperature: float = setting(4.0, "Softens the teacher's outputs.", flag="distill-temperature", gt=0)
    label_weight: float | None = setting(
        None,
        "Share of the labels' loss in distill and robust-distill (default: 0.1 and 0.3).",
        flag="distill-label-weight",
        ge=0,
        le=1,
    )
    labels: bool = setting(True, "false: the labels of the training images are not looked at.", flag="recover-labels")
    average: float = setting(
        0.0, "Decay of the weights' running mean, which is what is kept (0: none).", flag="recover-average", ge=0, lt=1
    )
    clip: float = setting(5.0, "Longest gradient; longer ones are shortened.", flag="recover-clip", gt=0)
    augment: Augmentation | None = setting(
        None,
        "shift: images move by up to a sixteenth of their size, edges repeated; vary: they are zoomed and turned a "
        "little, too, and in another light (default: shift, in robust-distill vary; less where the dense network does "
        "not know most of the changed images again).",
        flag="recover-augment",
    )
    draws: int | None = setting(
        None,
        "Draws of the augmentation that take turns, epoch by epoch: the teacher looks at each once (0: always new; "
        "default: 4; in robust-distill one for every three epochs, at least 2 and at most 4, or for every eight where "
        "those are more).",
        flag="recover-draws",
        ge=0,
    )
    flip: bool = setting(False, "Mirror half of the images (never signs or digits).", flag="recover-flip")
    patience: int | None = setting(
        None, "Stop after so many epochs without a better held-out result.", flag="recover-patience", gt=0
    )
    eps: Epsilon | None = setting(
        None, "Reach of the training adversary, linf, in pixel units (default: the attack's).", flag="recover-eps"
    )
    adversary_steps: int = setting(
        1, "Its gradient steps; 1 is watched for catastrophic overfitting.", flag="recover-adversary-steps", gt=0
    )
    natural_share: float = setting(
        0.15,
        "Share of a robust training that goes by before images are perturbed.",
        flag="recover-natural",
        ge=0,
        lt=1,
    )
    perturbed_share: float | None = setting(
        None,
        "Share of each batch that is perturbed in a robust training; the rest stays as it is (default: 1, in "
        "robust-distill 0.75, unless robust_weight is below 1: every image is then seen both ways).",
        flag="recover-perturbed",
        gt=0,
        le=1,
    )
    robust_weight: float = setting(
        1.0, "Share of the perturbed images' loss in robust-distill.", flag="recover-robust-weight", gt=0, le=1
    )
    reconstruct: bool | None = setting(
        None,
        "Fit layers to the dense network's outputs, in closed form, where that helps (default: if nothing is trained, "
        "or in no more than 128 steps).",
        flag="recover-reconstruct",
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "What training computes in; auto: bfloat16 where it was measured to be faster.",
        flag="recover-precision",
    )

    @model_validator(mode="after")
    def _labels_where_they_are_needed(self) -> RecoverConfig:
        if not self.labels and self.recipe in ("finetune", "adversarial"):
            instead = {"finetune": "distill", "adversarial": "robust-distill"}[self.recipe]
            raise ValueError(f"recipe {self.recipe} needs labels: use {instead}, which needs none")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> RecoverConfig:
        if self.minutes is not None and self.iteration_epochs is not None:
            raise ValueError("the steps share the minutes evenly: leave out iteration_epochs or minutes")
        return self

    @property
    def trains(self) -> bool:
        """Whether there are training steps, and not only what has a closed form."""
        return self.recipe not in ("none", "calibrate")

    @property
    def augmentation(self) -> Augmentation:
        """How images are changed, mirroring aside: what was asked for, or what suits the recipe."""
        return self.augment or ("vary" if self.recipe == "robust-distill" else "shift")

    @property
    def changes(self) -> bool:
        """Whether images are changed."""
        return self.augmentation != "none" or self.flip

    def draw_count(self, epochs: float) -> int:
        """How many draws take turns in so many epochs: what was asked for, or what suits the recipe; 0: always new."""
        if self.draws is not None:
            return self.draws
        if self.recipe != "robust-distill":
            return _DRAWS
        return max(min(_DRAWS, int(epochs / _LOOKS_A_DRAW)), int(epochs / _EPOCHS_A_DRAW), 2)

    @property
    def label_share(self) -> float:
        """Share of the labels' loss beside a teacher's: nothing where labels are not looked at."""
        if not self.labels:
            return 0.0
        return (_ROBUST_LABELS if self.robust else _LABELS) if self.label_weight is None else self.label_weight

    def perturbed_of(self, batch: int) -> int:
        """Images of a batch of so many that are perturbed: what was asked for, or what suits the recipe."""
        mixed = self.recipe == "robust-distill" and self.robust_weight == 1
        return max(1, round((self.perturbed_share or (_PERTURBED if mixed else 1.0)) * batch))

    def batch_of(self, images: int) -> int:
        """Images a training step, where there are so many in all: few images are to make some steps an epoch, too."""
        return self.batch_size or max(16, min(_BATCH, images // 16))

    def in_steps(self, steps: float, images: int) -> RecoverConfig:
        """The settings for a training on so many images of about so many steps of the usual batch: of few steps, there
        are twice as many, with half of the images each, where that was seen to teach more (robust-distill)."""
        if self.recipe != "robust-distill" or self.batch_size is not None or steps >= _SHORT_STEPS:
            return self
        return self.model_copy(update={"batch_size": min(_BATCH // 2, self.batch_of(images))})

    @property
    def robust(self) -> bool:
        """Whether training images are perturbed."""
        return self.recipe in ROBUST

    @property
    def reach(self) -> float | None:
        """Epsilon as a number, where it is set."""
        return None if self.eps is None else float(Fraction(self.eps))
