"""Context modules: one vector per image scales every channel and predicts which classes are present.

The vector comes from `EncodedSemantics` in EncNet, and from `PooledSemantics`, which is average pooling, in
the control.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encsearch.config import ModelConfig
from encsearch.model.encoding import Encoding
from encsearch.model.layers import conv_bn_relu
from encsearch.model.own import own_context
from encsearch.parts import is_part


class ContextOutput(NamedTuple):
    """Features (B, C, H, W), scaled or as they were; logits (B, num_classes) of the SE-loss, or None."""

    features: Tensor
    presence_logits: Tensor | None


def build_semantics(model: ModelConfig, channels: int) -> nn.Module | None:
    """The module from features (B, C, H, W) to the context vector (B, C); None for `context: none`.

    Raises UserError for an own one that does not do what `own` asks for.
    """
    if is_part(model.context):
        return own_context(model.context, model, channels)
    match model.context:
        case "encoding":
            return EncodedSemantics(channels, model)
        case "gate":
            return PooledSemantics(channels)
        case "none":
            return None


class ContextModule(nn.Module):
    """Scale features by the context vector of the whole image: (B, C, H, W) -> ContextOutput.

    With EncodedSemantics it is the paper's Context Encoding Module. The scaling factors
    gamma = sigmoid(W e) multiply the features (paper, `multiply`) or give relu(x + x * gamma) (reference
    code, `residual`); with None features stay as they are. The presence logits are linear in the same
    vector (both sources); without `has_presence` there are none. What is not asked for has no weights,
    because DistributedDataParallel waits for the gradient of every weight.
    """

    def __init__(
        self,
        semantics: nn.Module,
        channels: int,
        num_classes: int,
        scaling: Literal["multiply", "residual"] | None,
        *,
        has_presence: bool = True,
    ) -> None:
        super().__init__()
        self.semantics = semantics
        self.weigh = nn.Linear(channels, channels) if scaling else None
        self.presence = nn.Linear(channels, num_classes) if has_presence else None
        self.scaling = scaling

    def forward(self, features: Tensor) -> ContextOutput:
        semantics = self.semantics(features)
        presence_logits = None if self.presence is None else self.presence(semantics)
        if self.weigh is None:
            return ContextOutput(features, presence_logits)
        scaled = features * torch.sigmoid(self.weigh(semantics))[:, :, None, None]
        if self.scaling == "residual":
            scaled = F.relu(features + scaled)
        return ContextOutput(scaled, presence_logits)


class EncodedSemantics(nn.Module):
    """The encoding as one vector: (B, C, H, W) -> (B, C).

    - `encoding_conv`, a 1x1 convolution with BN and ReLU before the encoding: reference code only.
    - BN per codeword, that is over (B, C), and ReLU, on the encoding (B, K, C): both.
    - The sum over the K codewords: paper (`aggregate="sum"`); their mean: reference code.
    """

    def __init__(self, channels: int, model: ModelConfig) -> None:
        super().__init__()
        self.conv = conv_bn_relu(channels, channels, kernel_size=1) if model.encoding_conv else nn.Identity()
        self.encoding = Encoding(channels, model.num_codewords, model.rescale_encoding, model.codeword_init)
        self.norm = nn.BatchNorm1d(model.num_codewords)
        self.aggregate = model.aggregate

    def forward(self, features: Tensor) -> Tensor:
        encoding = F.relu(self.norm(self.encoding(self.conv(features))))
        match self.aggregate:
            case "sum":
                return encoding.sum(dim=1)
            case "mean":
                return encoding.mean(dim=1)


class PooledSemantics(nn.Module):
    """The control without codewords: (B, C, H, W) -> (B, C), by average pooling and BN over the batch.

    The paper's ablation calls this K = 0. The BN is ours: without it the SE-loss hardly trains the gate.
    There is no 1x1 convolution before the pooling, so it has C * C weights fewer than the reference's.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = BatchNormOfOne(channels)

    def forward(self, features: Tensor) -> Tensor:
        pooled: Tensor = self.norm(features.mean(dim=(2, 3)))
        return pooled


class BatchNormOfOne(nn.BatchNorm1d):
    """BatchNorm1d over (B, C) that uses its running statistics, unchanged, for a training batch of one.

    One value has no variance, and BatchNorm1d raises. SyncBatchNorm, which replaces this class under
    `convert_sync_batchnorm`, needs no such rule: it counts the images of all ranks.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) == 1:
            return F.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=False,
                eps=self.eps,
            )
        return super().forward(input)
