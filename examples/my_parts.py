"""Own parts of a recipe, one of each kind; `own.yaml` beside this file names them.

encsearch check own.yaml        tries each by its contract
encsearch train own.yaml
"""

import hashlib

import numpy as np
import optuna
import torch
import torch.nn.functional as F
from torch import nn

from encsearch.data.datasets import DatasetInfo, Sample


class Backbone(nn.Module):
    """A small network: images (B, 3, H, W) -> the features of four stages, at strides 2, 4, 8 and 8."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.channels = (width, 2 * width, 4 * width, 4 * width)
        stages = zip((3, *self.channels[:3]), self.channels, (2, 2, 2, 1), strict=True)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
            )
            for before, after, stride in stages
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        features = images
        return [features := stage(features) for stage in self.stages]


class Head(nn.Module):
    """Adds up the stages, each projected to `channels`, at the size of the first: -> (B, channels, h, w)."""

    def __init__(self, stage_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in stage_channels)

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        size = stages[0].shape[2:]
        projected = (project(stage) for project, stage in zip(self.project, stages, strict=True))
        return torch.relu(sum(F.interpolate(one, size, mode="bilinear") for one in projected))


class Context(nn.Module):
    """Mean and deviation of each channel as the context vector: (B, C, H, W) -> (B, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(2 * channels, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        deviation = features.var(dim=(2, 3), unbiased=False).add(1e-5).sqrt()
        return torch.relu(self.mix(torch.cat([features.mean(dim=(2, 3)), deviation], dim=1)))


def boundary(logits: torch.Tensor, labels: torch.Tensor, radius: int = 1) -> torch.Tensor:
    """The cross-entropy of the pixels near a boundary of classes alone, a value for each image: (B,)."""
    losses = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    size, classes = 2 * radius + 1, labels[:, None].float()
    highest = F.max_pool2d(classes, size, stride=1, padding=radius)
    lowest = -F.max_pool2d(-classes, size, stride=1, padding=radius)
    near = (highest != lowest)[:, 0] & (labels != 255)
    return (losses * near).sum(dim=(1, 2)) / near.sum(dim=(1, 2)).clamp(min=1)


class Cutout:
    """Paints a random square of the image grey, and ignores it in the mask."""

    def __init__(self, side: int = 12) -> None:
        self.side = side

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        image, mask = image.copy(), mask.copy()
        top, left = rng.integers(0, np.maximum(1, np.array(mask.shape) - self.side))
        square = slice(top, top + self.side), slice(left, left + self.side)
        image[square], mask[square] = 128, 255
        return image, mask


def halving(step: int, total_steps: int, times: int = 3) -> float:
    """A factor of the learning rate that is halved `times` times on the way."""
    return 0.5 ** (step * (times + 1) // total_steps)


class SignSGD(torch.optim.Optimizer):
    """A step of the size of the rate against the sign of each gradient (Bernstein et al., ICML 2018)."""

    def __init__(self, groups: list[dict], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is not None:
                    value.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * value.grad.sign())


class ImageMIoU:
    """The mean over images of each image's mIoU; a large image counts as much as a small one."""

    def count(self, labels: torch.Tensor, predictions: torch.Tensor, num_classes: int) -> torch.Tensor:
        found = torch.zeros(2, dtype=torch.float64, device=labels.device)
        for truth, guess in zip(labels, predictions, strict=True):
            known = truth != 255
            if known.any():
                cells = truth[known].long() * num_classes + guess[known].long()
                table = torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)
                union = table.sum(0) + table.sum(1) - table.diag()
                ious = table.diag()[union > 0] / union[union > 0]
                found += torch.stack([ious.mean(), torch.ones_like(ious[0])])
        return found

    def score(self, counts: torch.Tensor) -> float:
        return float(counts[0] / counts[1]) if counts[1] else 0.0


def sampler(seed: int, startup: int = 4) -> optuna.samplers.BaseSampler:
    """TPE of each path for itself, as Optuna has it by default."""
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)


class Stripes:
    """A data set made by a formula: stripes of two classes, `number` images of 64x48 px a split."""

    def __init__(self, split: str, number: int = 16) -> None:
        self.info = DatasetInfo("stripes", ("dark", "bright"), ((30, 30, 30), (220, 220, 220)))
        self.fingerprint = hashlib.sha256(f"{split} {number}".encode()).hexdigest()
        self._split, self._number = split, number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([index, len(self._split)])
        rows, columns = np.mgrid[:48, :64]
        mask = (np.sin(rng.uniform(0.2, 0.5) * (rows + columns * rng.normal())) > 0).astype(np.uint8)
        noise = rng.normal(0, 25, (48, 64, 3))
        image = np.clip(30 + 190 * mask[..., None] + noise, 0, 255).astype(np.uint8)
        return Sample(f"{self._split}-{index}", image, mask)
