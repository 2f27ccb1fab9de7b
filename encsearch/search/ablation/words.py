"""The road before EncNet: a dictionary of visual words, their histogram in an image, a linear layer.

This is the bag of words (Csurka et al., "Visual Categorization with Bags of Keypoints", 2004) that the
paper's Encoding layer makes part of the network: the words are the centres of k-means, an image becomes the
histogram of the words that are nearest to its descriptors, and one logistic regression for each class says
whether the image shows it. All are scikit-learn's. Another one tells the scene from the presence of classes.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from encsearch.config import DataConfig
from encsearch.data.datasets import IGNORE, Sample, spaced_indices
from encsearch.data.pictures import draw_sheet
from encsearch.data.store import Store, StoreSplit
from encsearch.data.transforms import to_image_tensor
from encsearch.errors import PreflightError, TrainingError
from encsearch.files import beside
from encsearch.inference.bundle import read_bundle
from encsearch.inference.evaluation import ImagePresence
from encsearch.metrics.presence import presence_scores
from encsearch.search.ablation.plan import MAX_WORD_IMAGES
from encsearch.text import format_share
from encsearch.train.loss import class_presence

SCENE_ACCURACY = "scene/accuracy"

PATCH_PX, PATCH_STEP_PX = 8, 4
FEATURE_PATCH_PX = 24  # drawn about the place of a feature; what it has seen may be larger
# For k-means, as many of each image; it takes twice the bytes more.
MAX_DESCRIPTORS, MAX_BYTES = 100_000, 2**28
SHOWN_WORDS, SHOWN_PATCHES, FRAME = 8, 8, 200

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Described:
    """An image's descriptors (N, D), and the centres (N, 2) of what they describe: row and column, px."""

    descriptors: Array
    centres: NDArray[np.int64]


Describe = Callable[[Pixels], Described]


def score_words(
    data: DataConfig,
    folder: Path | None,
    num_words: int,
    seed: int,
    scene_pattern: str | None,
    picture: Path | None,
    device: str,
) -> dict[str, float]:
    """Learn words on the training split and score on the validation split which classes are present.

    The words are of the features of the last stage of the backbone of the bundle in `folder`, or without one
    of RGB squares. `data.store` is an absolute path. Returns presence/mAP, presence/precision,
    presence/recall, and scene/accuracy with a pattern of scenes. `picture` shows the words used most. Raises
    TrainingError for a training split without as many descriptors as words.
    """
    describe = _features(read_bundle(folder).model.backbone, device) if folder else _patches
    store = Store(data.store)
    classes = store.info.classes
    train, val = store.split(data.train_split), store.split(data.val_split)
    numbers = spaced_indices(len(train), MAX_WORD_IMAGES)
    taken = _sample(train, numbers, describe, np.random.default_rng(seed))
    if len(taken.descriptors) < num_words:
        raise TrainingError(
            f"{len(taken.descriptors)} descriptors of {len(numbers)} images cannot have {num_words} words; "
            "give fewer in ablate.words"
        )
    scale = StandardScaler().fit(taken.descriptors)
    scaled = scale.transform(taken.descriptors, copy=False)
    words = MiniBatchKMeans(num_words, random_state=seed, n_init=3, batch_size=4096).fit(scaled)

    def find(image: Pixels) -> NDArray[np.int64]:
        found: NDArray[np.int64] = words.predict(scale.transform(describe(image).descriptors))
        return found

    def count(split: StoreSplit, chosen: Iterable[int]) -> _Counted:
        return _count(split, chosen, len(classes), num_words, find)

    counted = count(train, numbers), count(val, range(len(val)))
    found = _presence(*counted)
    scores = presence_scores(found[1].probabilities, found[1].present, classes)
    named = {
        "presence/mAP": scores.mean_ap,
        "presence/precision": scores.precision,
        "presence/recall": scores.recall,
        SCENE_ACCURACY: score_scenes(*found, scene_pattern) if scene_pattern else None,
    }
    if picture:
        size = FEATURE_PATCH_PX if folder else PATCH_PX
        share = counted[0].shares.mean(axis=0)
        _draw_words(train, _Taken(scaled, taken.places), words.cluster_centers_, share, size, picture)
    return {name: value for name, value in named.items() if value is not None}


