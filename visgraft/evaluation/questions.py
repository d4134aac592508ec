"""The questions of a data set: what is asked about which image, and what counts as an answer.

In: opened sources. Out: `QuestionSet`: plain texts of every question, kept in memory, and its sample with images when
it is to be asked. Turns that ask the same of the same image (five captions) are one question with all their answers.

    questions = questions_of(open_sources(recipe.data.test, key="data.test", settings=recipe.data), name="test")
    sample = questions.sample(questions.all[0])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from random import Random

from visgraft.data.grouping import sample_key
from visgraft.data.quarantine import budget_of
from visgraft.data.sample import ImageRef, Sample, Turn, references_of
from visgraft.data.sources import BadSample, Sources
from visgraft.errors import BadSampleError, DataError


@dataclass(frozen=True, slots=True)
class Question:
    """One thing that is asked about one image or group of images.

    Attributes:
        id: unique in its set.
        image: what names its images: the file, else a sum of what they hold; empty where there is none.
        prompt: what is asked last.
        references: the accepted answers.
        kind: of question, where the data name one; else its source, where there are several.
        sample: number of its sample in the sources.
        dialog: number of its dialog there, the first of those that ask the same.
        turn: number of its turn in the dialog; what comes before is its history.
        candidates: what `choice_likelihood` chooses among, where the data list them.
    """

    id: str
    image: str
    prompt: str
    references: tuple[str, ...]
    kind: str
    sample: int
    dialog: int
    turn: int
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuestionSet:
    """All questions of a data set, those about one image next to each other.

    Attributes:
        name: of the set.
        all: the questions.
        sources: where their samples are.
        fingerprint: differs wherever the data differ.
        frame: what stands around each prompt, with `{prompt}` where it stands.
        bad: samples that cannot be read.
    """

    name: str
    all: Sequence[Question]
    sources: Sources
    fingerprint: str
    frame: str = "{prompt}"
    bad: Sequence[BadSample] = ()

    def sample(self, question: Question, *, images_of: Question | None = None) -> Sample:
        """Give what is asked, the answer left out; `images_of` another question shows that one's images.

        Raises:
            BadSampleError: it could be read before, and cannot any more.
        """
        sample = self.sources[question.sample]
        dialog = sample.dialogs[question.dialog][: question.turn + 1]
        last = replace(dialog[-1], answer="", references=())
        if self.frame != "{prompt}":
            last = Turn(self.frame.replace("{prompt}", last.request), "")
        images: Sequence[ImageRef] = sample.images
        if images_of is not None:
            images = self.sources[images_of.sample].images
        return replace(sample, images=images, dialogs=[[*dialog[:-1], last]])

    def images(self, question: Question) -> Sequence[ImageRef]:
        """Give a question's images."""
        return self.sources[question.sample].images

    def limited(self, limit: int | None, *, seed: int = 0) -> QuestionSet:
        """Take so many questions about images drawn at random, the same ones every time; a larger limit adds to them.

        An image comes with all its questions, the last one with as many as there is room for.
        """
        if limit is None or limit >= len(self.all):
            return self
        by_image: dict[str, list[int]] = {}
        for place, question in enumerate(self.all):
            by_image.setdefault(question.image or f"id {question.id}", []).append(place)
        names = list(by_image)
        Random(seed).shuffle(names)
        places = [place for name in names for place in by_image[name]][:limit]
        return replace(self, all=[self.all[place] for place in sorted(places)])


def questions_of(
    sources: Sources,
    *,
    name: str,
    candidates: Sequence[str] = (),
    frame: str = "{prompt}",
    advance: Callable[[int], None] | None = None,
) -> QuestionSet:
    """Read the texts of sources once and list what they ask.

    Args:
        sources: opened; each sample is read, its images are not.
        name: of the set.
        candidates: what may be chosen among, the same for every question.
        frame: what stands around each prompt.
        advance: is told how many samples are read.

    Raises:
        DataError: there is no question, or more samples are bad than `data.max_bad_fraction` allows.
    """
    questions: list[Question] = []
    bad: list[BadSample] = []
    names: Counter[str] = Counter()
    several = len(sources.opened) > 1
    for number in range(len(sources)):
        if advance is not None:
            advance(1)
        try:
            sample = sources[number]
            image = image_name(sample)
        except BadSampleError as error:
            bad.append(sources.bad_sample(number, str(error)))
            continue
        merged: dict[tuple[object, ...], Question] = {}
        for place, dialog in enumerate(sample.dialogs):
            for turn, said in enumerate(dialog):
                key = (tuple((before.request, before.answer) for before in dialog[:turn]), said.request)
                accepted = references_of(said)
                if key in merged:
                    merged[key] = replace(merged[key], references=(*merged[key].references, *accepted))
                    continue
                merged[key] = Question(
                    id=f"{sample.id}#{len(merged)}",
                    image=image,
                    prompt=said.request,
                    references=accepted,
                    kind=said.kind or (sample.source or "" if several else ""),
                    sample=number,
                    dialog=place,
                    turn=turn,
                    candidates=tuple(candidates),
                )
        alone = len(merged) == 1
        for each in merged.values():
            name_of_it = str(sample.id) if alone else each.id
            names[name_of_it] += 1
            again = names[name_of_it]
            questions.append(replace(each, id=name_of_it if again == 1 else f"{name_of_it} ({again})"))
    check_bad(bad, num_samples=len(sources), max_bad_fraction=sources.settings.max_bad_fraction, name=name)
    if not questions:
        raise DataError(f"{name}: got {len(sources)} samples and none of them asks anything; name another split")
    return QuestionSet(name, questions, sources, data_fingerprint(sources, questions), frame, bad)


def image_name(sample: Sample) -> str:
    """Name the images of a sample: by their files, else by a sum of what they hold."""
    if sample.images and all(isinstance(image, Path) for image in sample.images):
        return " ".join(map(str, sample.images))
    key = sample_key(sample, by_content=False)
    return "" if key is None else f"image {key.hex()}"


def data_fingerprint(sources: Sources, questions: Sequence[Question]) -> str:
    """Sum up what is asked about which files: another text wherever an image file or a question changed."""
    described = [entry.described() for entry in sources.opened]
    digest = blake2b(repr([found.get("images") for found in described]).encode(), digest_size=12)
    for question in questions:
        digest.update(repr((question.id, question.image, question.prompt)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def check_bad(bad: Sequence[BadSample], *, num_samples: int, max_bad_fraction: float, name: str) -> None:
    """Refuse data of which too much cannot be used.

    Raises:
        DataError: with the first that is bad, and why.
    """
    allowed = budget_of(num_samples, max_bad_fraction=max_bad_fraction)
    if len(bad) > allowed:
        first = bad[0]
        raise DataError(
            f"{name}: {len(bad):,} of {num_samples:,} samples are bad, {allowed:,} are allowed (data.max_bad_fraction: "
            f"{max_bad_fraction:g}); the first: {first.where}: {first.reason}. Mend them, or allow more"
        )
