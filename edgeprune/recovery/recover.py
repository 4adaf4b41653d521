"""Recovery: batch norm is recalibrated first, then a recipe trains, and what helps is kept.

Recipes: `none`; `calibrate` (batch-norm statistics only); `finetune` (cross-entropy on the labels); `distill` (the
dense network's softened outputs and a little of the labels: Hinton et al. 2015). The state that does best on a
held-out part of the training split is kept, never judged on the test split; when training does worse than calibration
alone, calibration is what is kept.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgeprune.config import RecoverConfig
from edgeprune.errors import RecoveryError
from edgeprune.models import digest
from edgeprune.records import RecoveryInfo, Unmeasured
from edgeprune.recovery.calibration import measure_statistics
from edgeprune.recovery.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from edgeprune.types import ModelBundle, Progress, Split

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

_CALIBRATION_IMAGES, _CALIBRATION_BATCH = 2048, 128
_HELD_OUT_SHARE, _HELD_OUT_MOST = 0.1, 1000
_TEMPERATURE, _LABEL_WEIGHT = 4.0, 0.1
_MOMENTUM, _WEIGHT_DECAY, _CLIP = 0.9, 5e-4, 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What recovery works with: settings, images, seed, torch device and where to keep checkpoints (or None)."""

    settings: RecoverConfig
    train: Split | None
    seed: int
    device: str = "cpu"
    checkpoints: Path | None = None


def recover(
    pruned: ModelBundle, teacher: ModelBundle, task: Task, *, progress: Progress | None = None
) -> tuple[ModelBundle, RecoveryInfo | Unmeasured]:
    """The recovered bundle and what was done; the pruned bundle is not changed.

    Errors: RecoveryError when the loss stops being finite.
    """
    if task.settings.recipe == "none":
        return pruned, Unmeasured(unmeasured="the recipe is none: nothing was recovered")
    if task.train is None:
        return pruned, Unmeasured(unmeasured="no training data was given: nothing was recovered")
    started = time.perf_counter()
    train, held_out = hold_out(task.train, task.seed)
    if len(train) < 2:
        return pruned, Unmeasured(unmeasured="there are fewer than two training images: nothing was recovered")
    student = dataclasses.replace(pruned, module=copy.deepcopy(pruned.module))
    network = _placed(student.network(), task.device)
    before = accuracy(network, held_out, task.device)
    recalibrate(network, train, task.device, seed=task.seed)
    best, state = accuracy(network, held_out, task.device), _state(network)
    if task.settings.recipe != "calibrate":
        with torch.enable_grad(), _own_randomness(task.device):
            state, best = _train(network, (pruned, teacher), (train, held_out), task, (state, best), progress)
    network.load_state_dict(state)
    network.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    for name, parameter in student.module.named_parameters():
        parameter.requires_grad_(pruned.module.get_parameter(name).requires_grad)
        parameter.grad = None
    info = RecoveryInfo(
        recipe=task.settings.recipe,
        epochs=0 if task.settings.recipe == "calibrate" else task.settings.epochs,
        train_samples=len(train),
        held_out=len(held_out),
        accuracy_before=before,
        accuracy_after=best,
        seconds=time.perf_counter() - started,
    )
    return dataclasses.replace(student, digest=digest(student.module)), info


def hold_out(split: Split, seed: int) -> tuple[Split, Split]:
    """(training part, held-out part): a tenth of the images of every class, at most 1,000 in all."""
    share = min(_HELD_OUT_SHARE, _HELD_OUT_MOST / max(len(split), 1))
    labels = split.labels()
    generator = np.random.default_rng(seed)
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[: max(1, round(share * int((labels == label).sum())))]
        for label in np.unique(labels)
        if (labels == label).sum() > 1
    ]
    away = np.zeros(len(split), dtype=bool)
    if chosen:
        away[np.concatenate(chosen)] = True
    return dataclasses.replace(split, ids=split.ids[~away]), dataclasses.replace(split, ids=split.ids[away])


def accuracy(network: nn.Module, split: Split, device: str) -> float | None:
    """Share of a split that `network` (pixels to logits) gets right; None for an empty split."""
    if not len(split):
        return None
    network.eval()
    right = 0
    with torch.no_grad():
        for images, labels in split.batches(256):
            right += int((network(_on(images, device)).argmax(1).cpu().numpy() == labels).sum())
    return right / len(split)


def recalibrate(network: nn.Module, split: Split, device: str, *, seed: int) -> None:
    """Measure batch-norm statistics again, on up to 2,048 images drawn by the seed. In place.

    Pruning changes what every layer receives; the old statistics belong to the dense network (Li et al. 2020,
    "EagleEye"). Batches are of nearly equal size, at most 128. Fewer than two images: nothing happens.
    """
    order = np.random.default_rng(seed).permutation(split.ids)[:_CALIBRATION_IMAGES]
    if len(order) < 2:
        return
    parts = np.array_split(order, math.ceil(len(order) / _CALIBRATION_BATCH))
    measure_statistics(network, (_on(split.source.read(part), device) for part in parts))


