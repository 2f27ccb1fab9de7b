"""The context diagnostics against hand-set codewords, features and scaling factors."""

import json
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from encsearch.config import Config, with_values
from encsearch.data.datasets import IGNORE, Sample
from encsearch.data.manifest import read_manifest
from encsearch.data.store import Store
from encsearch.data.transforms import to_image_tensor
from encsearch.diagnostics.artifacts import write_diagnostics
from encsearch.diagnostics.figures import CodewordFigures, describe_findings, from_json, to_json
from encsearch.diagnostics.measure import (
    assignment_map,
    codeword_figures,
    diagnose,
    pixel_sums,
    presence_figures,
    scaling_figures,
)
from encsearch.inference.bundle import Bundle
from encsearch.model.encnet import EncNet
from encsearch.model.encoding import Encoding

FILES = {"context.json", "codewords.png", "assignment.png", "scaling.png"}


def bundle_of(config: Config, **model: object) -> Bundle:
    """An untrained model whose channels vary between images."""
    torch.manual_seed(0)
    config = with_values(config, {f"model.{name}": value for name, value in model.items()})
    info = read_manifest(config.data.store).info
    return Bundle(EncNet.from_config(config.model, len(info.classes)).eval(), config, info, "", {})


def validation(config: Config) -> list[Sample]:
    """Ten images; all have every class but two, whose last class is painted over."""
    dataset = Store(config.data.store).split("val")
    samples = [dataset[index] for index in range(len(dataset))]
    without = [Sample(s.id, s.image, np.where(s.mask == 2, 0, s.mask).astype(np.uint8)) for s in samples[:4]]
    return [*without, *samples[4:]]


def encoding_of(codewords: list[list[float]], smoothing_factors: list[float]) -> Encoding:
    encoding = Encoding(len(codewords[0]), len(codewords))
    with torch.no_grad():
        encoding.codewords.copy_(torch.tensor(codewords))
        encoding.smoothing_factors.copy_(torch.tensor(smoothing_factors))
    return encoding


def figures_of(encoding: Encoding, *images: Tensor) -> CodewordFigures:
    return codeword_figures([pixel_sums(features, encoding) for features in images], encoding)


def test_pixels_on_two_far_codewords_use_both_and_no_third() -> None:
    encoding = encoding_of([[0, 0], [10, 0], [0, 90]], [1, 1, 1])
    first, second = torch.zeros(30, 2), torch.tensor([[10.0, 0.0]]).repeat(10, 1)

    figures = figures_of(encoding, first, second)

    assert figures.usage == pytest.approx((0.75, 0.25, 0))
    assert figures.effective_number == pytest.approx(0.75**-0.75 * 0.25**-0.25)
    assert figures.pixel_entropy == pytest.approx(0, abs=1e-9)
    assert figures.mutual_information == pytest.approx(figures.usage_entropy)
    assert figures.dead == (2,)
    assert figures.feature_spread == pytest.approx(10 * (0.75 * 0.25) ** 0.5)
    assert figures.offsets[:2] == pytest.approx((2.5 / 18.75**0.5, 7.5 / 18.75**0.5))
    assert figures.norms == pytest.approx((0, 10, 90))
    assert figures.feature_norm == pytest.approx(5)


def test_even_usage_without_a_choice_tells_nothing() -> None:
    encoding = encoding_of([[1, 0], [-1, 0], [0, 1], [0, -1]], [0, 0, 0, 0])
    figures = figures_of(encoding, torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))

    assert figures.effective_number == pytest.approx(4)
    assert figures.pixel_entropy == pytest.approx(log(4))
    assert figures.mutual_information == pytest.approx(0, abs=1e-6)
    assert figures.dead == ()


def test_the_order_and_the_parts_of_the_pixels_do_not_matter() -> None:
    encoding = encoding_of([[1, 0], [-1, 0], [0, 1]], [0.5, 1, -0.2])
    features = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))

    whole = figures_of(encoding, features)
    parts = figures_of(encoding, features[40:], features[:7], features[7:40])

    assert parts.usage == pytest.approx(whole.usage)
    assert parts.pixel_entropy == pytest.approx(whole.pixel_entropy)
    assert parts.feature_spread == pytest.approx(whole.feature_spread)


def test_a_duplicate_names_the_first_codeword_that_it_repeats() -> None:
    encoding = encoding_of([[5, 0], [0, 5], [0, 5.01], [-5, 0], [5, 0.01], [5, -0.01]], [1] * 6)
    assert figures_of(encoding, torch.zeros(1, 2)).duplicates == ((2, 1), (4, 0), (5, 0))


def test_scaling_is_compared_between_images_with_and_without_a_class() -> None:
    presence = torch.tensor([[True, True]] * 3 + [[False, True]] * 5)
    factors = torch.where(presence[:, :1], torch.tensor([0.9, 0.5]), torch.tensor([0.4, 0.5]))

    figures = scaling_figures(factors, presence, ("some", "all"))

    (row,) = figures.classes
    assert (row.name, row.num_with, row.num_without) == ("some", 3, 5)
    assert row.differences == pytest.approx((0.5, 0))
    assert row.rms == pytest.approx((0.25 / 2) ** 0.5)


