"""A small detector of one assembly: where it is, then the state of each of its components.

Both looks share a trunk, the first eleven blocks of an EfficientNet-Lite0 with ImageNet weights,
which stays frozen, so that its features are computed once and only two small heads are trained:

    picture (B, 3, 192, 320) -> halved -> trunk -> find: box, is it there
                             -> crop of the box, 160 x 160 -> trunk -> name: (B, K, 3)

B pictures, K components, each absent, correctly or incorrectly there. Pictures are RGB from 0 to
255 throughout; boxes are x1, y1, x2, y2 in pixels of the picture.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from keystep_models.training.export_appearance import MEAN, SCALE, load_network

HEIGHT: Final = 192
WIDTH: Final = 320
CROP: Final = 160
CROP_MARGIN: Final = 1.25
CHANNELS: Final = 112
VALUES: Final = 3  # absent, correct, incorrect
_BLOCKS: Final = 11
STRIDE: Final = 16
GRID: Final = (HEIGHT // 2 // STRIDE, WIDTH // 2 // STRIDE)
_CROP_GRID: Final = CROP // STRIDE
_MIN_SIDE: Final = 8.0  # pixels of a box that is cropped


class Trunk(nn.Module):
    """Pixels (B, 3, H, W), 0 to 255, to features (B, 112, H / 16, W / 16); sides in 32s."""

    def __init__(self) -> None:
        super().__init__()
        network = load_network().backbone
        self.stem = fuse_conv_bn_eval(network._conv_stem, network._bn0)
        self.blocks = nn.ModuleList(list(network._blocks)[:_BLOCKS])
        for block in self.blocks:
            for number, name in enumerate(("_expand_conv", "_depthwise_conv", "_project_conv")):
                norm = f"_bn{number}"
                if not hasattr(block, name):
                    continue
                setattr(block, name, fuse_conv_bn_eval(getattr(block, name), getattr(block, norm)))
                setattr(block, norm, nn.Identity())
        self.requires_grad_(False)
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features of pixels."""
        features = functional.relu6(self.stem((pixels - MEAN) / SCALE))
        for block in self.blocks:
            features = block(features)
        return features


class FindHead(nn.Module):
    """Where the assembly is: a weight for each cell and for "nowhere", and each cell's box."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(CHANNELS, 64, 1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(64, 5, 1),
        )
        self.nowhere = nn.Parameter(torch.zeros(1))
        rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in GRID), indexing="ij")
        cells = torch.stack([columns, rows], dim=-1).reshape(-1, 2) * (2.0 * STRIDE)
        self.register_buffer("cells", cells, persistent=False)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, 112, 6, 10) to weights' logits (B, 60 + 1) and the box (B, 4).

        The box is the mean of the cells' boxes by their weights.
        """
        found = self.layers(features).flatten(2).transpose(1, 2)
        logits = found[..., 0]
        centres = self.cells + found[..., 1:3] * (2.0 * STRIDE)
        half = 0.5 * torch.exp(torch.clamp(found[..., 3:5] + 4.0, 1.0, 6.5))
        boxes = torch.cat([centres - half, centres + half], dim=-1)
        box = (torch.softmax(logits, dim=1).unsqueeze(2) * boxes).sum(1)
        nowhere = self.nowhere.expand(logits.shape[0], 1)
        return torch.cat([logits, nowhere], dim=1), box


