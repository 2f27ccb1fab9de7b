"""EncNet and the networks it is compared with: backbone, head, context module, auxiliary branch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from encsearch.config import ModelConfig, model_config
from encsearch.errors import UserError
from encsearch.model.backbones import StagedBackbone, build_backbone, load_own_weights
from encsearch.model.context import ContextModule, build_semantics
from encsearch.model.heads import build_head, classifier, fcn_head
from encsearch.model.layers import upsample
from encsearch.model.own import check_backbone, own_backbone, own_head
from encsearch.parts import is_part


class EncNetOutput(NamedTuple):
    """logits (B, num_classes, H, W) at the images' size, presence_logits (B, num_classes), aux_logits.

    presence_logits is None without a context module. aux_logits come from stage 3: pixel logits, like
    logits, from the auxiliary FCN head, or presence logits from the paper's second Context Encoding Module.
    They are None outside training and without such a branch.
    """

    logits: Tensor
    presence_logits: Tensor | None
    aux_logits: Tensor | None


class EncNet(nn.Module):
    """Context Encoding for Semantic Segmentation (Zhang et al., CVPR 2018): (B, 3, H, W) -> EncNetOutput.

    A head makes features from the backbone's four stages, a context module scales their channels, then come a
    classifier and bilinear upsampling. With `head="fcn"`, `context="encoding"` is EncNet, `"gate"` replaces
    the codewords by average pooling, and `"none"` is FCN, which only lacks the context module. With
    `attention="classes"` the module scales the logits instead, each class by the probability that it is in
    the image; with `attention_stages=(3, 4)` a second module scales the features that stage 4 takes.

    `backbone` is a name, or a module as `own` asks for. `options` are the other fields of `ModelConfig`, with
    its defaults: `preset`, `output_stride`, ...

    H and W are free. Training needs more than one value per channel for BN: two images, or one larger than
    the output stride. Raises UserError for invalid options and for weights that do not fit.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet50",
        num_codewords: int = 32,
        num_classes: int = 59,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(backbone, nn.Module):
            self.backbone: Any = check_backbone(backbone, type(backbone).__name__)
            options = {"output_stride": self.backbone.stride, **options}
            model = model_config(num_codewords=num_codewords, **options)
        else:
            model = model_config(backbone=backbone, num_codewords=num_codewords, **options)
            self.backbone = _build_backbone(model)
        self.scales_stage3 = 3 in model.attention_stages and model.context != "none"
        if self.scales_stage3 and not isinstance(self.backbone, StagedBackbone):
            raise UserError(
                f"model.attention_stages=[3, 4]: {model.backbone} runs as a whole, without a place between "
                "its stages 3 and 4; give [4], or one of torchvision's networks"
            )
        *_, stage3, _ = self.backbone.channels
        self.head = (
            own_head(model.head, model, self.backbone.channels)
            if is_part(model.head)
            else build_head(
                model.head,
                self.backbone.channels,
                model.channels,
                stride=model.output_stride,
                lateral=model.lateral,
            )
        )
        semantics = build_semantics(model, model.channels)
        match model.attention:
            case "features":
                scales_features, self.scales_classes = True, False
            case "classes":
                scales_features, self.scales_classes = False, True
            case "both":
                scales_features = self.scales_classes = True
        self.context = semantics and ContextModule(
            semantics, model.channels, num_classes, model.scaling if scales_features else None
        )
        self.classifier = classifier(model.channels, num_classes, model.dropout)
        self.aux_head = self.aux_context = None
        has_loss = False
        match model.auxiliary:
            case "fcn":
                self.aux_head = fcn_head(stage3, num_classes, model.dropout)
            case "se":
                has_loss = True
            case "none":
                pass
        aux_semantics = build_semantics(model, stage3) if self.scales_stage3 or has_loss else None
        if aux_semantics:
            self.aux_context = ContextModule(
                aux_semantics,
                stage3,
                num_classes,
                model.scaling if self.scales_stage3 else None,
                has_presence=has_loss,
            )
        self.align_corners = model.align_corners

    @classmethod
    def from_config(cls, model: ModelConfig, num_classes: int) -> Self:
        return cls(num_classes=num_classes, **model.model_dump(exclude_unset=True))

    def forward(self, images: Tensor) -> EncNetOutput:
        stages, aux_logits = self._stages(images)
        features = self.head(stages)
        presence_logits = None
        if self.context is not None:
            features, presence_logits = self.context(features)
        logits = self.classifier(features)
        if self.scales_classes and presence_logits is not None:
            logits = logits * torch.sigmoid(presence_logits)[:, :, None, None]
        logits = self._upsample(logits, images)
        return EncNetOutput(logits, presence_logits, aux_logits if self.training else None)

    def _stages(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The features of the four stages, and in training the logits of the auxiliary branch."""
        if self.scales_stage3:
            assert self.aux_context is not None
            *finer, stage3 = self.backbone.first_stages(images)
            stage3, aux_logits = self.aux_context(stage3)
            stages = [*finer, stage3, self.backbone.last_stage(stage3)]
        else:
            stages, aux_logits = self.backbone(images), None
            *_, stage3, _ = stages
            if self.training and self.aux_context is not None:
                _, aux_logits = self.aux_context(stage3)
        if self.training and self.aux_head is not None:
            aux_logits = self._upsample(self.aux_head(stage3), images)
        return stages, aux_logits

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

    def _upsample(self, logits: Tensor, images: Tensor) -> Tensor:
        """To the images' size.

        Without aligned corners (mmsegmentation; the reference code aligns them) a pixel's logits come from
        the same distance whatever the size of the image.
        """
        height, width = images.shape[-2:]
        return upsample(logits, (height, width), align_corners=self.align_corners)


def has_own_parts(model: ModelConfig) -> bool:
    """Whether code of a user makes a part of the network, which may not do without storage."""
    return any(map(is_part, (model.backbone, model.head, model.context)))


@contextmanager
def without_storage(model: ModelConfig) -> Iterator[None]:
    """Build such a network without storage; one with own parts has it, and draws no random numbers."""
    with torch.random.fork_rng() if has_own_parts(model) else torch.device("meta"):
        yield


def _build_backbone(model: ModelConfig) -> Any:
    if not is_part(model.backbone):
        return build_backbone(model.backbone, model.output_stride, model.weights)
    backbone = own_backbone(model.backbone, model)
    load_own_weights(backbone, model.backbone, model.weights)
    return backbone


def count_parameters(model: ModelConfig, num_classes: int) -> int:
    """The number of parameters of the network, all of them trained; it is built without storage."""
    with without_storage(model):
        network = EncNet.from_config(model.model_copy(update={"weights": None}), num_classes)
    return sum(parameter.numel() for parameter in network.parameters())
