"""EncNet and its baselines: outputs at the size of the images, one context vector, two parameter groups."""

import importlib.metadata
import subprocess
import sys
from typing import Any, get_args

import pytest
import torch

import encsearch
from encsearch.config import Context, ModelConfig
from encsearch.errors import UserError
from encsearch.model.context import ContextModule, PooledSemantics, build_semantics
from encsearch.model.encnet import EncNet


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(context: Context = "encoding", **options: Any) -> EncNet:
    return EncNet(
        "tiny",
        num_codewords=4,
        num_classes=5,
        **{"context": context, "channels": 8, "output_stride": 4, **options},
    )


@pytest.mark.parametrize("context", get_args(Context))
@pytest.mark.parametrize("size", [(97, 131), (64, 64), (1, 1), (3, 200)])
def test_logits_have_the_size_of_the_images(context: Context, size: tuple[int, int]) -> None:
    output = small(context).eval()(torch.randn(2, 3, *size))
    assert output.logits.shape == (2, 5, *size)
    assert output.logits.isfinite().all()
    assert output.aux_logits is None
    if context == "none":
        assert output.presence_logits is None
    else:
        assert output.presence_logits is not None
        assert output.presence_logits.shape == (2, 5)


@pytest.mark.parametrize("preset", ["paper", "reference", "mmseg"])
@pytest.mark.parametrize("context", get_args(Context))
@pytest.mark.parametrize("batch", [1, 2])
def test_every_parameter_is_trained_even_by_one_image(context: Context, preset: str, batch: int) -> None:
    model = small(context, preset=preset).train()
    output = model(torch.randn(batch, 3, 33, 47))
    if preset != "paper":
        assert output.aux_logits.shape == (batch, 5, 33, 47)
    sum(part.square().sum() for part in output if part is not None).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_default_is_the_papers_network_for_pascal_context() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in EncNet().named_parameters()}
    assert shapes["context.semantics.encoding.codewords"] == (32, 512)
    assert shapes["head.project.0.weight"] == (512, 2048, 3, 3)
    assert shapes["classifier.1.weight"] == (59, 512, 1, 1)
    assert shapes["aux_context.semantics.encoding.codewords"] == (32, 1024)
    assert not any(name.startswith("aux_head.") for name in shapes)


def test_baseline_lacks_the_context_module_and_nothing_else() -> None:
    encnet, fcn = small("encoding").state_dict(), small("none").state_dict()
    assert {key for key in encnet if not key.startswith(("context.", "aux_context."))} == set(fcn)


def test_context_reaches_every_pixel() -> None:
    images = torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[..., 60:, 60:] += 3
    for context, reaches in (("encoding", True), ("gate", True), ("none", False)):
        model = small(context).train()
        for _ in range(50):  # until batch norm knows the encodings, which would drown the gate in its sigmoid
            model(torch.randn(4, 3, 64, 64))
        model.eval()
        far_corner = (model(images).logits - model(changed).logits)[..., :8, :8]
        assert bool(far_corner.abs().max() > 0) is reaches


def context_module(context: Context, **options: Any) -> ContextModule:
    torch.manual_seed(0)
    model = ModelConfig(num_codewords=4, context=context, **options)
    semantics = build_semantics(model, channels=8)
    assert semantics is not None
    return ContextModule(semantics, 8, 5, model.scaling).eval()


@pytest.mark.parametrize("context", ["encoding", "gate"])
def test_context_module_scales_channels_as_paper_or_reference(context: Context) -> None:
    features = torch.randn(2, 8, 6, 6)
    scaled = {
        scaling: context_module(context, scaling=scaling)(features).features
        for scaling in ("multiply", "residual")
    }
    scaling_factors = scaled["multiply"] / features
    assert scaling_factors.min() > 0
    assert scaling_factors.max() < 1
    torch.testing.assert_close(scaling_factors, scaling_factors[..., :1, :1].expand_as(features))
    torch.testing.assert_close(scaled["residual"], torch.relu(features + scaled["multiply"]))


def test_mean_over_codewords_is_the_sum_divided_by_their_number() -> None:
    features = torch.randn(2, 8, 6, 6)
    semantics = {
        aggregate: context_module("encoding", aggregate=aggregate).semantics(features)
        for aggregate in ("sum", "mean")
    }
    assert semantics["sum"].abs().max() > 0
    torch.testing.assert_close(semantics["sum"], 4 * semantics["mean"])


def test_papers_preset_has_a_second_module_for_the_se_loss_of_stage_3() -> None:
    paper, mmseg = small(preset="paper").train(), small(preset="mmseg").train()
    output = paper(torch.randn(2, 3, 32, 32))
    assert output.aux_logits is not None
    assert output.aux_logits.shape == (2, 5)
    assert mmseg(torch.randn(2, 3, 32, 32)).aux_logits.shape == (2, 5, 32, 32)
    assert small("none", preset="paper").train()(torch.randn(2, 3, 32, 32)).aux_logits is None


@pytest.mark.parametrize("auxiliary", ["se", "fcn", "none"])
@pytest.mark.parametrize("attention", ["features", "classes", "both"])
@pytest.mark.parametrize("attention_stages", [(4,), (3, 4)])
def test_every_form_of_attention_trains_every_parameter_and_predicts_alike_in_eval(
    auxiliary: str, attention: str, attention_stages: tuple[int, ...]
) -> None:
    options = {"auxiliary": auxiliary, "attention": attention, "attention_stages": attention_stages}
    model = small(**options).train()
    output = model(torch.randn(2, 3, 33, 47))
    sum(part.square().sum() for part in output if part is not None).backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not idle, "DistributedDataParallel would wait for them"
    evaluated = model.eval()(torch.randn(2, 3, 33, 47))
    assert evaluated.aux_logits is None
    assert evaluated.logits.shape == (2, 5, 33, 47)


