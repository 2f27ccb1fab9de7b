"""The deployment that Ray Serve runs: HTTP in, a batch through the model, HTTP out."""

import asyncio
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from encsearch.data.codec import encode_png
from encsearch.inference.bundle import read_bundle
from encsearch.inference.predictor import Predictor
from encsearch.serving.answers import Answer, ServedModel, answer_all, answer_json, model_json
from encsearch.serving.requests import (
    Limits,
    RequestRefusedError,
    check_length,
    check_received,
    image_file,
    media_type,
    wants_png,
)

ROUTES = {"/predict": "POST", "/healthz": "GET", "/model": "GET"}


@dataclass(frozen=True)
class Batching:
    """At most `max_batch` images go together; the first waits at most `wait_s` for the others.

    A replica holds `max_waiting` requests and refuses the next one.
    """

    max_batch: int
    wait_s: float
    max_waiting: int


class ImageServer:
    """One replica: a model in memory. `files` is a reference to the bundle's files by name."""

    def __init__(
        self,
        files: "list[ray.ObjectRef[Mapping[str, bytes]]]",
        model: ServedModel,
        device: str,
        limits: Limits,
        batching: Batching,
    ) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            # In a list, since Serve would fetch a bare reference into the request's process.
            for name, data in ray.get(files[0]).items():
                (Path(scratch) / name).write_bytes(data)
            bundle = read_bundle(Path(scratch))
        self._predictor = Predictor(bundle, device, batching.max_batch)
        self._model, self._limits, self._max_waiting = model, limits, batching.max_waiting
        self._waiting = self._num_images = self._num_batches = 0
        together = serve.batch(max_batch_size=batching.max_batch, batch_wait_timeout_s=batching.wait_s)
        self._answer = together(self._answer_batch)

    async def __call__(self, request: Request) -> Response:
        try:
            return await self._route(request)
        except RequestRefusedError as refused:
            headers = {"Retry-After": "1"} if refused.status == 503 else None
            return JSONResponse({"error": str(refused)}, refused.status, headers)
        except Exception:
            # Clients are strangers: the traceback goes to the replica's log, and never into a reply.
            logging.getLogger("ray.serve").exception("a request failed")
            return JSONResponse({"error": "the server failed on this request; its log says why"}, 500)

    async def _route(self, request: Request) -> Response:
        path = request.url.path
        if path not in ROUTES:
            raise RequestRefusedError(404, f"no such page; there are {', '.join(ROUTES)}")
        if request.method != ROUTES[path]:
            return JSONResponse(
                {"error": f"{request.method} is not for {path}; use {ROUTES[path]}"},
                405,
                {"Allow": ROUTES[path]},
            )
        if path == "/predict":
            return await self._predict(request)
        if path == "/model":
            return JSONResponse(model_json(self._model, self._num_images, self._num_batches))
        return JSONResponse({"status": "ready"})  # a replica gets no request before its model is loaded

    async def _predict(self, request: Request) -> Response:
        if self._waiting >= self._max_waiting:
            raise RequestRefusedError(503, f"{self._waiting} requests are waiting already; try again")
        self._waiting += 1
        try:
            media = media_type(request.headers.get("content-type"))
            check_length(request.headers.get("content-length"), self._limits)
            body = await self._body(request)
            answer = await self._answer(image_file(media, body, self._limits))
        finally:
            self._waiting -= 1
        if isinstance(answer, RequestRefusedError):
            raise answer
        headers = {"X-Batch-Size": str(answer.batch_size)}
        if wants_png(request.headers.get("accept")):
            png = await asyncio.to_thread(encode_png, answer.prediction.labels)
            return Response(png, media_type="image/png", headers=headers)
        return JSONResponse(await asyncio.to_thread(answer_json, answer, self._model), headers=headers)

    async def _body(self, request: Request) -> bytes:
        parts, num_bytes = [], 0
        async for part in request.stream():
            parts.append(part)
            num_bytes += len(part)
            check_received(num_bytes, self._limits)
        return b"".join(parts)

    async def _answer_batch(self, files: list[bytes]) -> list[Answer | RequestRefusedError]:
        # In a thread, so that the replica can take requests for the next batch meanwhile.
        answers = await asyncio.to_thread(answer_all, self._predictor, files)
        self._num_images += len(files)
        self._num_batches += 1
        return answers
