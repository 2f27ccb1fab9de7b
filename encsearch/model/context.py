"""Context modules: one vector per image scales every channel and tells which classes are present.

`ContextEncodingModule` is EncNet's; `PooledGate` is the control with average pooling in its place. The paper
applies two Context Encoding Modules, on stages 3 and 4; the reference code, and we, apply one on stage 4 and
an auxiliary FCN head on stage 3.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encsearch.model.encoding import Encoding
from encsearch.model.heads import conv_bn_relu

Aggregate = Literal["sum", "mean"]
Scaling = Literal["multiply", "residual"]


class ContextOutput(NamedTuple):
    """Scaled features (B, C, H, W) and the logits (B, num_classes) of the SE-loss."""

    features: Tensor
    presence_logits: Tensor


class ContextEncodingModule(nn.Module):
    """EncNet's module: (B, C, H, W) -> ContextOutput.

    - A 1x1 convolution with BN and ReLU before the encoding: reference code only.
    - BN per codeword, that is over (B, C), and ReLU, on the encoding (B, K, C): both.
    - The sum over the K codewords: paper (`aggregate="sum"`); their mean: reference code.
    """

    def __init__(
        self, channels: int, num_classes: int, num_codewords: int, aggregate: Aggregate, scaling: Scaling
    ) -> None:
        super().__init__()
        self.encoding = nn.Sequential(
            conv_bn_relu(channels, channels, kernel_size=1),
            Encoding(channels, num_codewords),
            nn.BatchNorm1d(num_codewords),
            nn.ReLU(inplace=True),
        )
        self.aggregate = {"sum": torch.sum, "mean": torch.mean}[aggregate]
        self.gate = ChannelGate(channels, num_classes, scaling)

    def forward(self, features: Tensor) -> ContextOutput:
        encoding = self.aggregate(self.encoding(features), dim=1)
        output: ContextOutput = self.gate(features, encoding)
        return output


class PooledGate(nn.Module):
    """The control without codewords: (B, C, H, W) -> ContextOutput, by average pooling and BN over the batch.

    The paper's ablation calls this K = 0. The BN is ours: without it the SE-loss hardly trains the gate. No
    1x1 convolution stands before the pooling, which makes the module C * C weights smaller than EncNet's.
    """

    def __init__(self, channels: int, num_classes: int, scaling: Scaling) -> None:
        super().__init__()
        self.norm = BatchNormOfOne(channels)
        self.gate = ChannelGate(channels, num_classes, scaling)

    def forward(self, features: Tensor) -> ContextOutput:
        output: ContextOutput = self.gate(features, self.norm(features.mean(dim=(2, 3))))
        return output


class ChannelGate(nn.Module):
    """features (B, C, H, W), context (B, C) -> ContextOutput.

    The scaling factors gamma = sigmoid(W context) multiply the features (paper, `multiply`) or give
    relu(x + x * gamma) (reference code, `residual`). The presence logits are linear in the context (both).
    """

    def __init__(self, channels: int, num_classes: int, scaling: Scaling) -> None:
        super().__init__()
        assert scaling in ("multiply", "residual"), scaling
        self.scaling = scaling
        self.weigh = nn.Linear(channels, channels)
        self.presence = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor, context: Tensor) -> ContextOutput:
        scaling_factors = torch.sigmoid(self.weigh(context))[:, :, None, None]
        scaled = features * scaling_factors
        if self.scaling == "residual":
            scaled = F.relu(features + scaled)
        return ContextOutput(scaled, self.presence(context))


class BatchNormOfOne(nn.BatchNorm1d):
    """BatchNorm1d over (B, C) that trains on a batch of one by its running statistics, which it then keeps.

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
