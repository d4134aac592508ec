"""A run in the making: all that its steps, validations and checkpoints work on.

In: what setup.py built. Out: one object that the other files of this folder take.
Usage: `record = validate(session)`
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from visgraft.config import Recipe
from visgraft.data.batch import Batch
from visgraft.data.sample import Sample
from visgraft.data.sources import Part, Quarantine
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.runs import Run
from visgraft.training.energy import EnergyMeter
from visgraft.training.interrupt import Signals, StopAsked
from visgraft.training.plan import Planner
from visgraft.training.progress import TrainProgress
from visgraft.training.state import RandomState, TrainState, get_random_state
from visgraft.training.steps import LoaderSettings, Step
from visgraft.training.text_watch import TextWatch
from visgraft.training.trackers import Trackers


@dataclass
class Session:
    """A run in the making.

    Attributes:
        recipe: as it was given.
        run: the folder.
        accelerator: device, processes, autocast.
        model: the model itself.
        network: what is called to train: the model, or the model inside DDP.
        processor: the model's own.
        optimizer: accelerate's wrapper of AdamW.
        trained: full name -> what trains.
        planner: the steps over the training data.
        validation: the steps over the validation data, if there are any.
        loader: how this process makes batches.
        quarantines: the bad samples so far, of train and of validation.
        filler: a small batch of real samples, run at weight 0 where a process has nothing to do.
        sample_prompts: fixed questions that are answered on the way, for the user to read.
        questions: fixed validation questions that are answered and compared whole.
        scored: fixed validation questions that are answered for `train.scores`.
        watch: is shown the texts that are read, and says what is odd about them.
        state: how far the run is.
        progress: what the user sees.
        counted_until: the moment (`time.monotonic`) up to which `state.wall_seconds` counts.
        energy: what counts joules up to about that moment.
        trackers: where the metrics are sent too; None without `train.report_to`, and in every process but the first.
        signals: what came of Ctrl-C and its like.
        random_state: of this process, as the last finished step left it.
        is_changing: is held while weights, moments and state go from one step to the next, and while they are saved.
        saved_at: the moment (`time.monotonic`) of the last checkpoint, or of the beginning.
        seconds_to_save: how long the last checkpoint took.
    """

    recipe: Recipe
    run: Run
    accelerator: Accelerator
    model: VisionLanguageModel
    network: nn.Module
    processor: Processor
    optimizer: Any
    trained: dict[str, nn.Parameter]
    planner: Planner
    validation: Planner | None
    loader: LoaderSettings
    quarantines: Mapping[Part, Quarantine]
    filler: Batch
    sample_prompts: Sequence[Sample]
    questions: Sequence[Sample]
    scored: Sequence[Sample]
    watch: TextWatch
    state: TrainState
    progress: TrainProgress
    counted_until: float
    energy: EnergyMeter
    trackers: Trackers | None
    signals: Signals = field(default_factory=Signals)
    random_state: RandomState = field(default_factory=dict)
    is_changing: threading.RLock = field(default_factory=threading.RLock)
    saved_at: float = field(default_factory=time.monotonic)
    seconds_to_save: float = 0.0

    def __post_init__(self) -> None:
        """Remember where the random generators stand before the first step."""
        self.remember_random_state()

    def remember_random_state(self) -> None:
        """Take note that a step is finished here: what is saved from now on goes on with these random numbers."""
        self.random_state = get_random_state(self.accelerator.device)

    def record(self, values: Mapping[str, Any]) -> None:
        """Write a record of the metrics down, and send it to the trackers; the first process does so."""
        self.run.append("metrics", values)
        if self.trackers is not None:
            self.trackers.log(values)

    def close(self) -> None:
        """Let the trackers write what they have yet to write."""
        if self.trackers is not None:
            self.trackers.finish()

    @property
    def fraction_done(self) -> float:
        """The part of the run that is done, 0 to 1: of its epochs, or of its steps if those end first.

        Of streams, whose length is not known, it is of the steps alone.
        """
        settings = self.recipe.train
        epochs = self.planner.epochs_done(self.state.position)
        of_epochs = epochs / settings.epochs if self.planner.has_known_length else 0.0
        of_steps = self.state.step / settings.max_steps if settings.max_steps else 0.0
        return min(1.0, max(of_epochs, of_steps))

    @property
    def is_over(self) -> bool:
        """Whether the run has all its epochs, or all its steps, behind it."""
        epochs = self.planner.epochs_done(self.state.position)
        return self.fraction_done >= 1.0 or epochs >= self.recipe.train.epochs

    def count_texts(self, step: Step) -> dict[str, dict[str, float | None]]:
        """Add a step's texts to those of each source; say how many that makes, and how many epochs of the source."""
        texts, totals = self.state.texts, dict[str, int | None](self.planner.sources.num_texts)
        if not self.planner.has_known_length:
            totals = dict.fromkeys(totals)
        # Gathered texts keep the names of their sources, so one source alone gets all of them.
        alone = sum(step.num_texts.values()) if len(totals) == 1 else 0
        added = self.sum([alone or step.num_texts.get(name, 0) for name in totals])
        for name, number in zip(totals, added, strict=True):
            texts[name] = texts.get(name, 0) + int(number)
        return {name: {"texts": texts[name], "epochs": texts[name] / n if n else None} for name, n in totals.items()}

    def set_bad_samples_aside(self, step: Step, *, part: Part) -> None:
        """Put the bad samples of a step into quarantine, those of all processes.

        Raises:
            TooManyBadError: in every process, there are too many of them.
        """
        planner = self.planner if part == "train" else self.validation
        assert planner is not None
        self.quarantines[part].expect(planner.num_samples(step.plan.end))
        if any(self.sum([len(step.bad)])):
            for bad in gather_object(list(step.bad)):
                self.quarantines[part].add(bad)

    def tell_of_texts(self) -> None:
        """Say what is odd about the texts read so far and was not yet said; the first process does so."""
        if self.accelerator.is_main_process:
            for line in self.watch.new_lines():
                self.progress.say(line)

    def stop_if_asked(self) -> None:
        """Stop all processes if a signal came to any of them; all must call it.

        Raises:
            StopAsked: one did.
        """
        number = int(max(self.each([self.signals.number])))
        if number:
            raise StopAsked(number)

    def sum(self, values: Sequence[float]) -> list[Any]:
        """Add numbers up over all processes."""
        return self._gather(values).sum(0).tolist()

    def each(self, values: Sequence[float]) -> list[Any]:
        """List numbers of all processes, one process behind the other."""
        return self._gather(values).flatten().tolist()

    def _gather(self, values: Sequence[float]) -> Any:
        dtype = torch.float32 if self.accelerator.device.type == "mps" else torch.float64
        return self.accelerator.gather(torch.tensor([list(values)], dtype=dtype, device=self.accelerator.device))
