"""METEOR 1.5, through the Java program that pycocoevalcap brings.

In: captions and, for each, the captions that people wrote. Out: `Scores`, in 0..1.
Usage: `require_meteor(); meteor(["a cat on a couch"], references=[["a cat on a sofa"]])["meteor"].value`
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visgraft.errors import ConfigError, MissingAssetError
from visgraft.metrics.ptb_tokens import coco_tokens
from visgraft.metrics.scores import Scores, check_pairs, scores_of

# of the program for English
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MODULE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # equal words, stems, synonyms, paraphrases
_NUM_STATISTICS = 23


def require_meteor() -> None:
    """Raise MissingAssetError, with the line to install, where the package or Java is missing."""
    if _program() is None:
        raise MissingAssetError(
            "metrics: meteor is scored by a program of the package pycocoevalcap, which is not installed; "
            "pip install 'visgraft[coco]', or leave meteor out"
        )
    if shutil.which("java") is None:
        raise MissingAssetError(
            "metrics: meteor is scored by a Java program, and there is no java on the path; install Java 8 or newer "
            "(apt install default-jre-headless), or leave meteor out"
        )


def meteor(
    answers: Sequence[str], *, references: Sequence[Sequence[str]], language: str | None = None
) -> dict[str, Scores]:
    """Score English captions by METEOR 1.5, in 0..1 (Denkowski & Lavie 2014; pycocoevalcap's `Meteor`).

    The program finds the best reference and the matches of each caption; they are added up over the set and combined
    here, by the program's own formula. Takes some seconds to start. Raises ConfigError for any language but English,
    MissingAssetError where the program or Java is missing or fails.
    """
    check_pairs(answers, references)
    if language is not None:
        raise ConfigError(f"language: got {language!r}, and meteor knows English only; leave meteor out")
    require_meteor()
    return {"meteor": scores_of(np.stack(list(_statistics(answers, references))), combine=_combine)}


def _program() -> Path | None:
    """Find the program without importing the package."""
    package = find_spec("pycocoevalcap")
    folders = [] if package is None else [Path(folder) for folder in package.submodule_search_locations or ()]
    return next((jar for folder in folders for jar in folder.glob("meteor/meteor-*.jar")), None)


def _statistics(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Iterator[NDArray[np.float64]]:
    """Ask the program for what it counts of each caption: [23]."""
    program = _program()
    assert program is not None
    command = ["java", "-Xmx2G", "-jar", program.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=program.parent, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8") as java:
        assert java.stdin is not None and java.stdout is not None and java.stderr is not None
        try:
            for answer, accepted in zip(answers, references, strict=True):
                texts = [" ".join(coco_tokens(text)) for text in (*accepted, answer)]
                java.stdin.write(" ||| ".join(["SCORE", *texts]) + "\n")
                java.stdin.flush()
                numbers = java.stdout.readline().split()
                if len(numbers) != _NUM_STATISTICS:
                    raise BrokenPipeError
                counts = np.array([float(number) for number in numbers])
                if counts[20] == 1 and counts[21] == counts[0] and counts[22] == counts[1]:
                    counts[20] = 0  # a caption equal to its reference: the program adds no fragment for it
                yield counts
        except BrokenPipeError:
            java.kill()
            said = java.stderr.read().strip().splitlines() or ["nothing"]
            raise MissingAssetError(
                f"metrics: the program {program} stopped and said: {said[-1]}; see that Java runs it"
            ) from None


def _combine(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Combine [..., 23] counts: the weighted harmonic mean of precision and recall, less a penalty for fragments.

    In their order: words of the caption and the reference, function words of each; for each module the matched content
    words of both and the matched function words of both; fragments; matched words of both.
    """
    ours, theirs, our_function, their_function = np.moveaxis(sums[..., :4], -1, 0)
    matches = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    matched = _DELTA * matches[..., :2] + (1 - _DELTA) * matches[..., 2:]
    our_matches, their_matches = np.moveaxis((matched * _MODULE_WEIGHTS[:, None]).sum(axis=-2), -1, 0)
    fragments, our_words, their_words = np.moveaxis(sums[..., 20:], -1, 0)
    our_length = _DELTA * (ours - our_function) + (1 - _DELTA) * our_function
    their_length = _DELTA * (theirs - their_function) + (1 - _DELTA) * their_function
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = our_matches / our_length, their_matches / their_length
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragmentation = fragments / ((our_words + their_words) / 2)
        scores = mean * (1 - _GAMMA * fragmentation**_BETA)
    return np.nan_to_num(scores, nan=0.0)
