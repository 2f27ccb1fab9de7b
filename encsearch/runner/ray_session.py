"""Attach to the cluster that RAY_ADDRESS names, or start a local one that is quiet and cheap."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from encsearch.errors import PreflightError

# Measured on Ray 2.60: without these a trivial two-worker fit costs a fifth more CPU time.
CHEAPER_TRAIN = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A trial that cannot go on reports why instead of a metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Else Tune swallows Ctrl-C and returns as if the sweep had ended.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Ray warns of a change of a future version at each import of ray otherwise.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def ray_session(*, num_cpus: int | None = None) -> Iterator[None]:
    """A connection to Ray for the duration of the block.

    RAY_ADDRESS names a running cluster; without it a local one is started, with a token of its own, and
    stopped at the end. `num_cpus` is the number of logical CPUs of a local one. Already connected: reused.
    Raises PreflightError when the cluster cannot be reached.
    """
    for name, value in (CHEAPER_TRAIN | QUIET).items():
        os.environ.setdefault(name, value)
    # Ray writes a token of mode 0644 into the home folder unless it is given one.
    if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            num_cpus=None if "RAY_ADDRESS" in os.environ else num_cpus,
            log_to_driver=False,
            logging_level="ERROR",
            include_dashboard=None if "RAY_ADDRESS" in os.environ else True,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS", "a local cluster")
        reason = str(error).strip().splitlines()[0]
        raise PreflightError(f"Ray at {address} cannot be reached: {reason}") from None
    try:
        yield
    finally:
        ray.shutdown()
