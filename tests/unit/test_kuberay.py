"""The cluster definitions hold to KubeRay's schemas, to each other, and to the rest of the repository."""

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from encsearch.config import find_recipe

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
SCHEMAS = ROOT / "tests" / "data" / "kuberay"

# Kubernetes checks metadata by itself; the CRDs only say that it is an object.
METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 47},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["name"],
}


def validate(manifest: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError unless the manifest is what the CRD of its kind describes."""
    schema = _openapi(manifest["kind"])
    if manifest["kind"] == "RayJob":
        schema["properties"]["spec"]["properties"]["rayClusterSpec"] = _openapi("RayCluster")["properties"][
            "spec"
        ]
    schema["properties"]["apiVersion"] = {"const": "ray.io/v1"}
    schema["properties"]["metadata"] = METADATA
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    jsonschema.Draft202012Validator(_json_schema(schema)).validate(manifest)


def _openapi(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((SCHEMAS / f"{kind}.json").read_text())
    return schema


def _json_schema(node: Any) -> Any:
    """Kubernetes' structural schema as JSON Schema: unknown fields are errors, null where nullable.

    int-or-string is an anyOf in the CRD already; CEL rules (x-kubernetes-validations) are not evaluated.
    """
    if isinstance(node, list):
        return [_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _json_schema(value) for key, value in node.items()}
    has_fields = isinstance(node.get("properties"), dict)
    if has_fields and not node.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    if node.get("nullable") is True:
        result = {"anyOf": [{"type": "null"}, result]}
    return result


def load(name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((KUBERAY / name).read_text())
    return manifest


def cluster_specs() -> list[dict[str, Any]]:
    return [load("raycluster.yaml")["spec"], load("rayjob.yaml")["spec"]["rayClusterSpec"]]


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def containers() -> list[dict[str, Any]]:
    return [c for spec in cluster_specs() for pod in pods(spec) for c in pod["containers"]]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_manifest_is_valid(name: str) -> None:
    validate(load(name))


def misspelt(manifest: dict[str, Any]) -> None:
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"] = {}


def misspelt_deep(manifest: dict[str, Any]) -> None:
    head = pods(manifest["spec"]["rayClusterSpec"])[0]
    head["containers"][0]["env"][1]["valueFrom"] = {"secretKeyReff": {"name": "a", "key": "b"}}


def number_for_text(manifest: dict[str, Any]) -> None:
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def no_head(manifest: dict[str, Any]) -> None:
    del manifest["spec"]["rayClusterSpec"]["headGroupSpec"]


def bad_quantity(manifest: dict[str, Any]) -> None:
    pods(manifest["spec"]["rayClusterSpec"])[0]["containers"][0]["resources"]["limits"]["memory"] = "8 GB"


def field_beside_spec(manifest: dict[str, Any]) -> None:
    manifest["entrypoint"] = "true"


@pytest.mark.parametrize(
    "damage", [misspelt, misspelt_deep, number_for_text, no_head, bad_quantity, field_beside_spec]
)
def test_a_wrong_field_is_an_error(damage: Any) -> None:
    manifest = copy.deepcopy(load("rayjob.yaml"))
    damage(manifest)
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest)


def test_quantities_may_be_numbers_or_text() -> None:
    manifest = copy.deepcopy(load("rayjob.yaml"))
    pods(manifest["spec"]["rayClusterSpec"])[0]["containers"][0]["resources"]["limits"]["cpu"] = 4
    validate(manifest)


def test_every_node_runs_the_image_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {container["image"] for container in containers()} == {f"encsearch:{version}"}
    assert f"-t encsearch:{version} ." in (ROOT / "cluster" / "Dockerfile").read_text()


def test_ray_is_the_pinned_one() -> None:
    pin = re.search(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert pin
    assert {spec["rayVersion"] for spec in cluster_specs()} == {pin[1]}


def test_the_job_starts_files_that_exist() -> None:
    entrypoint = load("rayjob.yaml")["spec"]["entrypoint"].split()
    assert entrypoint[:3] == ["python", "jobs/sweep.py", "camvid"]
    assert (ROOT / entrypoint[1]).is_file()
    assert find_recipe(entrypoint[2]).is_file()


def test_secrets_are_references() -> None:
    secret_words = ("PASSWORD", "TOKEN", "USERNAME", "KEY")
    for container in containers():
        for variable in container["env"]:
            if any(word in variable["name"] for word in secret_words):
                assert set(variable["valueFrom"]) == {"secretKeyRef"}
    assert {spec["authOptions"]["mode"] for spec in cluster_specs()} == {"token"}
    assert {spec["authOptions"]["secretName"] for spec in cluster_specs()} == {"encsearch-ray-auth"}


def test_every_node_mounts_the_shared_claim_where_recipes_look() -> None:
    claim = load("storage.yaml")
    workdir = re.search(r"^WORKDIR (\S+)$", (ROOT / "cluster" / "Dockerfile").read_text(), re.MULTILINE)
    assert workdir
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for spec in cluster_specs():
        for pod in pods(spec):
            names = {volume["name"]: volume for volume in pod["volumes"]}
            assert names["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            mounted = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] == "shared"}
            assert mounted == {f"{workdir[1]}/data", f"{workdir[1]}/runs"}


def test_job_and_cluster_describe_the_same_nodes() -> None:
    standing, of_job = cluster_specs()
    shared = [group for group in standing["workerGroupSpecs"] if group["groupName"] == "gpu"]
    assert of_job == standing | {"workerGroupSpecs": shared}
