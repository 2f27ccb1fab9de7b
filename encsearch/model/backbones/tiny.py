"""The backbone for generated scenes and for tests."""

from encsearch.model.backbones.base import StagedBackbone, check_stride
from encsearch.model.layers import conv_bn_relu

_CHANNELS = (16, 32, 48, 48)


def tiny(output_stride: int) -> StagedBackbone:
    """Five small convolutions for generated images of 64 to 96 px on a CPU.

    It must not see far: at stride 4 its features reach 23 px, those of an FCN head above it 31 px, and after
    upsampling a pixel's logits depend on no image pixel more than 20 px away, so that only a context module
    sees the rest (at stride 8: 23 px, 39 px, 30 px away).
    """
    check_stride("tiny", output_stride, (4, 8))
    c1, c2, c3, c4 = _CHANNELS
    stem = conv_bn_relu(3, c1, kernel_size=3, stride=2)
    stages = [
        conv_bn_relu(c1, c1, kernel_size=3, stride=2),
        conv_bn_relu(c1, c2, kernel_size=3),
        conv_bn_relu(c2, c3, kernel_size=3),
        conv_bn_relu(c3, c4, kernel_size=1, stride=output_stride // 4),
    ]
    return StagedBackbone(stem, stages, _CHANNELS, output_stride)
