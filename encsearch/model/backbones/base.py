"""The interface of every backbone."""

from collections.abc import Sequence

from torch import Tensor, nn

from encsearch.errors import UserError


class Backbone(nn.Module):
    """Images (B, 3, H, W), normalised as ImageNet's -> the features of four stages, finest first.

    Stage i has `channels[i]` channels; the last one is (ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels: Sequence[int], stride: int) -> None:
        super().__init__()
        assert len(channels) == 4, channels
        self.channels = tuple(channels)
        self.stride = stride

    def forward(self, images: Tensor) -> list[Tensor]:
        raise NotImplementedError


class StagedBackbone(Backbone):
    """A stem and four stages, each of which takes the output of the one before."""

    def __init__(
        self, stem: nn.Module, stages: Sequence[nn.Module], channels: Sequence[int], stride: int
    ) -> None:
        super().__init__(channels, stride)
        self.stem = stem
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        stages = self.first_stages(images)
        return [*stages, self.last_stage(stages[-1])]

    def first_stages(self, images: Tensor) -> list[Tensor]:
        """Stages 1 to 3, for a context module that scales what the last stage takes."""
        features = self.stem(images)
        return [features := stage(features) for stage in self.stages[:-1]]

    def last_stage(self, features: Tensor) -> Tensor:
        """Stage 4, of the features of stage 3."""
        last: Tensor = self.stages[-1](features)
        return last


def check_stride(name: str, output_stride: int, allowed: Sequence[int]) -> None:
    """Raises UserError for an output stride that the network does not have."""
    if output_stride not in allowed:
        raise UserError(
            f"output_stride={output_stride} does not exist for {name}; try {' or '.join(map(str, allowed))}"
        )
