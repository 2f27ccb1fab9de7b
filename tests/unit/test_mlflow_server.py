"""The definitions of the team's MLflow server hold to schemas, to each other, and to the repository.

That they start a server that works is told by tests/e2e/test_backends.py.
"""

import copy
import json
import re
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster" / "mlflow"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
NAME = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
PROTOCOL = {"enum": ["TCP", "UDP"]}


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    """An object that has these fields and no others; `required` names those that it must have."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def several(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


def closed(node: Any) -> Any:
    """A CRD's schema with unknown fields as errors."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: closed(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict):
        result.setdefault("additionalProperties", False)
    return result


def pod_template() -> dict[str, Any]:
    """That of KubeRay's CRD, which is Kubernetes' own; of metadata it says only that it is an object."""
    cluster = json.loads((ROOT / "tests" / "data" / "kuberay" / "RayCluster.json").read_text())
    head = cluster["properties"]["spec"]["properties"]["headGroupSpec"]
    template = closed(head["properties"]["template"])
    template["properties"]["metadata"] = fields("labels", labels=LABELS)
    return dict(template)


METADATA = fields("name labels", name=NAME, labels=LABELS)
SELECTOR = fields(
    matchLabels=LABELS,
    matchExpressions=several(
        fields(
            "key operator",
            key={"type": "string"},
            operator={"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
            values=several({"type": "string"}),
        )
    ),
)
SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "Deployment": (
        "apps/v1",
        fields(
            "selector template",
            replicas={"type": "integer"},
            strategy=fields("type", type={"enum": ["Recreate", "RollingUpdate"]}),
            selector=SELECTOR,
            template=pod_template(),
        ),
    ),
    "Service": (
        "v1",
        fields(
            "selector ports",
            selector=LABELS,
            ports=several(fields("port", name=NAME, port=PORT, targetPort={"type": ["integer", "string"]})),
        ),
    ),
    "NetworkPolicy": (
        "networking.k8s.io/v1",
        fields(
            "podSelector policyTypes",
            podSelector=SELECTOR,
            policyTypes=several({"enum": ["Ingress", "Egress"]}),
            ingress=several(
                fields(
                    **{"from": several(fields(podSelector=SELECTOR, namespaceSelector=SELECTOR))},
                    ports=several(fields("port", port=PORT, protocol=PROTOCOL)),
                )
            ),
            egress=several(fields(ports=several(fields("port", port=PORT, protocol=PROTOCOL)))),
        ),
    ),
}


def validate(manifest: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError for a field that is wrong, missing or unknown to this test."""
    version, spec = SPECS[manifest["kind"]]
    schema = fields(
        "apiVersion kind metadata spec",
        apiVersion={"const": version},
        kind={"const": manifest["kind"]},
        metadata=METADATA,
        spec=spec,
    )
    jsonschema.Draft202012Validator(schema).validate(manifest)


def manifests() -> dict[str, dict[str, Any]]:
    """By kind, of all the files that the kustomization names."""
    kustomization = yaml.safe_load((FOLDER / "kubernetes" / "kustomization.yaml").read_text())
    files = [FOLDER / "kubernetes" / name for name in kustomization["resources"]]
    documents = [document for file in files for document in yaml.safe_load_all(file.read_text())]
    return {document["kind"]: document for document in documents}


def compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    return services


def example(name: str) -> dict[str, str]:
    lines = (FOLDER / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = manifests()["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_manifest_is_valid(kind: str) -> None:
    validate(manifests()[kind])


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
        validate(deployment)


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
    cluster = (ROOT / "cluster" / "kuberay" / "raycluster.yaml").read_text()
    assert f"http://{host}" in cluster
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
