"""What kubectl makes of cluster/kuberay holds to KubeRay's schemas and to the rest of the repository."""

import copy
import json
import re
import shutil
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from encsearch.config import find_recipe
from tests.unit.definitions import ROOT, render, validate_builtin

KUBERAY = ROOT / "cluster" / "kuberay"
SCHEMAS = ROOT / "tests" / "data" / "kuberay"
OPTIONS = sorted(path.name for path in (KUBERAY / "options").iterdir())
VALUES = yaml.safe_load((KUBERAY / "site" / "variables.yaml").read_text())["data"]
VARIABLES = list(VALUES)
# Names of variables of the environment too.
ENVIRONMENT = {"MLFLOW_TRACKING_URI"}

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


@cache
def rendered(folder: str) -> dict[str, dict[str, Any]]:
    return render(KUBERAY / folder)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of the definitions, to choose options and variables in."""
    return Path(shutil.copytree(KUBERAY, tmp_path / "kuberay"))


def choose_options(site: Path, *options: str) -> None:
    kustomization = site / "site" / "kustomization.yaml"
    text = kustomization.read_text()
    for option in options:
        line = f"- ../options/{option}"
        assert f"# {line}" in text
        text = text.replace(f"# {line}", line)
    kustomization.write_text(text)


def set_variables(site: Path, **values: str) -> None:
    file = site / "site" / "variables.yaml"
    variables = yaml.safe_load(file.read_text())
    assert set(values) <= set(variables["data"])
    file.write_text(yaml.safe_dump(variables | {"data": variables["data"] | values}))


def job() -> dict[str, Any]:
    return copy.deepcopy(rendered("rayjob")["RayJob"])


def cluster_spec() -> dict[str, Any]:
    spec: dict[str, Any] = rendered("raycluster")["RayCluster"]["spec"]
    return spec


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for pod in pods(spec) for container in pod["containers"]]


def test_manifests_are_valid() -> None:
    assert [set(rendered(folder)) for folder in ("storage", "raycluster", "rayjob")] == [
        {"PersistentVolumeClaim"},
        {"RayCluster"},
        {"RayJob"},
    ]
    validate_builtin(rendered("storage")["PersistentVolumeClaim"])
    validate(rendered("raycluster")["RayCluster"])
    validate(job())


@pytest.mark.parametrize("options", [*([option] for option in OPTIONS), OPTIONS], ids="+".join)
def test_manifests_with_options_are_valid(site: Path, options: list[str]) -> None:
    choose_options(site, *options)
    cluster = render(site / "raycluster")["RayCluster"]
    validate(cluster)
    validate(render(site / "rayjob")["RayJob"])
    assert cluster != rendered("raycluster")["RayCluster"]
    assert not set(re.findall(r"[A-Z][A-Z0-9_]{2,}", yaml.safe_dump(cluster))) & set(VARIABLES) - ENVIRONMENT


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
    manifest = job()
    damage(manifest)
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest)


def test_quantities_may_be_numbers_or_text() -> None:
    manifest = job()
    pods(manifest["spec"]["rayClusterSpec"])[0]["containers"][0]["resources"]["limits"]["cpu"] = 4
    validate(manifest)


def test_job_and_cluster_have_the_same_nodes() -> None:
    assert job()["spec"]["rayClusterSpec"] == cluster_spec()


def test_variables_reach_what_they_are_named_after(site: Path) -> None:
    values = {name: f"changed-{number}" for number, name in enumerate(VARIABLES)}
    numbers = {"MIN_WORKERS": "2", "MAX_WORKERS": "9", "IDLE_SECONDS": "77"}
    sizes = {"CPUS": "5", "MEMORY": "6Gi", "GPUS": "3", "STORAGE_SIZE": "7Gi"}
    set_variables(site, **values | numbers | sizes)
    choose_options(site, *(option for option in OPTIONS if option != "kueue"))
    cluster, claim = (
        render(site / "raycluster")["RayCluster"],
        render(site / "storage")["PersistentVolumeClaim"],
    )
    job = render(site / "rayjob")["RayJob"]
    validate(job)
    workers = cluster["spec"]["workerGroupSpecs"][0]
    assert (workers["minReplicas"], workers["replicas"], workers["maxReplicas"]) == (2, 2, 9)
    assert cluster["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] == 77
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"] == {
        "cpu": "5",
        "memory": "6Gi",
        "nvidia.com/gpu": "3",
    }
    assert claim["spec"]["resources"]["requests"]["storage"] == "7Gi"
    everything = yaml.safe_dump_all([cluster, job, claim])
    assert [name for name in values if f"changed-{VARIABLES.index(name)}" not in everything] == [
        name for name in VARIABLES if name in {*numbers, *sizes, "QUEUE"}
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (("MAX_WORKERS: 8", "MAX_WORKER: 8"), "data.MAX_WORKERS` is missing"),
        (("MAX_WORKERS: 8", "MAX_WORKERS: eight"), "cannot decode !!str `eight` as a !!int"),
    ],
)
def test_a_wrong_variable_is_an_error(site: Path, damage: tuple[str, str], message: str) -> None:
    file = site / "site" / "variables.yaml"
    assert damage[0] in file.read_text()
    file.write_text(file.read_text().replace(*damage))
    with pytest.raises(ValueError, match=re.escape(message)):
        render(site / "raycluster")


def test_the_head_trains_nothing_and_workers_come_and_go() -> None:
    spec = cluster_spec()
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["enableInTreeAutoscaling"] is True
    (workers,) = spec["workerGroupSpecs"]
    assert workers["minReplicas"] < workers["maxReplicas"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists"} in workers["template"]["spec"]["tolerations"]


def test_options_of_nodes_are_about_workers_alone(site: Path) -> None:
    choose_options(site, "gpu_type", "spot")
    spec = render(site / "raycluster")["RayCluster"]["spec"]
    assert spec["headGroupSpec"] == cluster_spec()["headGroupSpec"]
    worker = spec["workerGroupSpecs"][0]["template"]["spec"]
    required = worker["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    wanted = [(entry["key"], entry["values"]) for entry in term["matchExpressions"]]
    assert wanted[1:] == [
        (VALUES["GPU_LABEL"], [VALUES["GPU_TYPE"]]),
        (VALUES["SPOT_LABEL"], [str(VALUES["SPOT_VALUE"]).lower()]),
    ]
    assert {"key": VALUES["SPOT_LABEL"], "operator": "Exists"} in worker["tolerations"]


def test_kueue_gets_jobs_of_a_fixed_size(site: Path) -> None:
    choose_options(site, "kueue")
    job = render(site / "rayjob")["RayJob"]
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": VALUES["QUEUE"]}
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    spec = job["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is False
    (workers,) = spec["workerGroupSpecs"]
    assert workers["minReplicas"] == workers["replicas"] == workers["maxReplicas"] == VALUES["MAX_WORKERS"]
    assert render(site / "raycluster")["RayCluster"]["metadata"]["labels"] == job["metadata"]["labels"]


def test_every_node_runs_the_image_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {container["image"] for container in containers(cluster_spec())} == {f"encsearch:{version}"}
    assert f"-t encsearch:{version} ." in (ROOT / "cluster" / "Dockerfile").read_text()


def test_ray_is_the_pinned_one() -> None:
    pin = re.search(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert pin
    assert cluster_spec()["rayVersion"] == pin[1]


def test_the_job_starts_files_that_exist() -> None:
    entrypoint = job()["spec"]["entrypoint"].split()
    assert entrypoint[:3] == ["python", "jobs/sweep.py", "camvid"]
    assert (ROOT / entrypoint[1]).is_file()
    assert find_recipe(entrypoint[2]).is_file()


def test_secrets_are_references(site: Path) -> None:
    choose_options(site, *OPTIONS)
    spec = render(site / "raycluster")["RayCluster"]["spec"]
    secret_words = ("PASSWORD", "TOKEN", "USERNAME", "KEY")
    for container in containers(spec):
        for variable in container["env"]:
            if any(word in variable["name"] for word in secret_words):
                assert set(variable["valueFrom"]) == {"secretKeyRef"}
    assert spec["authOptions"] == {"mode": "token", "secretName": "encsearch-ray-auth"}


def test_every_node_has_the_same_variables_and_mounts(site: Path) -> None:
    choose_options(site, *OPTIONS)
    head, worker = containers(render(site / "raycluster")["RayCluster"]["spec"])
    assert head["env"] == worker["env"]
    assert head["volumeMounts"] == worker["volumeMounts"]


def test_every_node_mounts_the_shared_claim_where_recipes_look() -> None:
    claim = rendered("storage")["PersistentVolumeClaim"]
    workdir = re.search(r"^WORKDIR (\S+)$", (ROOT / "cluster" / "Dockerfile").read_text(), re.MULTILINE)
    assert workdir
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(cluster_spec()):
        names = {volume["name"]: volume for volume in pod["volumes"]}
        assert names["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        mounted = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] == "shared"}
        assert mounted == {f"{workdir[1]}/data", f"{workdir[1]}/runs"}