def _train(
    network: nn.Module,
    bundles: tuple[ModelBundle, ModelBundle],
    parts: tuple[Split, Split],
    task: Task,
    best: tuple[dict[str, torch.Tensor], float | None],
    progress: Progress | None,
) -> tuple[dict[str, torch.Tensor], float | None]:
    """The best state over the epochs, calibration included, and its held-out accuracy."""
    settings, (train, held_out) = task.settings, parts
    teacher = bundles[1]
    guide = _placed(copy.deepcopy(teacher.network()), task.device) if settings.recipe == "distill" else None
    optimizer = _optimizer(network)
    key = _task_key(task, *(bundle.digest for bundle in bundles))
    epoch, best_state, best_accuracy = 0, *best
    if task.checkpoints and (found := read_checkpoint(task.checkpoints, task.device, task=key)):
        network.load_state_dict(found.network)
        optimizer.load_state_dict(found.optimizer)
        epoch, best_state, best_accuracy = found.epoch, found.best_network, found.best_accuracy
    while epoch < settings.epochs:
        _train_epoch(network, guide, optimizer, (train, epoch), task, progress)
        epoch += 1
        now = accuracy(network, held_out, task.device)
        if now is None or best_accuracy is None or now >= best_accuracy:
            best_state, best_accuracy = _state(network), now
        if task.checkpoints:
            state = Checkpoint(epoch, network.state_dict(), optimizer.state_dict(), best_state, best_accuracy, key)
            write_checkpoint(task.checkpoints, state)
    return best_state, best_accuracy


def _train_epoch(
    network: nn.Module,
    guide: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    part: tuple[Split, int],
    task: Task,
    progress: Progress | None,
) -> None:
    """One pass over the images of `part`, whose number in the schedule is the other half of it. In place."""
    settings, (train, epoch) = task.settings, part
    peak = settings.learning_rate or (0.05 if _has_batch_norm(network) else 0.01)
    batches = _shuffled(train, task.seed + epoch, settings.batch_size)
    torch.manual_seed(_mixed(task.seed, epoch))  # for dropout: an epoch is the same wherever training was resumed
    network.train()
    for step, ids in enumerate(batches):
        done = (epoch + step / len(batches)) / settings.epochs
        for parameters in optimizer.param_groups:
            parameters["lr"] = peak * one_cycle(done)
        loss = _loss(network, guide, train, ids, task, epoch)
        length = float(nn.utils.clip_grad_norm_(network.parameters(), _CLIP))
        if not (math.isfinite(loss) and math.isfinite(length)):
            what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
            raise RecoveryError(
                f"training diverged: {what} in epoch {epoch + 1}",
                hint=f"lower --recover-learning-rate (it was {peak:g})",
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress and step % 8 == 0:
            progress(f"{settings.recipe}: epoch {epoch + 1}/{settings.epochs}, loss {loss:.3f}", done)


def one_cycle(done: float) -> float:
    """Share of the peak rate after `done` of all steps: up over a fifth, down along a cosine (Smith 2018)."""
    if done < 0.2:
        return 0.1 + 0.9 * done / 0.2
    return 0.5 * (1 + math.cos(math.pi * (done - 0.2) / 0.8)) + 1e-3


def _loss(network: nn.Module, guide: nn.Module | None, train: Split, ids: Ints, task: Task, epoch: int) -> float:
    generator = torch.Generator().manual_seed(_mixed(task.seed, epoch, int(ids[0])))
    images = _on(_shifted(torch.from_numpy(train.source.read(ids)), generator), task.device)
    labels = torch.from_numpy(train.source.labels[ids]).to(task.device)
    logits = network(images)
    loss = nn.functional.cross_entropy(logits, labels)
    if guide is not None:
        with torch.no_grad():
            wanted = nn.functional.log_softmax(guide(images) / _TEMPERATURE, 1)
        given = nn.functional.log_softmax(logits / _TEMPERATURE, 1)
        distance = nn.functional.kl_div(given, wanted, reduction="batchmean", log_target=True) * _TEMPERATURE**2
        loss = _LABEL_WEIGHT * loss + (1 - _LABEL_WEIGHT) * distance
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def _shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to a sixteenth of its size, edges repeated: signs and digits must not be mirrored."""
    reach = [max(1, size // 16) for size in images.shape[-2:]]
    padded = nn.functional.pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    rows, columns = (torch.randint(2 * r + 1, (len(images),), generator=generator) for r in reach)
    height, width = images.shape[-2:]
    pick_rows = (rows[:, None] + torch.arange(height))[:, None, :, None]
    pick_columns = (columns[:, None] + torch.arange(width))[:, None, None, :]
    batch = torch.arange(len(images))[:, None, None, None]
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return padded[batch, channel, pick_rows, pick_columns]


def _on(images: Floats | torch.Tensor, device: str) -> torch.Tensor:
    return torch.as_tensor(images).to(device, memory_format=torch.channels_last)


def _shuffled(split: Split, seed: int, size: int) -> list[Ints]:
    order = np.random.default_rng(seed).permutation(split.ids)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < size else batches


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; weight decay on weights, not on biases and norms."""
    parameters = [p for p in network.parameters() if p.is_floating_point()]
    for parameter in parameters:  # a frozen network is trained all the same: it was cut
        parameter.requires_grad_(True)
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.0, momentum=_MOMENTUM, nesterov=True)


def _has_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _placed(network: nn.Module, device: str) -> nn.Module:
    """`network` on the device, in channels-last (training is several times faster in it on a CPU), in eval mode."""
    return network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


@contextmanager
def _own_randomness(device: str) -> Iterator[None]:
    """The block may seed torch's generators; afterwards they are as they were."""
    with torch.random.fork_rng(devices=[torch.device(device)] if device.startswith("cuda") else []):
        yield


def _mixed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _task_key(task: Task, *digests: str) -> str:
    """Digest of everything that training depends on, for the checkpoint."""
    data = task.train.digest if task.train else None
    parts = [task.settings.model_dump(mode="json"), data, task.seed, task.device, *digests]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
