"""`encsearch serve` over HTTP: a real Ray Serve, a tiny model, and nothing left afterwards."""

import base64
import http.client
import json
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from encsearch.serving.arriving import MAX_BODIES
from encsearch.tracking.registry.fetch import load
from tests.e2e.head import free_ports
from tests.e2e.shell import Shell, read_until
from tests.e2e.tiny_model import noise, pixels_of, png, write_tiny_model

MAX_BATCH, MAX_BYTES, MAX_PIXELS, TIMEOUT_S = 4, 20_000, 40 * 40, 20.0
END_TIMEOUT_S = 180
PNG = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Server:
    process: "subprocess.Popen[str]"
    port: int
    bundle: Path


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def ask(server: Server, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=END_TIMEOUT_S)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    named = {name.lower(): value for name, value in response.getheaders()}
    answer = Answer(response.status, named, response.read())
    connection.close()
    return answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serving")
    bundle = write_tiny_model(folder / "bundle")
    (port,) = free_ports(1)
    limits = (f"--max-bytes={MAX_BYTES}", f"--max-pixels={MAX_PIXELS}", f"--timeout-s={TIMEOUT_S}")
    batches = (f"--max-batch={MAX_BATCH}", "--batch-wait-ms=300")
    process = Shell(folder).start("encsearch", "serve", "bundle", f"--port={port}", *batches, *limits)
    read_until(process, "stderr", lambda line: "answers at" in line and "up to 1,600 pixels" in line)
    yield Server(process, port, bundle)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=END_TIMEOUT_S)


def test_the_answer_is_what_load_predicts(server: Server) -> None:
    image = noise(33, 47)
    (expected,) = load(server.bundle).predict(image)
    assert len(np.unique(expected)) == 3
    text = base64.b64encode(png(image)).decode()
    for body, headers in ((png(image), PNG), (json.dumps({"image": text}).encode(), JSON)):
        answer = ask(server, "POST", "/predict", body, **headers)
        found = json.loads(answer.body)
        assert answer.status == 200
        assert np.array_equal(pixels_of(base64.b64decode(found["labels"])), expected)
        assert (found["size"], found["classes"]) == ([33, 47], ["sky", "road (wet)", "car"])
        assert found["presence"] == pytest.approx(load(server.bundle).predict_presence(image)[0], abs=1e-5)
    answer = ask(server, "POST", "/predict", png(image), **PNG, Accept="image/png")
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(pixels_of(answer.body), expected)


def test_the_pages_tell_of_the_model(server: Server) -> None:
    assert ask(server, "GET", "/healthz").status == 200
    model = json.loads(ask(server, "GET", "/model").body)
    assert (model["name"], model["data_fingerprint"]) == ("toy", "abc")
    assert model["card"] == (server.bundle / "README.md").read_text()
    assert model["weights_sha256"] in (server.bundle / "weights.sha256").read_text()
    assert model["weights_sha256"].startswith(model["version"])
    assert model["limits"] == {"max_bytes": MAX_BYTES, "max_pixels": MAX_PIXELS, "timeout_s": TIMEOUT_S}


def test_requests_at_once_go_through_the_model_together(server: Server) -> None:
    before = json.loads(ask(server, "GET", "/model").body)["served"]
    image = png(noise(32, 32))
    with ThreadPoolExecutor(2 * MAX_BATCH) as threads:
        answers = list(
            threads.map(lambda _: ask(server, "POST", "/predict", image, **PNG), range(2 * MAX_BATCH))
        )
    after = json.loads(ask(server, "GET", "/model").body)["served"]
    assert {answer.status for answer in answers} == {200}
    assert after["images"] - before["images"] == 2 * MAX_BATCH
    assert after["batches"] - before["batches"] < 2 * MAX_BATCH
    assert max(int(answer.headers["x-batch-size"]) for answer in answers) > 1


def test_too_many_at_once_are_told_to_come_back(server: Server) -> None:
    image = png(noise(32, 32))
    everyone = threading.Barrier(60)  # on a busy machine threads start slowly

    def ask_together(_: int) -> Answer:
        everyone.wait()
        return ask(server, "POST", "/predict", image, **PNG)

    with ThreadPoolExecutor(60) as threads:
        answers = list(threads.map(ask_together, range(60)))
    statuses = {answer.status for answer in answers}
    assert statuses == {200, 503}
    refused = next(answer for answer in answers if answer.status == 503)
    assert "the queue is full: " in json.loads(refused.body)["error"]
    assert refused.headers["retry-after"] == "1"