def test_without_context_there_is_no_attention() -> None:
    plain, asked = small("none"), small("none", attention="both", attention_stages=(3, 4))
    assert plain.state_dict().keys() == asked.state_dict().keys()
    asked.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 33, 47)
    torch.testing.assert_close(asked.eval()(images).logits, plain.eval()(images).logits)


def test_class_attention_multiplies_a_class_by_its_presence() -> None:
    """The last layer has one channel a class, so its scaling factor is the presence of that class."""
    images = torch.randn(2, 3, 32, 32)
    both = small(attention="both").eval()
    features = small(attention="features").eval()
    features.load_state_dict(both.state_dict())
    scaled, plain = both(images), features(images)
    assert scaled.presence_logits is not None
    expected = plain.logits * scaled.presence_logits.sigmoid()[:, :, None, None]
    torch.testing.assert_close(scaled.logits, expected)
    classes = small(attention="classes")
    weigh = {name for name in both.state_dict() if name.startswith("context.weigh")}
    assert set(both.state_dict()) - set(classes.state_dict()) == weigh


def test_attention_on_stage_3_scales_what_stage_4_takes() -> None:
    images = torch.randn(2, 3, 32, 32)
    one, two = small().eval(), small(attention_stages=(3, 4)).eval()
    two.load_state_dict(one.state_dict(), strict=False)
    assert two.aux_context is not None
    assert two.aux_context.weigh is not None
    # Factors of 1 leave the features of stage 3 as they are, and factors of 0 take them all away.
    for bias, same in ((40.0, True), (-40.0, False)):
        torch.nn.init.zeros_(two.aux_context.weigh.weight)
        torch.nn.init.constant_(two.aux_context.weigh.bias, bias)
        assert torch.allclose(two(images).logits, one(images).logits, atol=1e-6) is same


def test_attention_on_stage_3_needs_a_backbone_of_stages() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="timm:resnet10t runs as a whole"):
        EncNet("timm:resnet10t", num_classes=5, attention_stages=(3, 4))
    with pytest.raises(UserError, match=r"attention_stages: is \[4\] or \[3, 4\], but got \[3\]"):
        small(attention_stages=(3,))


def test_reference_joins_stages_2_and_3_and_aligns_corners() -> None:
    reference, mmseg = small(preset="reference"), small(preset="mmseg")
    extra = set(dict(reference.named_parameters())) - set(dict(mmseg.named_parameters()))
    assert {name.split(".")[1] for name in extra} == {"connect", "fuse"}
    images = torch.randn(1, 3, 64, 64)
    for model, aligned in ((reference, True), (mmseg, False)):
        thirds = model.eval()(images).logits[..., ::21, ::21]
        assert model.context is not None
        coarse = model.classifier(model.context(model.head(model.backbone(images))).features)
        assert bool(torch.allclose(thirds, coarse[..., ::5, ::5], atol=1e-6)) is aligned


def test_gate_leaves_its_statistics_alone_on_a_single_image() -> None:
    gate = PooledSemantics(8).train()
    before = gate.norm.running_mean.clone()
    gate(torch.randn(1, 8, 4, 4))
    assert torch.equal(gate.norm.running_mean, before)
    gate(torch.randn(2, 8, 4, 4))
    assert not torch.equal(gate.norm.running_mean, before)


def test_bfloat16_autocast_gives_float32_logits_near_the_exact_ones() -> None:
    model, images = small().eval(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        exact = model(images).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(images).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.05)


def test_memory_format_does_not_matter() -> None:
    model, images = small().eval(), torch.randn(2, 3, 33, 47)
    with torch.inference_mode():
        expected = model(images).logits
        found = model.to(memory_format=torch.channels_last)(
            images.to(memory_format=torch.channels_last)
        ).logits
    torch.testing.assert_close(found, expected)


def test_synchronised_batch_norm_takes_the_place_of_every_batch_norm() -> None:
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(small("gate"))
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert all(type(norm) is torch.nn.SyncBatchNorm for norm in norms)
    model.eval()(torch.randn(1, 3, 16, 16))


def test_config_builds_the_same_network_as_the_arguments() -> None:
    config = ModelConfig(backbone="tiny", num_codewords=4, channels=8, output_stride=4, context="encoding")
    built = EncNet.from_config(config, num_classes=5)
    built.load_state_dict(small().state_dict())
    images = torch.randn(1, 3, 32, 32)
    expected = small()
    expected.load_state_dict(built.state_dict())
    assert torch.equal(built.eval()(images).logits, expected.eval()(images).logits)


def test_heads_learn_faster_and_every_parameter_is_in_one_group() -> None:
    model = small()
    backbone, heads = model.parameter_groups(lr=0.01, head_lr_factor=10)
    assert (backbone["lr"], heads["lr"]) == (0.01, 0.1)
    grouped = {id(p) for p in backbone["params"]}, {id(p) for p in heads["params"]}
    assert grouped[0] == {id(p) for p in model.backbone.parameters()}
    assert not grouped[0] & grouped[1]
    assert grouped[0] | grouped[1] == {id(p) for p in model.parameters()}


def test_importing_the_package_loads_neither_torch_nor_mlflow() -> None:
    code = "import sys, encsearch; print(*sorted({'torch', 'mlflow', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_package_offers_encnet_and_its_version() -> None:
    assert encsearch.EncNet is EncNet
    assert encsearch.__version__ == importlib.metadata.version("encsearch")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = encsearch.nothing
