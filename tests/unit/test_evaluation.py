"""A bundle's scores depend on its configuration and on the set, not on batches or on who counted what."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from encsearch.config import Config, EvalConfig, with_values
from encsearch.data.codec import encode_png
from encsearch.data.datasets import EncodedSample
from encsearch.data.manifest import read_manifest
from encsearch.data.store import Store, write_store
from encsearch.data.transforms import to_image_tensor
from encsearch.errors import UserError
from encsearch.inference.bundle import Bundle
from encsearch.inference.evaluation import (
    count,
    count_images,
    find_own_metric,
    median_latencies_ms,
    score_bundle,
    score_counts,
)
from encsearch.inference.segment import Segmentation
from encsearch.metrics import confusion_matrix, scores
from encsearch.metrics.per_image import image_counts
from encsearch.metrics.summary import Totals, summarize
from encsearch.model.encnet import EncNet
from encsearch.parts import PartName, code_from, find_code


@pytest.fixture
def bundle(toy_config: Config, toy_store: Path) -> Bundle:
    """Not trained: it scores low, but not nothing."""
    manifest = read_manifest(toy_store)
    torch.manual_seed(1)
    model = EncNet.from_config(toy_config.model, len(manifest.info.classes))
    for _ in range(30):
        model(torch.randn(4, 3, 32, 32))
    exact = with_values(toy_config, {"train.precision": "fp32"})
    return Bundle(model.eval(), exact, manifest.info, manifest.fingerprint, {})


def changed(bundle: Bundle, **settings: object) -> Bundle:
    values = {f"eval.{name}": value for name, value in settings.items()}
    return replace(bundle, config=with_values(bundle.config, values))


def test_the_default_scores_are_those_of_the_plain_model(bundle: Bundle, toy_store: Path) -> None:
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    split = Store(toy_store).split("val")
    for index in range(len(split)):
        sample = split[index]
        with torch.no_grad():
            logits = bundle.model(to_image_tensor(sample.image)[None]).logits
        confusion += confusion_matrix(torch.tensor(sample.mask)[None], logits.argmax(dim=1), 3)
    expected = scores(confusion, bundle.info.classes, bundle.info.groups)

    found = score_bundle(bundle, Store(toy_store), "val", batch_size=1)

    assert found.confusion == tuple(map(tuple, confusion.tolist()))
    assert expected.to_metrics().items() <= found.to_metrics().items()
    assert found.class_iou == expected.class_iou


def test_the_batch_size_changes_nothing(bundle: Bundle, toy_store: Path) -> None:
    bundle = changed(bundle, scales=[1, 1.5], flip=True, window=24)
    one, seven = (
        score_bundle(bundle, Store(toy_store), "val", batch_size=size).to_metrics() for size in (1, 7)
    )
    assert one.keys() == seven.keys()
    # The convolutions of a larger batch may differ in the last bit, which can tip a pixel.
    assert seven == pytest.approx(one, abs=2e-3)


def test_the_settings_of_the_model_are_used(bundle: Bundle, toy_store: Path) -> None:
    plain = score_bundle(bundle, Store(toy_store), "val")
    assert score_bundle(changed(bundle, scales=[0.5]), Store(toy_store), "val").confusion != plain.confusion
    assert score_bundle(changed(bundle, flip=True), Store(toy_store), "val").confusion != plain.confusion
    assert score_bundle(changed(bundle, window=16), Store(toy_store), "val").confusion != plain.confusion
    smaller = score_bundle(changed(bundle, object_sizes=[0.5, 0.9]), Store(toy_store), "val")
    assert smaller.sizes["small"] != plain.sizes["small"]


def test_the_background_is_left_out_of_the_foreground(bundle: Bundle, toy_store: Path) -> None:
    found = score_bundle(changed(bundle, background="ground"), Store(toy_store), "val")
    others = [iou for name, iou in found.class_iou.items() if name != "ground"]
    assert found.to_metrics()["foreground/mIoU"] == pytest.approx(sum(others) / len(others))
    assert "foreground/mIoU" not in score_bundle(bundle, Store(toy_store), "val").to_metrics()
    with pytest.raises(
        UserError, match=r"eval\.background=sky is none of .* 3 classes; try one of ground, red"
    ):
        score_bundle(changed(bundle, background="sky"), Store(toy_store), "val")


def test_a_group_may_be_called_foreground(bundle: Bundle) -> None:
    info = replace(bundle.info, groups={"foreground": ("red", "blue")})
    totals = Totals(
        torch.tensor([[2, 0, 0], [2, 2, 0], [1, 0, 3]]),
        torch.ones(3, 2, dtype=torch.int64),
        torch.ones(3, 3, 3, dtype=torch.int64),
        torch.empty(0, 3),
        torch.empty(0, 3, dtype=torch.bool),
    )
    for background, others in ((None, None), ("red", 0.575)):
        found = summarize(totals, info, background).to_metrics()
        assert found["mIoU/foreground"] == pytest.approx((0.5 + 0.75) / 2)
        assert found.get("foreground/mIoU") == pytest.approx(others)


def random_batch(count: int, *, presence: bool = True) -> tuple[Tensor, Segmentation]:
    """Patches of 3 classes with ignored pixels; one image is wholly ignored."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count, 6, 5), generator=generator)
    labels = labels.repeat_interleave(5, 1).repeat_interleave(5, 2)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    labels[1] = 255
    probabilities = torch.rand(count, 3, 30, 25, generator=generator).softmax(dim=1)
    present = torch.rand(count, 3, generator=generator) if presence else None
    return labels, Segmentation(probabilities.argmax(dim=1), probabilities, present)


