"""How training images are changed: moved, mirrored, zoomed, turned, in another light; the same way for the same seed.

`shift` moves whole pixels. `vary` is what a camera does to one and the same thing: it stands nearer or further, a
little askew, and the light is another. Both are small enough that a label stays true, and a teacher looks at the image
that was changed in any case (Beyer et al. 2022), which is how a student learns the teacher's function away from the few
images that there are. Nothing is mirrored unless that was asked for: signs and digits are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import affine_grid, grid_sample, pad

if TYPE_CHECKING:
    from edgeprune.recovery.settings import RecoverConfig
    from edgeprune.types import Ints

_SHIFT = 16  # images move by up to one in so many pixels
_ZOOM, _TURN = math.log(1.1), math.radians(5)
_BRIGHTNESS, _CONTRAST = 0.3, 0.3  # natural logarithms of the largest factors

Moves = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One draw of the augmentation, for N images; None: not of this kind.

    `moves`: rows and columns, int64 (N,) each. `warps`: affine maps, float32 (N, 2, 3), as `affine_grid` takes them.
    `lights`: factors of contrast and of brightness, float32 (N, 2). `mirrors`: which are mirrored, bool (N,).
    `bounds`: of the pixels. Drawn on the CPU, whatever the device: the same seed makes the same view everywhere.
    """

    moves: Moves | None = None
    warps: torch.Tensor | None = None
    lights: torch.Tensor | None = None
    mirrors: torch.Tensor | None = None
    bounds: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def drawn(
        cls,
        count: int,
        size: tuple[int, int],
        settings: RecoverConfig,
        bounds: tuple[float, float],
        generator: torch.Generator,
    ) -> View:
        """A view of `count` images of so many rows and columns, as the settings want it."""
        moves = warps = lights = None
        if settings.augmentation == "shift":
            moves = _moves(count, _reach(size), generator)
        if settings.augmentation == "vary":
            warps, lights = _warps(count, generator), _lights(count, generator)
        mirrors = torch.rand(count, generator=generator) < 0.5 if settings.flip else None
        return cls(moves, warps, lights, mirrors, bounds)

    def of(self, images: torch.Tensor, positions: Ints) -> torch.Tensor:
        """The images (N, C, H, W) at these positions as they look in this view, on the images' device."""
        chosen, device = torch.from_numpy(positions), images.device
        if self.moves is not None:
            images = _moved(images, (self.moves[0][chosen].to(device), self.moves[1][chosen].to(device)))
        if self.warps is not None:
            images = _warped(images, self.warps[chosen].to(device))
        if self.lights is not None:
            images = _lit(images, self.lights[chosen].to(device), self.bounds)
        if self.mirrors is not None:
            images = torch.where(self.mirrors[chosen].to(device)[:, None, None, None], images.flip(-1), images)
        return images


def _reach(size: tuple[int, int]) -> tuple[int, int]:
    """How far images move, in rows and columns: a sixteenth of their size, at least one."""
    return max(1, size[0] // _SHIFT), max(1, size[1] // _SHIFT)


def _moves(count: int, reach: tuple[int, int], generator: torch.Generator) -> Moves:
    """Rows and columns to move by, from 0 to twice the reach; the reach itself is no move."""
    down, right = (torch.randint(2 * r + 1, (count,), generator=generator) for r in reach)
    return down, right


def _moved(images: torch.Tensor, moves: Moves) -> torch.Tensor:
    """Whole pixels at a time, edges repeated."""
    height, width = images.shape[-2:]
    reach, device = _reach((height, width)), images.device
    padded = pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    pick_rows = moves[0][:, None, None] + torch.arange(height, device=device)[None, :, None]
    pick_columns = moves[1][:, None, None] + torch.arange(width, device=device)[None, None, :]
    batch = torch.arange(len(images), device=device)[:, None, None]
    found = padded.permute(0, 2, 3, 1)[batch, pick_rows, pick_columns]
    return found.permute(0, 3, 1, 2)


def _signed(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Uniform between -1 and 1."""
    return torch.rand(shape, generator=generator).mul_(2).sub_(1)


def _warps(count: int, generator: torch.Generator) -> torch.Tensor:
    """Zoomed by up to a tenth, turned by up to 5 degrees, moved by up to a sixteenth of the size."""
    scale = torch.exp(_ZOOM * _signed((count,), generator))
    angle = _TURN * _signed((count,), generator)
    across = 2 / _SHIFT * _signed((count, 2), generator)  # a width is 2 in these units
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    rows = [torch.stack([cosine, -sine, across[:, 0]], 1), torch.stack([sine, cosine, across[:, 1]], 1)]
    return torch.stack(rows, 1)


def _warped(images: torch.Tensor, warps: torch.Tensor) -> torch.Tensor:
    """Between pixels by the four neighbours, edges repeated."""
    grid = affine_grid(warps, list(images.shape), align_corners=False)
    found = grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.contiguous(memory_format=torch.channels_last)


def _lights(count: int, generator: torch.Generator) -> torch.Tensor:
    """Contrast and brightness between 0.74 and 1.35 times what they are."""
    return torch.exp(_signed((count, 2), generator) * torch.tensor([_CONTRAST, _BRIGHTNESS]))


def _lit(images: torch.Tensor, lights: torch.Tensor, bounds: tuple[float, float]) -> torch.Tensor:
    """Contrast about an image's own mean, then brightness from the lowest pixel value up."""
    contrast, brightness = (lights[:, k, None, None, None] for k in (0, 1))
    mean = images.mean((1, 2, 3), keepdim=True)
    low = bounds[0]
    return torch.clamp(((images - mean) * contrast + mean - low) * brightness + low, *bounds)