def test_small_images_get_through_while_others_send_larger_ones_without_pause(server: Server) -> None:
    """More at a time than the queue holds, and beside them files that unpack to 4 million pixels."""
    small, largest, bomb = png(noise(8, 8)), png(noise(40, 20)), png(np.zeros((2000, 2000, 3), np.uint8))
    over = threading.Event()

    def attack(body: bytes) -> set[int]:
        statuses = set()
        while not over.is_set():
            statuses.add(ask(server, "POST", "/predict", body, **PNG).status)
        return statuses

    with ThreadPoolExecutor(40) as threads:
        attacks = [threads.submit(attack, body) for body in (largest, largest, largest, bomb) * 10]
        answers = [ask(server, "POST", "/predict", small, **PNG) for _ in range(10)]
        healths = {ask(server, "GET", "/healthz").status for _ in range(10)}
        over.set()
    got: set[int] = set().union(*(attack.result() for attack in attacks))
    assert [answer.status for answer in answers] == [200] * 10
    assert got <= {200, 422, 503}
    assert {200, 422} <= got
    assert healths <= {200, 503}
    assert ask(server, "GET", "/healthz").status == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/predict", b"", PNG, 400),
        ("POST", "/predict", b"no image", PNG, 400),
        ("POST", "/predict", png(noise(32, 32))[:-60], PNG, 400),
        ("POST", "/predict", b'{"image": "/etc/hostname"}', JSON, 400),
        ("POST", "/predict", b"{", JSON, 400),
        ("POST", "/predict", b"a,b", {"Content-Type": "text/csv"}, 415),
        ("POST", "/predict", b"x" * (MAX_BYTES + 1), PNG, 413),
        ("POST", "/predict", png(np.zeros((41, 40, 3), np.uint8)), PNG, 422),
        ("GET", "/predict", b"", {}, 405),
        ("GET", "/etc/passwd", b"", {}, 404),
    ],
)
def test_a_request_that_cannot_be_answered_gets_one_line_of_json(
    server: Server, method: str, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = ask(server, method, path, body, **headers)
    assert answer.status == status
    (name, reason) = next(iter(json.loads(answer.body).items()))
    assert name == "error"
    assert "\n" not in reason
    assert "Traceback" not in reason


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(server: Server) -> None:
    head = (
        "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 5000000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=END_TIMEOUT_S) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_requests_that_are_sent_by_half_keep_nobody_out(server: Server) -> None:
    """More bodies than a replica receives at once, and connections whose headers never end."""
    address = ("127.0.0.1", server.port)
    start = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    with ExitStack() as stack:
        headers, bodies = (
            [
                stack.enter_context(socket.create_connection(address, timeout=END_TIMEOUT_S))
                for _ in range(number)
            ]
            for number in (40, MAX_BODIES + 10)
        )
        for connection in headers:
            connection.sendall(start)
        for connection in bodies:
            connection.sendall(start + b"Content-Length: 1000\r\n\r\nx")
        for _ in range(5):
            assert ask(server, "POST", "/predict", png(noise(32, 32)), **PNG).status == 200
            assert ask(server, "GET", "/healthz").status == 200
        answers = [b"".join(iter(partial(connection.recv, 4096), b"")) for connection in bodies]
    statuses = Counter(answer.split()[1] for answer in answers)
    assert statuses.keys() == {b"408", b"503"}
    assert statuses[b"503"] >= 10  # those that made room
    assert {next(iter(json.loads(answer.partition(b"\r\n\r\n")[2]))) for answer in answers} == {"error"}


def test_a_second_server_on_the_port_is_refused(server: Server) -> None:
    shell = Shell(server.bundle.parent)
    line = shell.refusal("serve", "bundle", f"--port={server.port}", code=3)
    assert f"cannot listen on 127.0.0.1:{server.port}" in line


def test_sigterm_leaves_no_process(server: Server) -> None:
    """The last of this file: it ends the server."""
    started = psutil.Process(server.process.pid).children(recursive=True)
    assert len(started) > 3
    server.process.terminate()
    out, err = server.process.communicate(timeout=END_TIMEOUT_S)
    assert server.process.returncode == 143
    assert (out, err.splitlines()[-1]) == ("", "terminated")
    _, left = psutil.wait_procs(started, timeout=END_TIMEOUT_S)
    assert not left
