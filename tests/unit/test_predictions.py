"""Predictions over time: how a training reports them, and the sheets that MLflow shows."""

import base64
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from encsearch.config import Config
from encsearch.data.codec import decode_mask, encode_png
from encsearch.data.datasets import DatasetInfo, Sample, evenly_spaced
from encsearch.data.loading import Batch, feed
from encsearch.data.store import Store
from encsearch.model.encnet import EncNetOutput
from encsearch.reports import Point, Report
from encsearch.tracking.run_files import write_predictions
from encsearch.train.experiment import build
from encsearch.train.kernels import Kernels
from encsearch.train.loop import MAX_SIDE_PX, fit, label_maps, shown_epochs

INFO = DatasetInfo("two", ("a", "b"), ((0, 0, 0), (255, 0, 0)))


class Brightness(nn.Module):
    """Class 1 where the image is positive."""

    def forward(self, images: torch.Tensor) -> EncNetOutput:
        first = images[:, :1]
        return EncNetOutput(torch.cat([-first, first], dim=1), None, None)


def test_the_first_and_the_last_epoch_are_shown_and_at_most_eight() -> None:
    assert shown_epochs(1) == {1}
    assert shown_epochs(3) == {1, 2, 3}
    many = shown_epochs(50)
    assert (len(many), min(many), max(many)) == (8, 1, 50)
    gaps = np.diff(sorted(many))
    assert max(gaps) - min(gaps) <= 1


def test_a_large_map_is_thinned_out_and_stays_one_of_classes() -> None:
    image = torch.zeros(1, 10, 2 * MAX_SIDE_PX, 3, dtype=torch.uint8)
    image[:, :, MAX_SIDE_PX:] = 255

    maps = label_maps(Brightness(), [Batch(image, image[..., 0], ("x",))], Kernels(torch.device("cpu")))

    label_map = decode_mask(base64.b64decode(maps["x"]), "x")
    assert label_map.shape == (5, MAX_SIDE_PX)
    assert (label_map == (np.arange(MAX_SIDE_PX) >= MAX_SIDE_PX // 2)).all()


def test_a_training_reports_the_panels_images_on_rank_0_alone(toy_config: Config) -> None:
    experiment = build(toy_config)
    e = experiment
    first, last = fit(e.state, e.loaders, e.loss, e.plan)

    shown = evenly_spaced(Store(toy_config.data.store).split("val"), 4)
    assert list(first.label_maps) == list(last.label_maps) == [sample.id for sample in shown]
    model = experiment.state.model.eval()
    batches = feed(experiment.loaders.shown(), e.plan.device)
    expected = {b.ids[0]: model(b.images).logits.argmax(dim=1)[0].numpy() for b in batches}
    for name, encoded in last.label_maps.items():
        assert (decode_mask(base64.b64decode(encoded), name) == expected[name]).all()
    # As what other ranks are given, which only train and validate.
    assert not list(type(experiment.loaders)(e.loaders.train, e.loaders.validation).shown())


def test_a_sheet_has_the_name_that_mlflow_reads_and_is_stored_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [
        Sample(name, rng.integers(0, 255, (200, 300, 3), np.uint8), np.zeros((200, 300), np.uint8))
        for name in ("x", "y", "not shown")
    ]
    small_map = base64.b64encode(encode_png(np.ones((100, 150), np.uint8))).decode()
    report = Report(
        2,
        20,
        1.0,
        {},
        points=(Point(10, 1_000, {}), Point(20, 2_000, {})),
        label_maps={"x": small_map, "y": small_map},
    )

    for _ in range(2):
        write_predictions(tmp_path, report, samples, INFO)
    write_predictions(tmp_path, Report(3, 30, 1.0, {}), samples, INFO)

    small, large = sorted((tmp_path / "images").iterdir(), key=lambda path: path.suffix, reverse=True)
    assert re.fullmatch(r"predictions\+step\+20\+timestamp\+2000\+[0-9a-f-]{36}\.png", large.name)
    assert small.name == f"{large.stem}+compressed.webp"
    with Image.open(large) as sheet, Image.open(small) as thumbnail:
        assert sheet.format == "PNG"
        assert max(thumbnail.size) == 512 <= max(sheet.size)
