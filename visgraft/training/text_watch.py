"""What is odd about the texts that a run reads anyway: said once, while it trains, as `visgraft data check` would.

In:  the texts that plans are made of, as they are read. Out: lines about them.

    watch = TextWatch(processor, settings=recipe.data)
    watch.see(sample, text, part="train")
    for line in watch.new_lines(): progress.say(line)

Nothing is read for it. Texts come in the order of training, so that the first 65,536 stand for all; of several
processes each sees its own. What a run finds is kept with the counts of its texts, for the next run does not read them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from visgraft.config import DataSettings
from visgraft.data.findings import find
from visgraft.data.quarantine import Part
from visgraft.data.records import Looker, mix, quick_key
from visgraft.data.source_report import SourceReport
from visgraft.data.sources import name_sources
from visgraft.processor import Processor
from visgraft.training.text_counts import CountedText

ENOUGH_TEXTS = 4096  # for a first word
MOST_TEXTS = 65_536  # of a part, as looking at one takes about 20 microseconds
# What texts alone tell of a part of the data; the rest needs images, or all of the data.
TOLD = ("answer_in_prompt", "duplicated_rows", "control_tokens", "replaced_characters", "misread_characters",
        "cut_texts", "same_answers", "words_alone", "overlapping_texts")  # fmt: skip


class TextWatch:
    """Look at texts on their way; tell each finding once."""

    def __init__(self, processor: Processor, *, settings: DataSettings) -> None:
        self._looker = Looker(processor, settings=settings, with_images=False)
        self._settings = settings
        self._reports: dict[tuple[Part, str], SourceReport] = {}
        self._told: dict[str, str] = {}
        named = zip(name_sources(settings.train), settings.train, strict=True)
        self._balanced = {name for name, entry in named if entry.balance is not None}
        self._closed: set[Part] = set()
        self._seen: Counter[Part] = Counter()

    @property
    def num_texts(self) -> int:
        """The texts looked at so far."""
        return self._seen.total()

    def see(self, text: CountedText, *, part: Part) -> None:
        """Look at what was read of a sample."""
        sample = text.sample
        if sample is None or text.unread is not None or part in self._closed or self._seen[part] >= MOST_TEXTS:
            return
        source = sample.source or ""
        if (part, source) not in self._reports:
            is_balanced = part == "train" and source in self._balanced
            self._reports[part, source] = SourceReport(source, part, is_balanced=is_balanced)
        report = self._reports[part, source]
        name = sample.id or ""
        about = mix(*map(quick_key, sample.images)) if sample.images else 0
        report.samples += 1
        good = [d for d, outcome in zip(sample.dialogs, text.outcomes, strict=True) if not isinstance(outcome, str)]
        report.texts += len(good)
        for dialog in good:
            report.add_text(self._looker.look_at_text(dialog), about=about, where=lambda: name)
        report.truncated += sum(dialog.truncated for dialog in text.dialogs)
        self._seen[part] += len(good)

    def close(self, part: Part) -> None:
        """Look at no more of a part, as it has been read once."""
        self._closed.add(part)

    def know(self, lines: Mapping[str, str]) -> list[str]:
        """Take over what an earlier run found, and say it."""
        new = {key: line for key, line in lines.items() if key not in self._told}
        self._told |= new
        return list(new.values())

    def new_lines(self) -> list[str]:
        """Say what was found and not yet said."""
        return self.know(self.lines())

    def lines(self) -> dict[str, str]:
        """Say all that is known, by a name of each finding."""
        found = find(list(self._reports.values()), settings=self._settings)
        told = [finding for finding in found if finding.name in TOLD and finding.level != "note"]
        lines = {f"{each.name} of {each.where}": f"data: {each.where}: {each.text} {each.advice}" for each in told}
        return {**lines, **self._told}
