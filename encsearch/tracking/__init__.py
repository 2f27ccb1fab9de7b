"""A run's records beside its checkpoint: the MLflow record and registry, the promotion decision.

MLflow reads the variables below when it is imported, so they are set before a module of this package can
import it. A value that is already in the environment stays.
"""

import os

_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    # MLflow's own retries block a call for 246 s (3.17); the recorder retries in its own time instead.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # Files pass through the server, which has the keys: MLflow 3.17 would let clients ask for the address of
    # each file and fetch it from the server's S3, which is often on a network of its own.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
}

for _name, _value in _MLFLOW_SETTINGS.items():
    os.environ.setdefault(_name, _value)
