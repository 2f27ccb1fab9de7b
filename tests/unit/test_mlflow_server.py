"""The definitions of the team's MLflow server hold to schemas, to each other, and to the repository.

That they start a server that works is told by tests/e2e/test_backends.py.
"""

import copy
import json
import re
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
import yaml

from tests.unit.definitions import ROOT, render, validate_builtin

FOLDER = ROOT / "cluster" / "mlflow"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
COMPOSE_SCHEMA = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"


@cache
def manifests() -> dict[str, dict[str, Any]]:
    return render(FOLDER / "kubernetes")


def compose_file() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "compose.yaml").read_text()))


def compose() -> dict[str, Any]:
    return dict(compose_file()["services"])


def validate_compose(file: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError unless the file is what the Compose specification describes."""
    jsonschema.Draft202012Validator(json.loads(COMPOSE_SCHEMA.read_text())).validate(file)


def example(name: str) -> dict[str, str]:
    lines = (FOLDER / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def pod() -> dict[str, Any]:
    return dict(manifests()["Deployment"]["spec"]["template"]["spec"])


def test_manifests_are_valid() -> None:
    assert set(manifests()) == {"Deployment", "Service", "NetworkPolicy"}
    for manifest in manifests().values():
        validate_builtin(manifest)


def misspelt(deployment: dict[str, Any]) -> None:
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}


def number_for_text(deployment: dict[str, Any]) -> None:
    deployment["spec"]["template"]["spec"]["containers"][0]["env"][0] = {"name": "PGPORT", "value": 5432}


def no_selector(deployment: dict[str, Any]) -> None:
    del deployment["spec"]["selector"]


@pytest.mark.parametrize("damage", [misspelt, number_for_text, no_selector])
def test_a_wrong_field_is_an_error(damage: Callable[[dict[str, Any]], None]) -> None:
    deployment = copy.deepcopy(manifests()["Deployment"])
    damage(deployment)
    with pytest.raises(jsonschema.ValidationError):
        validate_builtin(deployment)


def test_compose_is_valid_and_a_wrong_field_is_an_error() -> None:
    file = compose_file()
    validate_compose(file)
    file["services"]["mlflow"]["depend_on"] = file["services"]["mlflow"].pop("depends_on")
    with pytest.raises(jsonschema.ValidationError, match="depend_on"):
        validate_compose(file)


def test_the_service_and_the_policy_are_of_the_servers_pods() -> None:
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels
    policy = found["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    (port,) = pod()["containers"][0]["ports"]
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_jobs_of_the_cluster_reach_it_under_a_name_that_it_lets_in() -> None:
    service = manifests()["Service"]
    host = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    variables = yaml.safe_load((ROOT / "cluster" / "kuberay" / "site" / "variables.yaml").read_text())
    assert variables["data"]["MLFLOW_TRACKING_URI"] == f"http://{host}"
    (allowed,) = (v for v in pod()["containers"][0]["env"] if v["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS")
    assert host in allowed["value"].split(",")


def test_every_form_gives_the_server_the_same_variables() -> None:
    of_pod = {variable["name"]: variable for variable in pod()["containers"][0]["env"]}
    of_compose = compose()["mlflow"]["environment"]
    assert set(of_pod) == set(of_compose)
    assert compose()["bucket"]["environment"] == of_compose


def test_secrets_are_references_and_required() -> None:
    words = ("PASSWORD", "SECRET", "ACCESS_KEY")
    for variable in pod()["containers"][0]["env"]:
        if any(word in variable["name"] for word in words):
            assert set(variable["valueFrom"]["secretKeyRef"]) == {"name", "key"}, variable
    for service in compose().values():
        for name, value in service["environment"].items():
            if any(word in name for word in words) and name != "AWS_ACCESS_KEY_ID":
                assert re.fullmatch(r"\$\{[A-Z0-9_]+:\?[^}]+\}", value), name
    assert not any(word in DOCKERFILE.split("CMD")[1] for word in words)


def test_the_examples_hold_all_variables_and_no_value_that_could_be_used() -> None:
    keys = [variable.get("valueFrom", {}).get("secretKeyRef") for variable in pod()["containers"][0]["env"]]
    assert set(example("kubernetes/server.env.example")) - {"PGUSER"} == {
        reference["key"] for reference in keys if reference
    } - {"PGUSER"}
    asked = re.findall(r"\$\{(\w+)", (FOLDER / "compose.yaml").read_text())
    assert set(example("env.example")) == set(asked)
    for name in ("env.example", "kubernetes/server.env.example"):
        for variable, value in example(name).items():
            assert "example" in value or variable == "PGUSER", variable


def test_files_with_values_are_ignored_by_git_and_the_examples_are_not() -> None:
    patterns = [line for line in (ROOT / ".gitignore").read_text().splitlines() if "/" not in line]
    ignored = {name: any(fnmatch(name, p) for p in patterns) for name in (".env", ".env.server")}
    assert ignored == {".env": True, ".env.server": True}
    assert not any(fnmatch(name, p) for name in ("env.example", "server.env.example") for p in patterns)


def test_the_image_is_of_this_version_and_of_the_locked_packages() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    image = f"encsearch-mlflow:{version}"
    assert pod()["containers"][0]["image"] == compose()["mlflow"]["image"] == image
    assert f"-t {image} ." in DOCKERFILE
    assert "--constraint /etc/mlflow/requirements.lock" in DOCKERFILE
    locked = (ROOT / "requirements.lock").read_text()
    for package in ("mlflow", "psycopg", "psycopg-binary", "boto3", "flask-wtf", "uvicorn"):
        assert re.search(rf"^{package}==", locked, re.MULTILINE), package
    assert all(":" in service["image"] for service in compose().values())


def test_the_server_does_not_run_as_root_and_starts_no_jobs() -> None:
    (user,) = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    uid = pod()["securityContext"]["runAsUser"]
    assert (user, uid, pod()["securityContext"]["runAsNonRoot"]) == ("1000", 1000, True)
    security = pod()["containers"][0]["securityContext"]
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert compose()["mlflow"]["cap_drop"] == ["ALL"]
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in DOCKERFILE
    assert "MLFLOW_DISABLE_TELEMETRY=true" in DOCKERFILE


def test_compose_opens_the_server_on_loopback_and_nothing_else() -> None:
    opened = {name: service["ports"] for name, service in compose().items() if "ports" in service}
    assert opened == {"mlflow": ["127.0.0.1:5000:5000"]}
