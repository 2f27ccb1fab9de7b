"""Saved models scored again on Ray, whose processes do not have this one's working directory."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from encsearch.config import Config, EvalConfig, ScalingConfig
from encsearch.data.store import Store
from encsearch.inference.bundle import Bundle, read_bundle, write_bundle
from encsearch.inference.evaluation import score_bundle
from encsearch.model.encnet import EncNet
from encsearch.search.ablation.scoring import score_side_by_side, score_weights
from tests.conftest import TOY_INFO

pytestmark = pytest.mark.ray


def test_a_store_and_models_named_from_here_are_found_and_a_broken_one_is_told(
    toy_config: Config, toy_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("store").symlink_to(toy_store)
    torch.manual_seed(0)
    model = EncNet.from_config(toy_config.model, len(TOY_INFO.classes))
    write_bundle(Bundle(model, toy_config, TOY_INFO, "x", metrics={}), Path("whole"))
    settings = EvalConfig(scales=(0.5, 1.0), flip=True)
    scorings = {
        name: partial(score_weights, Path(name).absolute(), Path("store").absolute(), settings, None)
        for name in ("whole", "absent")
    }

    found = {scored.name: scored for scored in score_side_by_side(scorings, ScalingConfig())}

    assert found["whole"].failure is None
    alone = read_bundle(Path("whole"))
    same = replace(alone, config=toy_config.model_copy(update={"eval": settings}))
    assert found["whole"].metrics == pytest.approx(score_bundle(same, Store(toy_store), "val").to_metrics())
    assert "absent: no such folder" in str(found["absent"].failure)
