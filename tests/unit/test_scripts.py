"""Shell scripts and Dockerfiles pass the linters that know their traps, and the linters find such traps."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.unit.definitions import ROOT, run_tool


def tracked(*patterns: str) -> list[str]:
    """Files of the checkout, new ones too, but for those that git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def is_shell(name: str) -> bool:
    with (ROOT / name).open("rb") as file:
        first = file.readline(80)
    return first.startswith(b"#!") and b"sh" in first.split(b"/")[-1]


SCRIPTS = sorted({*tracked("*.sh", "*.sbatch"), *(name for name in tracked() if is_shell(name))})
DOCKERFILES = tracked("*Dockerfile")


def lint_shell(path: str | Path, text: str = "") -> list[str]:
    done = run_tool("shellcheck", "--external-sources", "--format=json", path, text=text)
    return [f"{path}:{found['line']}: {found['message']}" for found in json.loads(done.stdout)]


def lint_dockerfile(path: str | Path, text: str = "") -> list[str]:
    done = run_tool("hadolint", "--format=json", path, text=text)
    return [f"{path}:{found['line']}: {found['message']}" for found in json.loads(done.stdout)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_script_has_no_trap(script: str) -> None:
    assert not lint_shell(script)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_dockerfile_has_no_trap(dockerfile: str) -> None:
    assert not lint_dockerfile(dockerfile)


def test_commands_of_clouds_have_no_trap() -> None:
    for path in sorted((ROOT / "cluster" / "cloud").glob("*.yaml")):
        for name, commands in yaml.safe_load(path.read_text()).items():
            if name.endswith("commands"):
                # RAY_HEAD_IP is set by Ray in front of the command.
                assert not lint_shell(
                    "-", "\n".join(["#!/bin/bash", "export RAY_HEAD_IP=127.0.0.1", *commands])
                )


def test_scripts_and_dockerfiles_are_found() -> None:
    assert {".ci/run", "cluster/local/two_nodes.sh", "cluster/cloud/setup.sh"} <= set(SCRIPTS)
    assert set(DOCKERFILES) == {"cluster/Dockerfile", "cluster/mlflow/Dockerfile"}


@pytest.mark.parametrize(
    ("arguments", "setting", "words"),
    [
        ((), "", "usage: "),
        (("nonsense",), "", "start|status|stop"),
        (("start", "worker"), "", "usage: "),
        (("start",), "PORT=6390x", "PORT=6390x: not a whole number"),
        (("start",), "PORT=65533", "PORT=65533: not between 1 and 65532"),
        (("start",), "DASHBOARD_PORT=70000", "DASHBOARD_PORT=70000: no port"),
        (("start",), "HEAD_CPUS=1.5", "HEAD_CPUS=1.5: not a whole number"),
        (("start",), "NODES_DIR=nodes", "NODES_DIR=nodes: not an absolute path"),
        (("start",), f"NODES_DIR=/{'a' * 40}", "41 characters, but Ray's sockets leave it 34"),
        (("start",), "RAY_AUTH_MODE=on", "RAY_AUTH_MODE=on: neither token nor disabled"),
        (("start",), "RAY_AUTH_MODE=token", "no token in RAY_AUTH_TOKEN or /nowhere"),
    ],
)
def test_two_nodes_are_refused_in_one_line(arguments: tuple[str, ...], setting: str, words: str) -> None:
    name, _, value = setting.partition("=")
    clean = {key: text for key, text in os.environ.items() if not key.startswith("RAY_")}
    settings = {"RAY_AUTH_TOKEN_PATH": "/nowhere", name or "PORT": value or "6390"}
    script = ROOT / "cluster" / "local" / "two_nodes.sh"
    done = subprocess.run([script, *arguments], capture_output=True, text=True, env=clean | settings)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert words in line


def test_a_process_of_before_a_reboot_is_left_alone(tmp_path: Path) -> None:
    """Its number is in the file of a node that was started then."""
    script = ROOT / "cluster" / "local" / "two_nodes.sh"
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    boots = {"another": "another", "this": Path("/proc/sys/kernel/random/boot_id").read_text()}
    try:
        for name, boot in boots.items():
            (tmp_path / "worker.pid").write_text(str(process.pid))
            (tmp_path / "boot").write_text(boot)
            subprocess.run([script, "stop"], check=True, env={**os.environ, "NODES_DIR": str(tmp_path)})
            if name == "another":
                assert process.poll() is None
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()


def test_a_trap_is_found() -> None:
    assert any("quote" in line for line in lint_shell("-", "#!/bin/bash\nrm -r $1/data\n"))
    assert any(
        "apt-get" in line for line in lint_dockerfile("-", "FROM debian:12\nRUN apt-get install wget\n")
    )
