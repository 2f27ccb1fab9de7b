"""Serving without a server: what is an image, which requests are refused, what is answered."""

import base64
import dataclasses
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from encsearch.cli.main import main
from encsearch.cli.serving import num_bytes, serve
from encsearch.config import Config, DataConfig, ModelConfig
from encsearch.data.datasets import DatasetInfo
from encsearch.errors import UserError
from encsearch.inference.bundle import Bundle
from encsearch.inference.predictor import Predictor
from encsearch.model.encnet import EncNet
from encsearch.serving.answers import Answer, ServedModel, answer_all, answer_json
from encsearch.serving.pictures import read_pictures
from encsearch.serving.requests import (
    ImageFile,
    Limits,
    RequestRefusedError,
    check_length,
    check_origin,
    check_received,
    image_file,
    media_type,
    wants_png,
)

LIMITS = Limits(max_bytes=1000, max_pixels=600, timeout_s=60)
INFO = DatasetInfo("toy", ("sky", "road", "car"), ((0, 0, 255), (9, 9, 9), (255, 0, 0)))


def picture(height: int = 20, width: int = 30, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header names a size and which holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82"


def gif() -> bytes:
    """A GIF, whose pictures PIL would count one by one."""
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "GIF")
    return file.getvalue()


def jpeg_of_many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated: libjpeg would go over all pixels for each."""
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 200 + data[-2:]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    shape = ModelConfig(backbone="tiny", output_stride=4, num_codewords=4, channels=8)
    model = EncNet.from_config(shape, 3).eval()
    return Predictor(Bundle(model, Config(data=DataConfig(store="s"), model=shape), INFO, "abc", {}))


def test_every_kind_of_image_comes_to_the_same_pixels(tmp_path: Path) -> None:
    pixels = picture()
    data = png(pixels)
    (tmp_path / "a.png").write_bytes(data)
    for one in (pixels, pixels[None], data, text(data), tmp_path / "a.png", {"image": data}):
        (found,) = read_pictures(one)
        assert np.array_equal(found, pixels), type(one)
    mixed = np.array([data, text(data), tmp_path / "a.png"], dtype=object)
    wrapped = np.empty(3, dtype=object)
    wrapped[:] = [np.array(text(data), dtype=object)] * 3
    for several in (
        mixed,
        wrapped,
        list(mixed),
        {"image": mixed},
        np.array([text(data)] * 3),
        np.stack([pixels] * 3),
    ):
        assert [np.array_equal(found, pixels) for found in read_pictures(several)] == [True] * 3


FORM = "multipart/form-data; boundary=edge"


def form(data: bytes, name: str = "image", *, twice: bool = False) -> bytes:
    """As `curl -F image=@a.png` sends it."""
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n'
    part = head.encode() + b"Content-Type: image/png\r\n\r\n" + data + b"\r\n"
    return part * (2 if twice else 1) + b"--edge--\r\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (__file__, "image 0: not base64"),
        ("/etc/passwd", "image 0: not base64|not a readable image"),
        (["/etc/hostname"], "image 0: not base64|not a readable image"),
        (b"/etc/passwd", "not a readable image"),
        ({"picture": b""}, "no 'image' among picture"),
        ([b"", 7], "image 0: not a readable image"),
        ([7], "image 0: a int is no image"),
        (np.array([[[1, 2, 3]]], dtype=object), "image 0: a int is no image"),
    ],
)
def test_text_is_never_a_path_and_what_is_no_image_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_pictures(given)


@pytest.mark.parametrize("header", [None, "", "text/plain", "multipart/mixed; boundary=x", "image/gif"])
def test_another_content_type_is_415(header: str | None) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        media_type(header)
    assert refused.value.status == 415


@pytest.mark.parametrize(("header", "status"), [("1001", 413), ("9" * 30, 413), ("-1", 400), ("x", 400)])
def test_an_announced_length_is_judged_before_the_body(header: str, status: int) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        check_length(header, LIMITS)
    assert refused.value.status == status


def test_lengths_within_the_limit_pass() -> None:
    check_length("1000", LIMITS)
    check_length(None, LIMITS)
    check_received(1000, LIMITS)
    assert media_type("Image/PNG; q=1") == "image/png"
    with pytest.raises(RequestRefusedError):
        check_received(1001, LIMITS)


@pytest.mark.parametrize(
    ("media", "body", "status", "message"),
    [
        ("image/png", b"", 400, "not a readable image"),
        ("image/png", b"GET / HTTP/1.1", 400, "not a readable image"),
        ("image/png", claiming(60_000, 60_000), 400, "pixels"),
        ("image/png", claiming(0, 5), 400, "not a readable image"),
        ("image/png", claiming(31, 20), 422, "620 pixels, but 600 are allowed"),
        ("image/png", gif(), 400, "not a readable image .*; formats: PNG, JPEG"),
        ("image/jpeg", jpeg_of_many_scans(), 400, "a JPEG of over 200 scans"),
        ("application/json", b"{", 400, "not JSON"),
        ("application/json", b"[" * 100_000, 400, "not JSON"),
        ("application/json", b"[]", 400, 'no text under "image"'),
        ("application/json", b'{"image": 3}', 400, 'no text under "image"'),
        ("application/json", b'{"image": "/etc/passwd"}', 400, "the image"),
        ("application/json", b'{"image": "\\u00e9"}', 400, "not base64"),
        ("multipart/form-data", b"--x", 400, "not a form"),
        (FORM, b"", 400, "not a form|0 files"),
        (FORM, b"x" * 600, 400, "not a form"),
        (FORM, form(b"x", name="file"), 400, '0 files under "image"; send one'),
        (FORM, form(b"x")[:-20], 400, "not a form|0 files"),
        (FORM, form(b"x"), 400, "the image: not a readable image"),
        (FORM, form(b"x", twice=True), 400, '2 files under "image"; send one'),
    ],
)
def test_a_body_without_a_fit_image_is_refused_in_one_line(
    media: str, body: bytes, status: int, message: str
) -> None:
    with pytest.raises(RequestRefusedError, match=message) as refused:
        image_file(media, body, LIMITS)
    assert refused.value.status == status
    assert "\n" not in str(refused.value)


def test_a_form_of_many_parts_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(RequestRefusedError, match="not a form of at most 100 parts"):
        image_file(FORM, form(b"x" * 10, name="other")[:-10] * 200, LIMITS)


def test_a_page_of_another_site_is_refused() -> None:
    check_origin(None)  # a program
    check_origin("same-origin")
    with pytest.raises(RequestRefusedError) as refused:
        check_origin("cross-site")
    assert refused.value.status == 403


def test_every_kind_of_body_holds_the_same_file() -> None:
    data = png(picture())
    expected = ImageFile(data, 600)
    assert image_file("image/png", data, LIMITS) == expected
    assert image_file("application/json", json.dumps({"image": text(data)}).encode(), LIMITS) == expected
    assert image_file(FORM, form(data), LIMITS) == expected


def test_text_has_a_limit_of_pixels_before_any_is_decoded_and_the_callers_own_images_have_none() -> None:
    data = png(picture())
    assert len(read_pictures([text(data)] * 2, max_text_pixels=1200)) == 2
    with pytest.raises(UserError, match="image 1: 1,200 pixels up to here in one request, but 1,199 are"):
        read_pictures(np.array([text(data), text(claiming(30, 20))]), max_text_pixels=1199)
    assert len(read_pictures([data, picture(), picture()], max_text_pixels=1)) == 3


def test_the_label_map_itself_is_asked_for_by_accept() -> None:
    assert wants_png("application/json;q=0.5, image/png")
    assert not wants_png("*/*")
    assert not wants_png(None)


def test_same_sized_images_go_together_and_a_damaged_one_spoils_no_other(predictor: Predictor) -> None:
    small, large, other = picture(), picture(24, 32), picture(seed=1)
    files = [png(small), png(small)[:-30], png(large), png(other)]
    first, damaged, alone, last = answer_all(predictor, files)
    assert isinstance(damaged, RequestRefusedError)
    assert damaged.status == 400
    for answer, pixels, together in ((first, small, 2), (alone, large, 1), (last, other, 2)):
        assert isinstance(answer, Answer)
        assert answer.batch_size == together
        assert (answer.prediction.labels == predictor.predict(pixels)[0]).mean() > 0.99
        assert answer.prediction.presence == pytest.approx(predictor.predict_presence(pixels)[0], abs=1e-6)


def test_an_answer_is_strict_json_with_the_label_map_as_png(predictor: Predictor) -> None:
    served = ServedModel("toy", "3", INFO.classes, INFO.palette, "abc", "def", "# toy", LIMITS)
    (answer,) = answer_all(predictor, [png(picture())])
    assert isinstance(answer, Answer)
    found = json.loads(json.dumps(answer_json(answer, served), allow_nan=False))
    assert found["model"] == {"name": "toy", "version": "3"}
    assert found["size"] == [20, 30]
    assert list(found["presence"]) == found["classes"] == list(INFO.classes)
    labels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["labels"]))))
    assert np.array_equal(labels, answer.prediction.labels)


def test_a_model_without_context_module_says_no_presence(predictor: Predictor) -> None:
    (answer,) = answer_all(predictor, [png(picture())])
    assert isinstance(answer, Answer)
    plain = dataclasses.replace(answer, prediction=dataclasses.replace(answer.prediction, presence=None))
    assert (
        answer_json(plain, ServedModel("toy", "3", INFO.classes, INFO.palette, "", "", "", LIMITS))[
            "presence"
        ]
        == {}
    )


def test_sizes_are_written_with_a_unit() -> None:
    context = click.Context(serve)
    found = [num_bytes(context, serve.params[0], size) for size in ("20MB", "500kB", "7")]
    assert found == [20_000_000, 500_000, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-bytes", "20 Mio"], "20 Mio is no number of bytes"),
        (["--max-bytes", "0"], "0 is no number of bytes"),
        (["--max-pixels", "inf"], "inf is no number of pixels"),
        (["--max-pixels", "nan"], "nan is no number of pixels"),
        (["--max-pixels", "0.5"], "0.5 is no number of pixels"),
        (["--timeout-s", "0"], "0.0 is not in the range"),
        (["--device", "tpu"], "device=tpu"),
        (["--port", "0"], "0 is not in the range"),
        ([], "not a trained model's folder"),
    ],
)
def test_serve_refuses_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tmp_path), *options])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