def parts(sizes: Iterable[int], *, presence: bool = True) -> list[Totals]:
    """The same 14 images in batches of these sizes."""
    labels, found = random_batch(14, presence=presence)
    totals, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        segmentation = Segmentation(*(None if values is None else values[part] for values in found))
        totals.append(count(labels[part], segmentation, EvalConfig(object_sizes=(0.05, 0.1))))
        start += size
    return totals


def test_the_counts_of_the_images_add_up_to_the_scores(bundle: Bundle, toy_store: Path) -> None:
    bundle = changed(bundle, flip=True)
    dataset = Store(toy_store).split("val")
    found = count_images(bundle, Store(toy_store), "val")
    confusion = torch.tensor(score_bundle(bundle, Store(toy_store), "val").confusion)
    assert found.ids == tuple(sorted(dataset[index].id for index in range(len(dataset))))
    assert found.pixels.shape == (10, 3, 3)
    expected = [confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)]
    assert found.pixels.sum(axis=0).T.tolist() == [row.tolist() for row in expected]


def test_the_counts_of_an_image_are_those_of_its_confusion() -> None:
    labels, found = random_batch(14)
    for counts, truth, predicted in zip(
        image_counts(labels, found.labels, 3), labels, found.labels, strict=True
    ):
        confusion = confusion_matrix(truth, predicted, 3)
        expected = [confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)]
        assert counts.T.tolist() == [row.tolist() for row in expected]


def test_every_model_is_timed_on_an_image_of_the_set(bundle: Bundle, toy_store: Path) -> None:
    dataset = Store(toy_store).split("val")
    assert all(ms > 0 for ms in median_latencies_ms([bundle, changed(bundle, flip=True)], dataset))


def test_counts_add_up_over_batches_and_ranks_in_any_order(bundle: Bundle) -> None:
    whole = summarize(parts([14])[0], bundle.info, None)
    singles = parts([1] * 14)
    first, second = reduce(add, singles[:5]), reduce(add, singles[5:])

    assert summarize(reduce(add, parts([7, 7])), bundle.info, None) == whole
    assert summarize(second + first, bundle.info, None) == whole
    assert all(size.class_iou for size in whole.sizes.values()), "the case has objects of every size"


def test_an_image_without_labels_does_not_count_for_presence() -> None:
    (totals,) = parts([14])
    assert len(totals.presence) == len(totals.present) == 13


def test_a_model_without_presence_has_no_such_scores(bundle: Bundle) -> None:
    found = summarize(reduce(add, parts([7, 7], presence=False)), bundle.info, None)
    assert found.presence is None
    assert not any(name.startswith("presence") for name in found.to_metrics())


