"""The demo: a small residual network for handwritten digits, trained here and now on real data.

scikit-learn ships 1,797 scanned digits (8x8, the UCI "Optical Recognition of Handwritten Digits" set). The demo
writes what a user would bring (a state_dict, two data files, an `edgeprune.toml`) and nothing that a user could not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeprune.console import Console
from edgeprune.errors import RuntimeMissingError
from edgeprune.files import replacing, write_text, writing

EPOCHS, BATCH, PEAK_RATE = 6, 64, 0.1
TRAIN, MODEL = 1197, "model.pt"

SETTINGS = """\
# What `edgeprune compress model.pt --target cpu` does here. Every setting is also a flag.

[model]
arch = "edgeprune.demo:DigitsNet"     # model.pt holds weights only; this builds the network
input_shape = [1, 8, 8]
mean = [0.3]
std = [0.38]

[data]
train = "train.npz"                   # importance, calibration, recovery
test = "test.npz"                     # every number in the report

[prune]
macs_ratio = 0.3                      # keep 30 % of the multiply-accumulates
criterion = "taylor"

[recover]
recipe = "distill"                    # the dense network teaches the pruned one
epochs = 10
precision = "float32"                 # "auto" takes what is faster on the machine: other weights on another one

[attack]
norm = "linf"
eps = "1/16"                          # one of the 16 gray levels
steps = 40
restarts = 2
samples = 300                         # of the test images

[boundary]
curve = ["1/32", "1/8"]               # robust accuracy is checked at these epsilons, too

[budget]
speedup = "1.2x"
accuracy_drop = "4 pt"
robust_accuracy_drop = "8 pt"
size_bytes = "500 kB"

[run]
seed = {seed}
torch_threads = 1                     # the same on every machine, and quick on a busy one
"""


class Block(nn.Module):
    """A residual block of two 3x3 convolutions (He et al. 2016), with a 1x1 shortcut where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, inputs, H, W) to (N, width, H / stride, W / stride)."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A residual network for 8x8 gray images of ten digits; takes normalised images (N, 1, 8, 8)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 10)."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def write_demo(folder: Path, seed: int, console: Console) -> list[str]:
    """Write model.pt, train.npz, test.npz and edgeprune.toml to `folder`; the arguments that compress them.

    Files of an earlier demo with the same seed come out the same, so that its run is resumed.
    """
    images, labels = _digits()
    order = np.random.default_rng(seed).permutation(len(images))
    parts = {"train.npz": order[:TRAIN], "test.npz": order[TRAIN:]}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, ids in parts.items():
        with replacing(folder / name) as beside:
            np.savez(beside, images=images[ids], labels=labels[ids])
    write_text(folder / "edgeprune.toml", SETTINGS.format(seed=seed))
    network = train(images[parts["train.npz"]], labels[parts["train.npz"]], seed, console)
    with replacing(folder / MODEL) as beside:
        torch.save(network.state_dict(), beside)
    return ["compress", MODEL, "--target", "cpu"]


def train(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], seed: int, console: Console) -> DigitsNet:
    """A network trained on float32 pixels (N, 1, 8, 8) in [0, 1] and their labels, on the CPU."""
    torch.set_num_threads(1)  # as the run that follows: so small a network gains nothing from more
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitsNet()
    pixels, classes = torch.from_numpy((images - 0.3) / 0.38).float(), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(network.parameters(), lr=PEAK_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    random = np.random.default_rng(seed)
    with console.task("training the demo's network") as progress:
        for epoch in range(EPOCHS):
            order = random.permutation(len(images))
            for start in range(0, len(order) - BATCH + 1, BATCH):
                batch = order[start : start + BATCH]
                loss = nn.functional.cross_entropy(network(pixels[batch]), classes[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            progress(f"epoch {epoch + 1} of {EPOCHS}, loss {loss.item():.3f}", (epoch + 1) / EPOCHS)
    return network.eval()


def _digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """1,797 digits: float32 (N, 1, 8, 8) in [0, 1], int64 labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeMissingError("the demo needs scikit-learn", hint="pip install 'edgeprune[demo]'") from error
    digits = load_digits()
    return (digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int64)
