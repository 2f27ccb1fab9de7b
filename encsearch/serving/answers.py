"""The answers of a served model: about itself, and for each image."""

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from encsearch.data.codec import decode_image, encode_png
from encsearch.errors import UserError
from encsearch.inference.predictor import Prediction, Predictor
from encsearch.serving.requests import Limits, RequestRefusedError


@dataclass(frozen=True)
class ServedModel:
    """The model that answers, within limits.

    `version` is the registry's, or the first digits of the weights' hash.
    """

    name: str
    version: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    data_fingerprint: str
    weights_sha256: str
    card: str
    limits: Limits


@dataclass(frozen=True)
class Answer:
    """A prediction, and how many images went through the network together with this one."""

    prediction: Prediction
    batch_size: int


def answer_all(predictor: Predictor, files: Sequence[bytes]) -> list[Answer | RequestRefusedError]:
    """Segment image files, those of one size together; a damaged file does not affect the others."""
    answers: dict[int, Answer | RequestRefusedError] = {}
    by_size: dict[tuple[int, ...], dict[int, Any]] = {}
    for number, data in enumerate(files):
        try:
            pixels = decode_image(data, "the image")
        except UserError as error:
            answers[number] = RequestRefusedError(400, str(error))
        else:
            by_size.setdefault(pixels.shape, {})[number] = pixels
    for same_sized in by_size.values():
        found = predictor.segment(same_sized.values())
        for number, prediction in zip(same_sized, found, strict=True):
            answers[number] = Answer(prediction, len(same_sized))
    return [answers[number] for number in range(len(files))]


def answer_json(answer: Answer, model: ServedModel) -> dict[str, Any]:
    """Return `labels` as a PNG in base64, `classes`, which names its numbers, and `size`, [height, width]."""
    labels = answer.prediction.labels
    return {
        "model": {"name": model.name, "version": model.version},
        "size": list(labels.shape),
        "classes": list(model.classes),
        "presence": dict(answer.prediction.presence or {}),
        "labels": base64.b64encode(encode_png(labels)).decode(),
    }


def model_json(model: ServedModel, num_images: int, num_batches: int) -> dict[str, Any]:
    """Describe the model, and count what this replica has done since it started."""
    return {**asdict(model), "served": {"images": num_images, "batches": num_batches}}
