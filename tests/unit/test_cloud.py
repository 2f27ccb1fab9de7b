"""The clusters of `ray up` hold to the schemas of Ray and of their cloud, and to the rest of the repository.

Neither Ray nor a cloud is asked: the schemas lie in the installed packages.
"""

import copy
import json
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from botocore.session import Session
from botocore.validate import ParamValidator

from tests.unit.definitions import ROOT

CLOUD = ROOT / "cluster" / "cloud"
CLOUDS = ("aws", "gcp")
each_cloud = pytest.mark.parametrize("cloud", CLOUDS)


def load(cloud: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CLOUD / f"{cloud}.yaml").read_text()))


def validate(config: dict[str, Any]) -> None:
    """Raise ValidationError unless Ray's schema and the cloud's own allow it.

    The two sums are those of `validate_config` of Ray 2.60, which this would have to import.
    """
    ray = find_spec("ray")
    assert ray
    assert ray.submodule_search_locations
    schema = Path(ray.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json"
    jsonschema.Draft7Validator(json.loads(schema.read_text())).validate(config)
    types = config["available_node_types"]
    if config["head_node_type"] not in types:
        raise jsonschema.ValidationError("head_node_type is none of available_node_types")
    if sum(kind.get("min_workers", 0) for kind in types.values()) > config["max_workers"]:
        raise jsonschema.ValidationError("max_workers is smaller than the sum of min_workers")
    for kind in types.values():
        CHECKS[config["provider"]["type"]](kind["node_config"])


def validate_aws(machine: dict[str, Any]) -> None:
    """As boto3 does before it sends anything."""
    shape = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report = ParamValidator().validate(machine | {"MinCount": 1, "MaxCount": 1}, shape)
    if report.has_errors():
        raise jsonschema.ValidationError(report.generate_report())


def validate_gcp(machine: dict[str, Any]) -> None:
    """Against Google's description of an instance, without other fields."""
    jsonschema.Draft7Validator({"$ref": "#/schemas/Instance", "schemas": gcp_schemas()}).validate(machine)


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {"aws": validate_aws, "gcp": validate_gcp}


@cache
def gcp_schemas() -> Any:
    documents = files("googleapiclient") / "discovery_cache" / "documents"
    return _closed(json.loads((documents / "compute.v1.json").read_text())["schemas"])


def _closed(node: Any) -> Any:
    """Google's references as JSON Schema's; unknown fields are errors."""
    if not isinstance(node, dict):
        return [_closed(item) for item in node] if isinstance(node, list) else node
    result = {key: _closed(value) for key, value in node.items() if key not in ("id", "required", "format")}
    if isinstance(node.get("$ref"), str):
        result["$ref"] = f"#/schemas/{node['$ref']}"
    if node.get("format") in ("int64", "uint64"):
        result["type"] = ["string", "integer"]  # Google takes both
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        result["additionalProperties"] = False
    return result


@each_cloud
def test_cluster_is_valid(cloud: str) -> None:
    validate(load(cloud))


def misspelt(config: dict[str, Any]) -> None:
    config["idle_timeout_minute"] = config.pop("idle_timeout_minutes")


def misspelt_of_a_type(config: dict[str, Any]) -> None:
    config["available_node_types"]["worker"]["min_worker"] = 1


def text_for_a_number(config: dict[str, Any]) -> None:
    config["available_node_types"]["worker"]["max_workers"] = "eight"


def no_such_head(config: dict[str, Any]) -> None:
    config["head_node_type"] = "leader"


def more_than_the_most(config: dict[str, Any]) -> None:
    config["available_node_types"]["worker"]["min_workers"] = config["max_workers"] + 1


def misspelt_of_the_cloud(config: dict[str, Any]) -> None:
    machine = config["available_node_types"]["worker"]["node_config"]
    if "scheduling" in machine:
        machine["scheduling"]["provisionModel"] = "SPOT"
    else:
        machine["InstanceMarketOptions"]["MarketTyp"] = "spot"


@each_cloud
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (misspelt, "idle_timeout_minute'"),
        (misspelt_of_a_type, "min_worker'"),
        (text_for_a_number, "'eight' is not of type 'integer'"),
        (no_such_head, "head_node_type"),
        (more_than_the_most, "max_workers is smaller"),
        (misspelt_of_the_cloud, "provisionModel|MarketTyp"),
    ],
)
def test_a_wrong_field_is_an_error(
    cloud: str, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    config = copy.deepcopy(load(cloud))
    damage(config)
    with pytest.raises(jsonschema.ValidationError, match=message):
        validate(config)


def test_clouds_differ_in_machines_alone() -> None:
    """A file of `ray up` can include nothing, so that what both need stands twice."""
    own = {"provider", "available_node_types", "head_setup_commands"}
    aws, gcp = ({key: value for key, value in load(cloud).items() if key not in own} for cloud in CLOUDS)
    assert aws == gcp
    for cloud in CLOUDS:
        types = load(cloud)["available_node_types"]
        assert types["worker"]["max_workers"] == load(cloud)["max_workers"]


@each_cloud
def test_the_head_stays_and_trains_nothing_and_workers_are_spot(cloud: str) -> None:
    config = load(cloud)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in config["head_start_ray_commands"][1]
    assert types["worker"]["resources"]["GPU"] == 1
    spot = {"InstanceMarketOptions", "scheduling"}
    assert spot & set(types["worker"]["node_config"])
    assert not spot & set(types["head"]["node_config"])


@each_cloud
def test_what_is_sent_exists_and_holds_what_setup_needs(cloud: str) -> None:
    mounts = load(cloud)["file_mounts"]
    token = mounts.pop("~/.ray/auth_token")
    assert token.startswith("~/")
    for there, here in mounts.items():
        assert there == f"~/encsearch/{here}"
        assert (ROOT / here).exists()
    for command in load(cloud)["setup_commands"]:
        assert command.removeprefix("~/encsearch/") == "cluster/cloud/setup.sh"


def test_setup_takes_extras_that_exist_and_the_uv_of_the_image() -> None:
    setup = (CLOUD / "setup.sh").read_text()
    (version,) = re.findall(r"^UV_VERSION=(\S+)", setup, re.MULTILINE)
    assert f"uv=={version} " in (ROOT / "cluster" / "Dockerfile").read_text()
    assert f"uv=={version} " in (ROOT / "cluster" / "mlflow" / "Dockerfile").read_text()
    (extras,) = re.findall(r"'\.\[([a-z0-9,]+)\]'", setup)
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(","))


def test_tokens_are_asked_for_and_stand_in_no_file() -> None:
    variables = (CLOUD / "variables.env").read_text()
    assert "RAY_AUTH_MODE=token" in variables
    for path in CLOUD.iterdir():
        assert not re.search(r"(PASSWORD|AUTH_TOKEN|SECRET|ACCESS_KEY)\w*\s*[=:]", path.read_text()), path
