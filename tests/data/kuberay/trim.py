"""Makes the schemas of this folder from KubeRay's CRDs (Apache-2.0, helm-chart/kuberay-operator/crds).

    python trim.py CRD.yaml ...

Kept: the v1 schema of each kind without its status, and of the RayJob without the rayClusterSpec, which is
word for word the RayCluster's spec (this is asserted). The 2.3 MB of the two CRDs become 240 kB.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def main(paths: list[str]) -> None:
    schemas = dict(schema_of(Path(path)) for path in paths)
    job_spec = schemas["RayJob"]["properties"]["spec"]["properties"]
    assert job_spec["rayClusterSpec"] == schemas["RayCluster"]["properties"]["spec"]
    job_spec["rayClusterSpec"] = {"$ref": "RayCluster#/properties/spec"}
    for kind, schema in schemas.items():
        target = Path(__file__).with_name(f"{kind}.json")
        target.write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")


def schema_of(path: Path) -> tuple[str, dict[str, Any]]:
    crd = yaml.safe_load(path.read_text())["spec"]
    (version,) = (version for version in crd["versions"] if version["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"].pop("status")
    return crd["names"]["kind"], schema


if __name__ == "__main__":
    main(sys.argv[1:])