def test_scaling_without_regard_to_the_class_is_as_chance_makes_it() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.rand(30, 4000, generator=generator)
    presence = (torch.arange(30) < 8)[:, None]

    (row,) = scaling_figures(factors, presence, ("class",)).classes

    assert row.rms == pytest.approx(row.rms_by_chance, rel=0.05)


def test_presence_has_no_figure_where_there_is_nothing_to_count() -> None:
    probabilities = torch.tensor([[0.9, 0.1, 0.2], [0.6, 0.3, 0.4], [0.2, 0.2, 0.3], [0.8, 0.1, 0.1]])
    presence = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 1], [1, 0, 1]]).bool()

    hit, absent, missed = presence_figures(probabilities, presence, ("hit", "absent", "missed"))

    assert (hit.share, hit.precision, hit.recall) == pytest.approx((0.75, 2 / 3, 2 / 3))
    assert hit.average_precision == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert (absent.precision, absent.recall, absent.average_precision) == (None, None, None)
    assert (missed.precision, missed.recall) == (None, 0)


def test_what_is_measured_is_what_the_model_computes(toy_config: Config) -> None:
    bundle = bundle_of(toy_config)
    (sample, *_) = validation(toy_config)
    context = bundle.model.context
    assert context is not None
    image = to_image_tensor(sample.image)
    with torch.inference_mode():
        semantics = context.semantics(bundle.model.head(bundle.model.backbone(image[None])))
        factors = context.weigh(semantics).sigmoid()

    diagnostics = diagnose(bundle, [sample])

    assert diagnostics is not None
    assert diagnostics.scaling.mean == pytest.approx(factors.mean().item(), rel=1e-5)
    assert diagnostics.codewords is not None
    usage = assignment_map(bundle, sample).mean(axis=(0, 1))
    assert diagnostics.codewords.usage == pytest.approx(usage.tolist(), rel=1e-4)


def test_the_model_is_left_as_it_was(toy_config: Config) -> None:
    bundle = bundle_of(toy_config)
    before = {name: value.clone() for name, value in bundle.model.state_dict().items()}
    diagnose(bundle, validation(toy_config))
    assert all(torch.equal(value, before[name]) for name, value in bundle.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in bundle.model.modules())


def test_an_image_without_labels_is_left_out(toy_config: Config) -> None:
    bundle = bundle_of(toy_config)
    samples = validation(toy_config)
    void = Sample("void", samples[0].image, np.full_like(samples[0].mask, IGNORE))
    assert diagnose(bundle, [*samples, void]) == diagnose(bundle, samples)
    assert diagnose(bundle, [void]) is None


def test_the_files_of_a_model_with_codewords(toy_config: Config, tmp_path: Path) -> None:
    diagnostics = write_diagnostics(bundle_of(toy_config), validation(toy_config), tmp_path)

    assert diagnostics is not None
    assert {path.name for path in tmp_path.iterdir()} == FILES
    text = (tmp_path / "context.json").read_text()
    assert from_json(text) == diagnostics
    assert json.loads(text) == json.loads(to_json(diagnostics))
    for name in FILES - {"context.json"}:
        with Image.open(tmp_path / name) as picture:
            assert np.ptp(np.asarray(picture.convert("L"))) > 100


@pytest.mark.parametrize(
    ("model", "files"),
    [
        ({"context": "gate"}, {"context.json", "scaling.png"}),
        ({"num_codewords": 1}, {"context.json", "codewords.png", "scaling.png"}),
        ({"attention": "classes"}, FILES - {"scaling.png"}),
    ],
)
def test_files_that_would_say_nothing_are_left_out(
    model: dict[str, object], files: set[str], toy_config: Config, tmp_path: Path
) -> None:
    diagnostics = write_diagnostics(bundle_of(toy_config, **model), validation(toy_config), tmp_path)
    assert diagnostics is not None
    assert from_json((tmp_path / "context.json").read_text()) == diagnostics
    assert describe_findings(diagnostics)
    assert {path.name for path in tmp_path.iterdir()} == files


def test_a_model_without_context_has_nothing_to_tell(toy_config: Config, tmp_path: Path) -> None:
    bundle = bundle_of(toy_config, context="none")
    assert write_diagnostics(bundle, validation(toy_config), tmp_path / "context") is None
    assert not (tmp_path / "context").exists()


def test_findings_name_negative_smoothing_factors(toy_config: Config) -> None:
    bundle = bundle_of(toy_config)
    assert bundle.model.context is not None
    with torch.no_grad():
        bundle.model.context.semantics.encoding.smoothing_factors[:2] = -1
    diagnostics = diagnose(bundle, validation(toy_config))
    assert diagnostics is not None
    assert any(
        "2 of 4 smoothing factors are negative" in sentence for sentence in describe_findings(diagnostics)
    )


def test_text_that_is_no_record_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="num_images"):
        from_json("{}")
