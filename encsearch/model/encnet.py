"""EncNet and its baselines: backbone, head, context module, auxiliary head."""

from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encsearch.config import ModelConfig
from encsearch.model.backbones import build_backbone
from encsearch.model.context import Aggregate, ContextEncodingModule, ContextOutput, PooledGate, Scaling
from encsearch.model.heads import FCNHead


class EncNetOutput(NamedTuple):
    """logits and aux_logits (B, num_classes, H, W) at the images' size, presence_logits (B, num_classes).

    presence_logits is None without a context module, aux_logits outside training.
    """

    logits: Tensor
    presence_logits: Tensor | None
    aux_logits: Tensor | None


class EncNet(nn.Module):
    """Context Encoding for Semantic Segmentation (Zhang et al., CVPR 2018): (B, 3, H, W) -> EncNetOutput.

    `context="encoding"` is EncNet, `"gate"` puts average pooling in the place of the codewords, and `"none"`
    is FCN: the same backbone and FCN heads, so that only the context module's weights are missing. Lateral
    connections, which the reference code adds for some data sets, are left out as in the paper.

    H and W are free. Training needs more than one value a channel for BN: two images, or one that is larger
    than the output stride. Raises UserError for an unknown backbone or stride and for unfit weights.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        num_codewords: int = 32,
        num_classes: int = 59,
        *,
        context: Literal["encoding", "gate", "none"] = "encoding",
        channels: int = 512,
        output_stride: int = 8,
        aggregate: Aggregate = "mean",
        scaling: Scaling = "residual",
        dropout: float = 0.1,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        assert context in ("encoding", "gate", "none"), context
        self.backbone = build_backbone(backbone, output_stride, weights)
        *_, stage3_channels, stage4_channels = self.backbone.channels
        self.head = FCNHead(stage4_channels, channels, num_classes, dropout)
        self.context: nn.Module | None = None
        if context == "encoding":
            self.context = ContextEncodingModule(channels, num_classes, num_codewords, aggregate, scaling)
        elif context == "gate":
            self.context = PooledGate(channels, num_classes, scaling)
        self.aux_head = FCNHead(stage3_channels, stage3_channels // 4, num_classes, dropout)

    @classmethod
    def from_config(cls, model: ModelConfig, num_classes: int) -> Self:
        return cls(num_classes=num_classes, **model.model_dump())

    def forward(self, images: Tensor) -> EncNetOutput:
        *_, stage3, stage4 = self.backbone(images)
        features = self.head.project(stage4)
        presence_logits = None
        if self.context is not None:
            context: ContextOutput = self.context(features)
            features, presence_logits = context
        logits = _upsample(self.head.classify(features), images)
        aux_logits = _upsample(self.aux_head(stage3), images) if self.training else None
        return EncNetOutput(logits, presence_logits, aux_logits)

    def parameter_groups(self, lr: float, head_lr_factor: float) -> list[dict[str, Any]]:
        """Optimizer groups: the backbone at `lr`, everything above it at `lr * head_lr_factor`.

        Weight decay is left to the optimizer, for all parameters alike: the reference code spares neither
        biases and BN nor codewords and smoothing factors.
        """
        heads = [value for name, value in self.named_parameters() if not name.startswith("backbone.")]
        return [
            {"params": list(self.backbone.parameters()), "lr": lr},
            {"params": heads, "lr": lr * head_lr_factor},
        ]


def _upsample(logits: Tensor, images: Tensor) -> Tensor:
    """Bilinear, to the size of `images`, in float32 at least: cross-entropy would copy bfloat16 to it anyway.

    Corners are not aligned (mmsegmentation; the reference code aligns them), so that a pixel's logits come
    from the same distance whatever the size of the image.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
