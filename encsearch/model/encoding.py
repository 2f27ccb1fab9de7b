"""The encoding layer: a feature map becomes K residual sums, one for each codeword."""

import torch
from torch import Tensor, nn


def encode(features: Tensor, codewords: Tensor, smoothing_factors: Tensor) -> Tensor:
    """Aggregate residuals to codewords (Zhang et al., CVPR 2018, eq. 1-2).

        r_ik = x_i - d_k,   a_ik = softmax_k(-s_k ||r_ik||^2),   e_k = sum_i a_ik r_ik

    features (B, N, C), codewords (K, C), smoothing_factors (K,) -> (B, K, C), in float32, or in float64
    where an input is float64: sums over N pixels neither fit float16 nor keep digits in bfloat16.

    The residuals (B, N, K, C) are never formed: ||x - d||^2 is expanded, and e_k is
    sum_i a_ik x_i - (sum_i a_ik) d_k. The expansion cancels badly when features lie far from zero, and both
    formulas hold in any coordinates, so both are taken relative to the mean codeword (error against float64
    with features and codewords 100 off zero, C = 512: 1e-7, and 0.14 without the shift).
    """
    dtype = torch.promote_types(torch.promote_types(features.dtype, codewords.dtype), torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        codewords = codewords.to(dtype)
        origin = codewords.mean(dim=0)
        x = features.to(dtype) - origin
        d = codewords - origin
        squared_distances = x.square().sum(-1, keepdim=True) - 2 * (x @ d.T) + d.square().sum(-1)
        assignment = torch.softmax(-smoothing_factors.to(dtype) * squared_distances, dim=-1)  # (B, N, K)
        return assignment.mT @ x - assignment.sum(1).unsqueeze(-1) * d


class Encoding(nn.Module):
    """`encode` with learned codewords and smoothing factors: (B, C, H, W) -> (B, K, C).

    The sums grow with the number of pixels: the same picture at twice the side has four times the encoding.
    """

    def __init__(self, channels: int, num_codewords: int) -> None:
        super().__init__()
        self.codewords = nn.Parameter(torch.empty(num_codewords, channels))
        self.smoothing_factors = nn.Parameter(torch.empty(num_codewords))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the reference code does; it stores the scale -s, drawn from U(-1, 0)."""
        bound = self.codewords.numel() ** -0.5
        nn.init.uniform_(self.codewords, -bound, bound)
        nn.init.uniform_(self.smoothing_factors, 0, 1)

    def forward(self, features: Tensor) -> Tensor:
        return encode(features.flatten(2).mT, self.codewords, self.smoothing_factors)

    def extra_repr(self) -> str:
        num_codewords, channels = self.codewords.shape
        return f"channels={channels}, num_codewords={num_codewords}"