def test_a_perfect_prediction_scores_one_everywhere(bundle: Bundle) -> None:
    labels, _ = random_batch(14)
    guess = labels.where(labels != 255, 0)
    probabilities = torch.nn.functional.one_hot(guess, 3).movedim(-1, 1).float()
    present = torch.stack([(labels == index).flatten(1).any(dim=1) for index in range(3)], dim=1).float()
    totals = count(labels, Segmentation(guess, probabilities, present), EvalConfig())

    assert set(summarize(totals, bundle.info, "ground").to_metrics().values()) == {1.0}


def test_a_split_without_labels_is_not_scored(bundle: Bundle, tmp_path: Path) -> None:
    """As the test split of Cityscapes, whose masks are void."""
    image = encode_png(np.zeros((32, 32, 3), np.uint8))
    void = EncodedSample("x", image, encode_png(np.full((32, 32), 255, np.uint8)), "")
    write_store(tmp_path / "void", bundle.info, {"test": [void]})
    with pytest.raises(UserError, match="split test has no labelled pixel, so nothing can be scored on it"):
        score_bundle(bundle, Store(tmp_path / "void"), "test")


def with_own_metric(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with a metric that counts right pixels, found in `folder`, and labelled ones."""
    (folder / "scored_by.py").write_text(
        "import torch\n"
        "class Share:\n"
        "    def __init__(self, power=1): self.power = power\n"
        "    def count(self, labels, predictions, num_classes):\n"
        "        assert labels.dtype == predictions.dtype == torch.int64\n"
        "        known = labels != 255\n"
        "        return torch.stack([((labels == predictions) & known).sum(), known.sum()])\n"
        "    def score(self, counts): return float(counts[0] / counts[1]) ** self.power\n"
    )
    name = PartName("scored_by:Share")
    with code_from(folder):
        code = find_code([name])
    config = with_values(bundle.config, {"metric": name, f"eval.args.{name}.power": 2})
    return replace(bundle, config=config, code=code)


def test_an_own_metric_is_a_figure_beside_the_others(bundle: Bundle, toy_store: Path, tmp_path: Path) -> None:
    plain = score_bundle(bundle, Store(toy_store), "val")
    found = score_bundle(with_own_metric(bundle, tmp_path), Store(toy_store), "val", batch_size=3)
    assert found.own == {"scored_by:Share": pytest.approx(plain.pix_acc**2)}
    assert found.to_metrics() == {**plain.to_metrics(), **found.own}
    assert asdict(found)["own"] == found.own, "so it is in the JSON of `encsearch eval`"
    assert plain.own == {}


def test_the_own_counts_of_the_images_add_up_to_the_figure(
    bundle: Bundle, toy_store: Path, tmp_path: Path
) -> None:
    own = find_own_metric(with_own_metric(bundle, tmp_path))
    assert own is not None
    store = Store(toy_store)
    found = count_images(bundle, store, "val", batch_size=4, own=own[1])
    assert found.own is not None
    assert (found.own.shape, found.own.dtype) == ((10, 2), np.float64)
    assert found.own[:, 0].tolist() == found.pixels[:, :, 0].sum(axis=1).tolist(), "in the same order"
    assert score_counts(*own, found.own.sum(axis=0)) == pytest.approx(
        score_bundle(with_own_metric(bundle, tmp_path), store, "val").own[own[0]]
    )
    assert count_images(bundle, store, "val").own is None
    assert find_own_metric(bundle) is None


def test_an_own_metric_without_a_figure_is_refused_in_one_line(bundle: Bundle, tmp_path: Path) -> None:
    own = find_own_metric(with_own_metric(bundle, tmp_path))
    assert own is not None
    with pytest.raises(UserError, match=r"^metric scored_by:Share: is nan for a whole set"):
        score_counts(*own, np.zeros(2))
    with pytest.raises(UserError, match=r"^metric scored_by:Share: score\(\) fails \(IndexError: "):
        score_counts(*own, np.zeros(1))