def score_scenes(train: ImagePresence, val: ImagePresence, pattern: str) -> float:
    """The share of validation images whose scene a linear layer tells from the presence of the classes.

    It is fitted on the probabilities of the training split. The scene of an image is what the group of
    `pattern` matches in its id; images without a match are left out. Raises as `check_scenes` does.
    """
    check_scenes(train.ids, val.ids, pattern)
    (known, scenes), (asked, truth) = (_scenes(split.ids, pattern) for split in (train, val))
    layer = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    layer.fit(train.probabilities[known].numpy(), scenes)
    return float(layer.score(val.probabilities[asked].numpy(), truth))


def check_scenes(train_ids: Sequence[str], val_ids: Sequence[str], pattern: str) -> None:
    """Raise PreflightError where `pattern` finds fewer than two scenes to tell apart, or nothing to score."""
    (_, scenes), (_, truth) = (_scenes(ids, pattern) for ids in (train_ids, val_ids))
    if len(set(scenes)) < 2 or not truth:
        raise PreflightError(
            f"ablate.scene_pattern={pattern} finds {len(set(scenes))} scenes in the ids of {len(train_ids)} "
            f"training images, such as {train_ids[0]}, and one in {len(truth)} of {len(val_ids)} validation "
            "images; it takes two scenes and a validation image"
        )


@dataclass(frozen=True)
class _Counted:
    """The labelled images of a split: the share of each word (N, num_words), presence (N, num_classes)."""

    ids: tuple[str, ...]
    shares: Array
    present: torch.Tensor


@dataclass(frozen=True)
class _Taken:
    """Descriptors (N, D) of several images; `places` (N, 3) are the image's number, row and column."""

    descriptors: Array
    places: NDArray[np.int64]