class NameHead(nn.Module):
    """What the assembly's components are, from a crop's features."""

    def __init__(self, component_count: int) -> None:
        super().__init__()
        self.component_count = component_count
        last = (_CROP_GRID + 1) // 2
        self.layers = nn.Sequential(
            nn.Conv2d(CHANNELS, 64, 1),
            nn.ReLU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 96, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(96 * last * last, 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, component_count * VALUES),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, 112, 10, 10) to logits (B, K, 3)."""
        logits: torch.Tensor = self.layers(features).view(-1, self.component_count, VALUES)
        return logits


def halve(pixels: torch.Tensor) -> torch.Tensor:
    """Pictures at half their size, for the first look."""
    return functional.avg_pool2d(pixels, 2)


def crop(
    pixels: torch.Tensor,
    boxes: torch.Tensor,
    margin: float = CROP_MARGIN,
    angles: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cut squares around boxes out of pictures and scale them.

    Args:
        pixels: (B, 3, H, W).
        boxes: (B, 4).
        margin: The square's side over the box's longer one.
        angles: By which each square is turned, radians (B,); upright where not given.

    Returns:
        (B, 3, 160, 160); grey where a square reaches beyond its picture.
    """
    height, width = pixels.shape[2], pixels.shape[3]
    centre = 0.5 * (boxes[:, :2] + boxes[:, 2:])
    side = torch.clamp((boxes[:, 2:] - boxes[:, :2]).amax(dim=1), min=_MIN_SIDE) * margin
    steps = (torch.arange(CROP, dtype=pixels.dtype) + 0.5) / CROP - 0.5
    offsets = side[:, None] * steps
    across = offsets[:, None, :].expand(-1, CROP, -1)
    down = offsets[:, :, None].expand(-1, -1, CROP)
    if angles is not None:
        cosine, sine = torch.cos(angles)[:, None, None], torch.sin(angles)[:, None, None]
        across, down = across * cosine - down * sine, across * sine + down * cosine
    x = (centre[:, 0, None, None] + across) * (2.0 / width) - 1.0
    y = (centre[:, 1, None, None] + down) * (2.0 / height) - 1.0
    grid = torch.stack([x, y], dim=-1)
    centred = functional.grid_sample(
        pixels - MEAN, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return centred + MEAN


class WholeDetector(nn.Module):
    """What is exported: pictures to one box each with a confidence for every class.

    Classes are a background that is never answered, S known states, and the error state: none of
    the known ones. With p the chance of each component's value, a known state weighs
    (product of its components' p)^sharpness, the error state
    (1 - the sum of those products)^sharpness times e^bias; the weights are made to add up to the
    chance that there is an assembly at all.
    """

    def __init__(self, trunk: Trunk, find: FindHead, name: NameHead, states: torch.Tensor) -> None:
        """Put the parts together; `states` is (S, K) of -1, 0 or 1."""
        super().__init__()
        self.trunk, self.find, self.name = trunk, find, name
        self.register_buffer("choices", one_hot(states))
        self.register_buffer("sharpness", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures, uint8 (B, 3, 192, 320), to the layout yolov8: (B, 4 + 1 + S + 1, 1)."""
        pixels = pictures.to(torch.float32)
        places, box = self.find(self.trunk(halve(pixels)))
        there = 1.0 - torch.softmax(places, dim=1)[:, -1:]
        logits = self.name(self.trunk(crop(pixels, box)))
        classes = class_chances(logits, self.choices, self.sharpness, self.bias) * there
        centre, size = 0.5 * (box[:, :2] + box[:, 2:]), box[:, 2:] - box[:, :2]
        background = torch.zeros_like(there)
        return torch.cat([centre, size, background, classes], dim=1).unsqueeze(2)


def one_hot(states: torch.Tensor) -> torch.Tensor:
    """States (S, K) of -1, 0 or 1 as choices among logits, float32 (K * 3, S)."""
    values = torch.remainder(states.to(torch.int64), VALUES)  # absent, correct, incorrect
    chosen = functional.one_hot(values, VALUES).to(torch.float32)
    return chosen.flatten(1).transpose(0, 1).contiguous()


def class_logits(
    logits: torch.Tensor, choices: torch.Tensor, sharpness: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Components' logits (B, K, 3) as logits of the known states and the error state (B, S + 1)."""
    known = torch.log_softmax(logits, dim=2).flatten(1) @ choices
    rest = torch.clamp(1.0 - torch.exp(known).sum(1, keepdim=True), min=1e-6)
    return torch.cat([known * sharpness, torch.log(rest) * sharpness + bias], dim=1)


def class_chances(
    logits: torch.Tensor, choices: torch.Tensor, sharpness: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """As `class_logits`, adding up to 1."""
    return torch.softmax(class_logits(logits, choices, sharpness, bias), dim=1)
