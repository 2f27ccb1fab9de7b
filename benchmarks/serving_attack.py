"""What a small request sees while a served model is attacked.

    encsearch serve MODEL --port 8000 &
    python -m benchmarks.serving_attack --port 8000
    mlflow models serve -m models:/toy@champion --env-manager local --port 5001 &
    python -m benchmarks.serving_attack --port 5001 --server mlflow

An attack lasts `--seconds`. Beside it one client sends a PNG of 32 x 32 pixels after the other, and asks for
the server's health after each. Nobody hangs up before the time is over.

none      no attack
pixels    12 PNGs of 105 kB that hold 36 million pixels each, once
allowed   12 clients that send a PNG of `--allowed` pixels, as many as the server takes, again and again
bodies    40 requests of which 10 bytes of the body have come, and no more
drip      40 requests whose body comes by a byte a second
headers   40 connections that send a line of a header a second, without end
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

import psutil
from PIL import Image

SECONDS_PER_BYTE = 1.0


class Target:
    """A server on this machine, and how it takes an image."""

    def __init__(self, port: int, server: str) -> None:
        self.port = port
        self.is_mlflow = server == "mlflow"
        self.path = "/invocations" if self.is_mlflow else "/predict"
        self.media = "application/json" if self.is_mlflow else "image/png"
        self.health = "/ping" if self.is_mlflow else "/healthz"

    def body(self, side: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (side, side)).save(file, "PNG")
        if not self.is_mlflow:
            return file.getvalue()
        text = base64.b64encode(file.getvalue()).decode()
        return json.dumps({"inputs": {"image": [text]}, "params": {"labels": "png"}}).encode()

    def ask(self, method: str, path: str, body: bytes = b"", timeout_s: float = 300) -> str:
        """The status of a request, or the name of the error that ended it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, {"Content-Type": self.media})
            response = connection.getresponse()
            response.read()
            return str(response.status)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()

    def head(self, length: int) -> bytes:
        lines = [f"POST {self.path} HTTP/1.1", "Host: x", f"Content-Type: {self.media}"]
        return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def attackers(target: Target, attack: str, over: threading.Event, allowed: int) -> Iterator[str]:
    """Run one attack until `over` is set; yields what its requests got."""
    got: list[str] = []

    def send_once(body: bytes) -> None:
        got.append(target.ask("POST", target.path, body))

    def send_again(body: bytes) -> None:
        while not over.is_set():
            send_once(body)

    def trickle(start: bytes, piece: bytes) -> None:
        try:
            connection = socket.create_connection(("127.0.0.1", target.port), timeout=SECONDS_PER_BYTE)
        except OSError as error:
            got.append(type(error).__name__)
            return
        with connection:
            connection.sendall(start)
            while not over.is_set():
                with contextlib.suppress(TimeoutError, OSError):
                    answer = connection.recv(100)
                    got.append(answer[9:12].decode() or "closed")
                    return
                with contextlib.suppress(OSError):
                    connection.sendall(piece)
            got.append("held to the end")

    body = target.body(math.isqrt(allowed)) if attack == "allowed" else target.body(6000)
    jobs = {
        "none": [],
        "pixels": [(send_once, (body,))] * 12,
        "allowed": [(send_again, (body,))] * 12,
        "bodies": [(trickle, (target.head(100_000) + body[:10], b""))] * 40,
        "drip": [(trickle, (target.head(100_000) + body[:10], b"x"))] * 40,
        "headers": [(trickle, (target.head(100_000)[:-2], b"X-A: b\r\n"))] * 40,
    }[attack]
    threads = [threading.Thread(target=job, args=args, daemon=True) for job, args in jobs]
    for thread in threads:
        thread.start()
    over.wait()
    for thread in threads:
        thread.join(5)
    yield from got
    yield from ["not answered"] * sum(thread.is_alive() for thread in threads)


def measure(target: Target, attack: str, seconds: float, allowed: int) -> dict[str, object]:
    over, fates = threading.Event(), Counter[str]()
    attacker = threading.Thread(target=lambda: fates.update(attackers(target, attack, over, allowed)))
    attacker.start()
    time.sleep(2)  # until the attack is under way
    small = target.body(32)
    statuses, healths, times = Counter[str](), Counter[str](), []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        statuses[target.ask("POST", target.path, small)] += 1
        times.append(time.monotonic() - began)
        healths[target.ask("GET", target.health)] += 1
        time.sleep(0.2)
    over.set()
    attacker.join()
    times.sort()
    return {
        "attack": attack,
        "small requests": dict(statuses),
        "seconds, median and longest": [round(times[len(times) // 2], 3), round(times[-1], 3)],
        "health": dict(healths),
        "attackers got": dict(fates),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--server", choices=["encsearch", "mlflow"], default="encsearch")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--allowed", type=int, default=3_800_000)
    names = ["none", "pixels", "allowed", "bodies", "drip", "headers"]
    parser.add_argument("--attacks", nargs="+", choices=names, default=names)
    given = parser.parse_args()
    target = Target(given.port, given.server)
    print(json.dumps({"cores": psutil.cpu_count(), "load": [round(part, 1) for part in psutil.getloadavg()]}))
    for attack in given.attacks:
        print(json.dumps(measure(target, attack, given.seconds, given.allowed)), flush=True)


if __name__ == "__main__":
    main()
