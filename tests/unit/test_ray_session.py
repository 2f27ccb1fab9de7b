"""What a cluster lacks for one training is said before anything waits for it; and a process that it kills."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

from encsearch.config import ScalingConfig
from encsearch.errors import PreflightError
from encsearch.runner.ray_session import describe_shortage, rehearse_session, trainings_at_once
from encsearch.search.tune.driver import losing_what_memory_kills

NEEDS = ScalingConfig(num_workers=4, cpus_per_worker=2, gpus_per_worker=0.5)


def test_what_is_missing_is_named_with_both_numbers() -> None:
    assert describe_shortage(NEEDS, {"CPU": 6, "GPU": 2}) == "8 CPUs (4 workers x 2), but the cluster has 6"
    assert describe_shortage(NEEDS, {"CPU": 8}) == "2 GPUs (4 workers x 0.5), but the cluster has 0"


def test_a_training_that_fits_lacks_nothing() -> None:
    assert describe_shortage(NEEDS, {"CPU": 8, "GPU": 2}) is None
    assert describe_shortage(ScalingConfig(), {"CPU": 1}) is None


def test_as_many_trainings_at_once_as_fit_whole() -> None:
    four = ScalingConfig(num_workers=4)

    assert trainings_at_once(four, {"CPU": 12.2, "memory": 1.0}) == 3
    assert trainings_at_once(ScalingConfig(gpus_per_worker=0.5), {"CPU": 8, "GPU": 2}) == 4
    assert trainings_at_once(four, {"CPU": 2}) == 1


def test_a_part_of_a_gpu_is_a_part_of_one() -> None:
    part = ScalingConfig(num_workers=2, gpus_per_worker=0.6)
    assert trainings_at_once(part, {"CPU": 16, "GPU": 5}) == 2
    assert describe_shortage(part, {"CPU": 16, "GPU": 2}) is None
    assert describe_shortage(part.model_copy(update={"num_workers": 3}), {"CPU": 16, "GPU": 2}) == (
        "1.8 GPUs (3 workers x 0.6), but the cluster has 2, each with room for 1"
    )


def test_a_rehearsal_refuses_what_this_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    with pytest.raises(PreflightError, match=r"needs 2 GPUs .* has 0"), rehearse_session(needs=NEEDS):
        pass
    with rehearse_session(needs=ScalingConfig(num_workers=64)):
        pass


def test_a_training_whose_process_the_memory_monitor_killed_is_lost_like_any() -> None:
    errors: list[Exception] = []
    manager = RayActorManager(MagicMock())
    task = SimpleNamespace(
        _tracked_actor=SimpleNamespace(actor_id=1, _on_error=lambda _, error: errors.append(error)),
        _on_error=None,
    )
    manager._cleanup_actor = MagicMock()
    with losing_what_memory_kills():
        manager._actor_task_failed(tracked_actor_task=task, exception=OutOfMemoryError("low on memory"))
    assert isinstance(errors[0], RayActorError)
    assert "low on memory" in str(errors[0])
    with pytest.raises(RuntimeError, match="unexpected"):  # else this is no longer needed
        manager._actor_task_failed(tracked_actor_task=task, exception=OutOfMemoryError("low on memory"))
