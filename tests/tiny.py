"""The smallest project that a whole run works on: four bright quadrants, told apart by a few channels.

`write_project` makes what a user would bring. The data is separable and the network is trained for a moment, so that
accuracy and robustness are numbers that a run can get right or wrong.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

CLASSES = 4
SETTINGS = """\
[model]
arch = "tiny:TinyNet"
input_shape = [3, 8, 8]
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]

[data]
train = "train.npz"
test = "test.npz"

[prune]
ratio = 0.5
channel_multiple = 4

[recover]
recipe = "finetune"
epochs = 1
batch_size = 32

[latency]
processes = 1
blocks = 2
block_ms = 2

[attack]
eps = "16/255"
steps = 4
restarts = 1
samples = 32

[budget]
size_bytes = "1 MB"

[run]
out = "run"
torch_threads = 1
"""


class TinyNet(nn.Module):
    """Two convolutions for 8x8 images; takes normalised images (N, channels, 8, 8)."""

    def __init__(self, width: int = 16, channels: int = 3, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 2, 1)
        self.head = nn.Linear(width * 16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.head(torch.relu(self.conv2(x)).flatten(1))  # type: ignore[no-any-return]


class NanNet(TinyNet):
    """Finite on plain images, NaN on every other: what no check of the weights can see."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes), NaN where the image is not plain."""
        spread = (x.amax((1, 2, 3)) - x.amin((1, 2, 3))).unsqueeze(1)
        return super().forward(x) + torch.log(1 - 1e6 * spread)


class PairNet(TinyNet):
    """Returns two tensors."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """Logits and the image."""
        return super().forward(x), x


def quadrants(count: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """`images` float32 (count, 3, 8, 8) in [0, 1], one quadrant brighter; `labels` int64: which one."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    images = random.uniform(0.2, 0.5, (count, 3, 8, 8)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        top, left = divmod(int(label), 2)
        image[:, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 0.25
    return {"images": images, "labels": labels.astype(np.int64)}


def trained() -> TinyNet:
    """A network that tells the quadrants apart; the same weights every time, however many threads torch has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two add in another order, and a run in this process leaves another number of them
    try:
        return _trained()
    finally:
        torch.set_num_threads(threads)


def _trained() -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TinyNet()
    data = quadrants(256, seed=0)
    images, labels = torch.from_numpy((data["images"] - 0.5) / 0.5), torch.from_numpy(data["labels"])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval()


def write_project(folder: Path) -> Path:
    """model.pt (weights only), train.npz, test.npz and edgeprune.toml in `folder`; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(trained().state_dict(), folder / "model.pt")
    np.savez(folder / "train.npz", **quadrants(128, seed=1))  # type: ignore[arg-type]
    np.savez(folder / "test.npz", **quadrants(96, seed=2))  # type: ignore[arg-type]
    (folder / "edgeprune.toml").write_text(SETTINGS, encoding="utf-8")
    return folder


def settings(**changes: str) -> str:
    """SETTINGS with `section__key="TOML value"` set anew, or without the key where the value is empty."""
    text = SETTINGS
    for place, value in changes.items():
        section, key = place.split("__")
        head, table, rest = text.partition(f"[{section}]\n")
        if not table:
            head, table, rest = text + "\n", f"[{section}]\n", ""
        body, gap, tail = rest.partition("\n\n")
        body = re.sub(rf"^{key} = .*\n?", "", body + "\n", flags=re.M)
        text = head + table + body + (f"{key} = {value}\n" if value else "") + gap[1:] + tail
    return text