def _patches(image: Pixels) -> Described:
    """Squares of PATCH_PX, in 0..1: (N, 3 * PATCH_PX ** 2); a smaller image is continued as its edge."""
    lacking = [(0, max(0, PATCH_PX - side)) for side in image.shape[:2]]
    image = np.pad(image, (*lacking, (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(image, (PATCH_PX, PATCH_PX), axis=(0, 1))
    windows = windows[::PATCH_STEP_PX, ::PATCH_STEP_PX]
    rows, columns = np.indices(windows.shape[:2]) * PATCH_STEP_PX + PATCH_PX // 2
    return Described(
        windows.reshape(rows.size, -1).astype(np.float32) / np.float32(255),
        np.stack([rows.ravel(), columns.ravel()], axis=1),
    )


def _features(backbone: torch.nn.Module, device: str) -> Describe:
    backbone = backbone.eval().to(device)

    def describe(image: Pixels) -> Described:
        with torch.inference_mode():
            features = backbone(to_image_tensor(image)[None].to(device))[-1][0]
        _, height, width = features.shape
        steps = np.array([image.shape[0] / height, image.shape[1] / width])
        centres = (np.indices((height, width)).reshape(2, -1).T + 0.5) * steps
        return Described(features.flatten(1).T.float().cpu().numpy(), centres.astype(np.int64))

    return describe


def _labelled(split: StoreSplit, numbers: Iterable[int]) -> Iterator[tuple[int, Sample]]:
    for number in numbers:
        sample = split[number]
        if (sample.mask != IGNORE).any():
            yield number, sample


def _sample(
    split: StoreSplit, numbers: Sequence[int], describe: Describe, rng: np.random.Generator
) -> _Taken:
    descriptors, places = [], []
    for number, sample in _labelled(split, numbers):
        described = describe(sample.image)
        count, length = described.descriptors.shape
        each = max(1, min(MAX_DESCRIPTORS, MAX_BYTES // (4 * length)) // len(numbers))
        chosen = rng.choice(count, min(each, count), replace=False)
        descriptors.append(described.descriptors[chosen])
        centres = described.centres[chosen]
        places.append(np.column_stack([np.full(len(centres), number), centres]))
    if not descriptors:
        raise TrainingError(f"none of {len(numbers)} training images has a labelled pixel to learn from")
    return _Taken(np.concatenate(descriptors), np.concatenate(places))


def _count(
    split: StoreSplit,
    numbers: Iterable[int],
    num_classes: int,
    num_words: int,
    find: Callable[[Pixels], NDArray[np.int64]],
) -> _Counted:
    """`find` gives the descriptors of an image (H, W, 3) their words (N,)."""
    ids, shares, present = [], [], []
    for _, sample in _labelled(split, numbers):
        words = find(sample.image)
        ids.append(sample.id)
        shares.append(np.bincount(words, minlength=num_words) / len(words))
        present.append(class_presence(torch.tensor(sample.mask)[None], num_classes))
    return _Counted(tuple(ids), np.stack(shares).astype(np.float32), torch.cat(present).bool())


def _presence(train: _Counted, val: _Counted) -> tuple[ImagePresence, ImagePresence]:
    """One logistic regression for each class; one that all training images have, or none, keeps its share.

    It takes the square roots of the shares, whose distance is Hellinger's.
    """
    splits = (train, val)
    probabilities = [np.zeros(split.present.shape) for split in splits]
    for index, truth in enumerate(train.present.T.numpy()):
        if truth.all() or not truth.any():
            for columns in probabilities:
                columns[:, index] = truth.mean()
            continue
        layer = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        layer.fit(np.sqrt(train.shares), truth)
        for columns, split in zip(probabilities, splits, strict=True):
            columns[:, index] = layer.predict_proba(np.sqrt(split.shares))[:, 1]
    first, second = (
        ImagePresence(split.ids, torch.from_numpy(found), split.present)
        for split, found in zip(splits, probabilities, strict=True)
    )
    return first, second


def _scenes(ids: Sequence[str], pattern: str) -> tuple[list[int], list[str]]:
    """The numbers of the images that have a scene, and their scenes."""
    matches = [(number, re.search(pattern, name)) for number, name in enumerate(ids)]
    named = [(number, match.group(1)) for number, match in matches if match and match.group(1)]
    return [number for number, _ in named], [scene for _, scene in named]


def _draw_words(
    split: StoreSplit, taken: _Taken, words: Array, share: Array, size: int, target: Path
) -> None:
    """A row for each of the words used most: the squares of `size` px nearest to it, each of another image.

    words (num_words, D) lie where the descriptors of `taken` do.
    """
    shown = np.argsort(-share)[:SHOWN_WORDS]
    rows = []
    for word in shown:
        nearest: dict[int, Pixels] = {}
        distances = np.linalg.norm(taken.descriptors - words[word], axis=1)
        for place in taken.places[np.argsort(distances)]:
            number, row, column = place.tolist()
            if number not in nearest:
                nearest[number] = _crop(split[number].image, row, column, size)
            if len(nearest) == SHOWN_PATCHES:
                break
        blank = np.full((size + 2, size + 2, 3), 255, np.uint8)
        rows.append([*nearest.values(), *[blank] * (SHOWN_PATCHES - len(nearest))])
    sheet = draw_sheet(
        rows,
        ["nearest", *[""] * (SHOWN_PATCHES - 1)],
        [f"word {rank}: {format_share(float(share[word]))}" for rank, word in enumerate(shown, 1)],
        min_cell_px=72,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with beside(target) as scratch:
        sheet.save(scratch, "PNG")


def _crop(image: Pixels, row: int, column: int, size: int) -> Pixels:
    """The square of `size` px about a place, in a grey frame; beyond the image it is as its edge."""
    half = size // 2
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="edge")
    square = padded[row : row + size, column : column + size]
    return np.pad(square, ((1, 1), (1, 1), (0, 0)), constant_values=FRAME)  # a patch may be as white as paper
