"""The encoding layer: a feature map becomes K residual sums, one for each codeword."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

UNIT_SMOOTHING = 10.0
"""Initial smoothing factor for vectors of length 1, whose squared distances are at most 4."""


def encode(features: Tensor, codewords: Tensor, smoothing_factors: Tensor) -> Tensor:
    """Aggregate residuals to codewords (Zhang et al., CVPR 2018, eq. 1-2).

        r_ik = x_i - d_k,   a_ik = softmax_k(-s_k ||r_ik||^2),   e_k = sum_i a_ik r_ik

    features (B, N, C), codewords (K, C), smoothing_factors (K,) -> (B, K, C), in float32, or in float64
    where features or codewords are: sums over N pixels neither fit float16 nor keep digits in bfloat16.
    Autocast makes no difference. Gradients have the dtypes of their inputs.

    It is `encode_definition` with a backward pass of its own, which takes about half the time and keeps
    (B, N, K + 1) values beside the inputs, while autograd keeps (B, N, C) several times. There is no second
    derivative: asking for one raises RuntimeError.
    """
    encoding: Tensor = _Encode.apply(features, codewords, smoothing_factors)
    return encoding


def encode_definition(features: Tensor, codewords: Tensor, smoothing_factors: Tensor) -> Tensor:
    """The definition of `encode`, for reading, and for autograd to differentiate any number of times.

    The residuals (B, N, K, C) are not formed: ||x - d||^2 is expanded, and e_k is
    sum_i a_ik x_i - (sum_i a_ik) d_k.
    """
    with torch.autocast(features.device.type, enabled=False):
        x, d = _centre(features, codewords)
        assignment = assign(features, codewords, smoothing_factors)
        return assignment.mT @ x - assignment.sum(1).unsqueeze(-1) * d


def assign(features: Tensor, codewords: Tensor, smoothing_factors: Tensor) -> Tensor:
    """The soft assignment a_ik of eq. 1 for the arguments of `encode` -> (B, N, K); it sums to 1 over K."""
    with torch.autocast(features.device.type, enabled=False):
        x, d = _centre(features, codewords)
        squared_distances = x.square().sum(-1, keepdim=True) - 2 * (x @ d.T) + d.square().sum(-1)
        return torch.softmax(-smoothing_factors.to(x.dtype) * squared_distances, dim=-1)


class Encoding(nn.Module):
    """`encode` with learned codewords and smoothing factors: (B, C, H, W) -> (B, K, C).

    The sums grow with the number of pixels: the same picture at twice the side has four times the encoding.
    With `rescale`, evaluation multiplies by N_train / N, where N_train = H * W of the last training step is
    part of the state; before any training step it does not.

    With `init="unit"`, which is ours, pixels and codewords have length 1, so that directions are compared,
    and the smoothing factors begin at UNIT_SMOOTHING: more codewords are then in use (docs/codewords.md).
    """

    num_pixels: Tensor | None

    def __init__(
        self,
        channels: int,
        num_codewords: int,
        rescale: bool = False,
        init: Literal["published", "unit"] = "published",
    ) -> None:
        super().__init__()
        self.init = init
        self.codewords = nn.Parameter(torch.empty(num_codewords, channels))
        self.smoothing_factors = nn.Parameter(torch.empty(num_codewords))
        self.register_buffer("num_pixels", torch.empty((), dtype=torch.long) if rescale else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Like the reference code (encoding/nn/encoding.py), which stores the scale -s from U(-1, 0)."""
        bound = self.codewords.numel() ** -0.5
        nn.init.uniform_(self.codewords, -bound, bound)
        nn.init.uniform_(self.smoothing_factors, 0, 1)
        if self.init == "unit":
            nn.init.constant_(self.smoothing_factors, UNIT_SMOOTHING)
        if self.num_pixels is not None:
            self.num_pixels.zero_()

    def forward(self, features: Tensor) -> Tensor:
        pixels, codewords = self.prepare_inputs(features.flatten(2).mT)
        encoding = encode(pixels, codewords, self.smoothing_factors)
        if self.num_pixels is None:
            return encoding
        num_pixels = features.shape[2] * features.shape[3]
        if self.training:
            self.num_pixels.fill_(num_pixels)
            return encoding
        return encoding * torch.where(self.num_pixels > 0, self.num_pixels / num_pixels, 1.0)

    def prepare_inputs(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, N, C) and codewords (K, C) as they enter the equations."""
        match self.init:
            case "published":
                return pixels, self.codewords
            case "unit":
                dtype = torch.promote_types(pixels.dtype, torch.float32)
                return F.normalize(pixels.to(dtype), dim=-1), F.normalize(self.codewords, dim=-1)

    def extra_repr(self) -> str:
        num_codewords, channels = self.codewords.shape
        rescale = self.num_pixels is not None
        return f"channels={channels}, num_codewords={num_codewords}, rescale={rescale}"


class _Encode(torch.autograd.Function):
    """`encode`, forward and backward, with one temporary (B, N, C) at a time.

    Both passes form the centred features, since keeping them would double the memory; the backward pass turns
    them into the gradient in place. torch.compile and torch.export trace this class as it is.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, codewords: Tensor, smoothing_factors: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            x, d = _centre(features, codewords)
            s = smoothing_factors.to(x.dtype)
            squared_norms = torch.linalg.vector_norm(x, dim=-1).square()  # (B, N)
            # Softmax ignores what all codewords of a pixel share: without min(s) * ||x||^2 the logits keep
            # their digits where the features lie far from the codewords.
            excess = (s - s.min()) * squared_norms.unsqueeze(-1) + s * d.square().sum(-1)
            logits = torch.baddbmm(-excess, x, _expand_to_batch((2 * s.unsqueeze(-1) * d).T, x))
            assignment = torch.softmax(logits, dim=-1)  # (B, N, K)
            ctx.save_for_backward(features, codewords, smoothing_factors, assignment, squared_norms)
            return torch.baddbmm(-assignment.sum(1).unsqueeze(-1) * d, assignment.mT, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With g = dL/de (B, K, C) and u = dL/dlogits (B, N, K), by the chain rule through both equations:

            dL/da_ik = g_k (x_i - d_k),   u_ik = a_ik (dL/da_ik - sum_j a_ij dL/da_ij)
            dL/dx_i = sum_k a_ik g_k - 2 s_k u_ik (x_i - d_k)
            dL/dd_k = sum_i -a_ik g_k + 2 s_k u_ik (x_i - d_k)
            dL/ds_k = -sum_i u_ik ||x_i - d_k||^2

        The origin of x and d has no gradient: the encoding does not depend on it.
        """
        features, codewords, smoothing_factors, assignment, squared_norms = ctx.saved_tensors
        with torch.autocast(features.device.type, enabled=False):
            x, d = _centre(features, codewords)
            s = smoothing_factors.to(x.dtype)
            grad_assignment = torch.baddbmm(-(d * grad).sum(-1).unsqueeze(1), x, grad.mT)
            u = assignment * (grad_assignment - (assignment * grad_assignment).sum(-1, keepdim=True))
            u_sum, ux_sum = u.sum((0, 1)), (u.mT @ x).sum(0)  # (K,), (K, C)
            grad_smoothing = 2 * (d * ux_sum).sum(-1) - d.square().sum(-1) * u_sum
            grad_smoothing -= squared_norms.flatten() @ u.flatten(0, 1)
            grad_codewords = 2 * s.unsqueeze(-1) * (ux_sum - u_sum.unsqueeze(-1) * d)
            grad_codewords -= (assignment.sum(1).unsqueeze(-1) * grad).sum(0)
            pull = 2 * s * u
            grad_features = x.mul_(-pull.sum(-1, keepdim=True))
            # One product of inner dimension 2 K passes over the (B, N, C) values once instead of twice.
            grad_features.baddbmm_(
                torch.cat([assignment, pull], dim=-1), torch.cat([grad, _expand_to_batch(d, x)], dim=1)
            )
        return (
            grad_features.to(features.dtype),
            grad_codewords.to(codewords.dtype),
            grad_smoothing.to(smoothing_factors.dtype),
        )


def _centre(features: Tensor, codewords: Tensor) -> tuple[Tensor, Tensor]:
    """Both relative to the mean codeword, in float32 or better: x (B, N, C), d (K, C).

    Both equations hold in any coordinates, and the expanded distance cancels badly far from zero (error
    against float64 with features and codewords 100 off zero, C = 512: 1e-7, and 0.14 without the shift).
    """
    dtype = torch.promote_types(torch.promote_types(features.dtype, codewords.dtype), torch.float32)
    codewords = codewords.to(dtype)
    origin = codewords.mean(dim=0)
    return features - origin, codewords - origin  # the subtraction casts the features in the same pass


def _expand_to_batch(matrix: Tensor, like: Tensor) -> Tensor:
    """(M, N) -> (B, M, N), a view, with the B of `like`."""
    return matrix.expand(like.shape[0], -1, -1)
