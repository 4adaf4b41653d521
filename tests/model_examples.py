"""Small networks of every kind that the models room must carry, in a module that another process can import."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Residual(nn.Module):
    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layer1 = nn.Sequential(Block(width), Block(width))
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.stem(x)).mean((2, 3)))


class Mobile(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.Hardswish(),
            nn.Conv2d(width, 2 * width, 1),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * width, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Dense(nn.Module):
    def __init__(self, growth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, growth, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(growth * (i + 1), growth, 3, padding=1) for i in range(3))
        self.norm = nn.BatchNorm2d(growth * 4)
        self.head = nn.Linear(growth * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, F.relu(layer(x))], 1)
        return self.head(self.norm(x).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))


class Vit(nn.Module):
    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.pos = nn.Parameter(torch.randn(1, 4, width) * 0.1)
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.pos
        x = x + self.attn(self.norm1(x))
        return self.head((x + self.mlp(x)).mean(1))


class Grouped(nn.Module):
    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=groups)
        self.conv3 = nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))).mean((2, 3)))


class Tied(nn.Module):
    """Two convolutions with one weight, one module in two places, a plain tensor and a function as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.a = nn.Conv2d(6, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.b.weight = self.a.weight
        self.act = nn.ReLU()
        self.again = self.act
        self.function, self.other = F.gelu, torch.relu
        self.offset = torch.tensor([0.25])
        self.register_buffer("scale", torch.tensor([2.0]), persistent=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.other(self.b(self.act(self.a(self.stem(x))))))
        return self.head(self.function(x).mean((2, 3)) * self.scale + self.offset)


class Heads(nn.Module):
    """Returns a dict or a tuple."""

    def __init__(self, form: str = "dict") -> None:
        super().__init__()
        self.form = form
        self.stem = nn.Conv2d(3, 5, 3)
        self.head, self.aux = nn.Linear(5, 4), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> object:
        x = self.stem(x).mean((2, 3))
        return {"logits": self.head(x), "aux": self.aux(x)} if self.form == "dict" else (self.aux(x), self.head(x))


class Gated(nn.Module):
    """Takes a second input, which gates the channels of the first convolution."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.gate = nn.Linear(5, width)
        self.conv2 = nn.Conv2d(width, 12, 3)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor, context: Tensor, gain: float = 1.0) -> Tensor:
        x = F.relu(self.conv1(x)) * torch.sigmoid(self.gate(context))[:, :, None, None] * gain
        return self.head(F.relu(self.conv2(x)).mean((2, 3)))


class Conditioned(nn.Module):
    """Takes images between the number of a task and a mask of pixels; returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.tasks = nn.Embedding(3, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, task: Tensor, images: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.conv(images * mask[:, None])).mean((2, 3))
        return {"features": x, "logits": self.head(x * self.tasks(task))}


class Lambda(nn.Module):
    """Holds a function without a name: no form of its own as data."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Residual()
        self.halve = lambda x: x * 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.halve(x))


class Eager(nn.Module):
    """Its constructor writes a file: what a file must not be able to call."""

    def __init__(self, path: str = "") -> None:
        super().__init__()
        if path:
            Path(path).write_text("constructed")
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)[:, :48])


def write_marker(path: object, *_: object) -> object:
    """A function of a trusted module that a file must not be able to call."""
    Path(str(path)).write_text("called")
    return path


def build_residual(width: int = 8) -> nn.Module:
    return Residual(width)


KINDS = {"residual": Residual, "mobile": Mobile, "dense": Dense, "vit": Vit, "grouped": Grouped, "tied": Tied}


def seeded(kind: type[nn.Module], **arguments: object) -> nn.Module:
    """A network with reproducible weights and norms that are not the identity."""
    torch.manual_seed(0)
    module = kind(**arguments).eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    return module


def pruned(module: nn.Module) -> nn.Module:
    """The module with half of the channels of every group removed, by torch-pruning, in place."""
    logits = [m for m in module.modules() if isinstance(m, nn.Linear) and m.out_features == 4]
    heads = {m.qkv: m.num_heads for m in module.modules() if isinstance(m, Attention)}
    pruner = torch_pruning.pruner.MagnitudePruner(
        module,
        torch.zeros(2, 3, 8, 8),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=logits,
        num_heads=heads,
        unwrapped_parameters=[(p, p.ndim - 1) for name, p in module.named_parameters() if name == "pos"],
    )
    pruner.step()
    for part in module.modules():
        if isinstance(part, Attention):
            part.head_dim = part.qkv.out_features // 3 // part.num_heads
    return module.eval()
