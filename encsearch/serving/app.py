"""The deployment that Ray Serve runs: HTTP in, a batch through the model, HTTP out."""

import asyncio
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from encsearch.data.codec import encode_png
from encsearch.inference.bundle import read_bundle
from encsearch.inference.predictor import Predictor
from encsearch.serving.answers import Answer, ServedModel, answer_all, answer_json, model_json
from encsearch.serving.arriving import Arrivals
from encsearch.serving.requests import (
    RequestRefusedError,
    check_length,
    check_origin,
    image_file,
    media_type,
    wants_png,
)
from encsearch.serving.waiting import Queue, plan_room

PAGE = Path(__file__).parent / "page.html"
# Nothing of the page may come from elsewhere, nor go there.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
}
ROUTES = {"/": "GET", "/predict": "POST", "/healthz": "GET", "/model": "GET"}


class ImageServer:
    """One replica: a model in memory. `files` is a reference to the bundle's files by path.

    It has no `check_health`: Ray would kill a replica that is merely busy. Callers hear of that by /healthz.
    """

    def __init__(
        self,
        files: "list[ray.ObjectRef[Mapping[str, bytes]]]",
        model: ServedModel,
        device: str,
        max_batch: int,
        batch_wait_s: float,
    ) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            # In a list, since Serve would fetch a bare reference into the request's process.
            for name, data in ray.get(files[0]).items():
                (Path(scratch) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(scratch) / name).write_bytes(data)
            bundle = read_bundle(Path(scratch))
        self._predictor = Predictor(bundle, device, max_batch)
        self._model, self._limits = model, model.limits
        self._num_images = self._num_batches = 0
        room = plan_room(max_batch, batch_wait_s, self._predictor.pixels_at_once, model.limits.max_pixels)
        self._arrivals = Arrivals(model.limits)
        self._queue = Queue(self._answer_batch, room, model.limits.timeout_s)

    async def __call__(self, request: Request) -> Response:
        try:
            return await self._route(request)
        except RequestRefusedError as refused:
            # Closed, since the rest of a body that was not read would come all the same.
            headers = {"Connection": "close"}
            if refused.status == 503:
                headers["Retry-After"] = "1"
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
        if path == "/":
            return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=PAGE_HEADERS)
        if path == "/predict":
            return await self._predict(request)
        if path == "/model":
            return JSONResponse(model_json(self._model, self._num_images, self._num_batches))
        # A replica gets no request before its model is loaded.
        if trouble := self._queue.describe_trouble(self._limits.max_pixels):
            raise RequestRefusedError(503, trouble)
        return JSONResponse({"status": "ready"})

    async def _predict(self, request: Request) -> Response:
        check_origin(request.headers.get("sec-fetch-site"))
        content_type = request.headers.get("content-type")
        media_type(content_type)
        check_length(request.headers.get("content-length"), self._limits)
        body = await self._arrivals.receive(request.stream())
        # In threads, since parsing and packing 20 MB would hold up the other requests.
        file = await asyncio.to_thread(image_file, content_type, body, self._limits)
        answer = await self._queue.answer(file)
        headers = {"X-Batch-Size": str(answer.batch_size)}
        if wants_png(request.headers.get("accept")):
            png = await asyncio.to_thread(encode_png, answer.prediction.labels)
            return Response(png, media_type="image/png", headers=headers)
        return JSONResponse(await asyncio.to_thread(answer_json, answer, self._model), headers=headers)

    async def _answer_batch(self, files: Sequence[bytes]) -> Sequence[Answer | RequestRefusedError]:
        answers = await asyncio.to_thread(answer_all, self._predictor, files)
        self._num_images += len(files)
        self._num_batches += 1
        return answers
