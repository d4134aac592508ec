"""The gradients of one step, in micro-batches that fit into memory.

In: a session and a step. Out: gradients in the parameters, and the losses of the step's targets. Where memory runs out
the gradients are zeroed, micro-batches are halved for the rest of the run, and the step is computed again: its loss and
its gradients are the same, however it is cut.

    done = add_gradients(session, step, steps)

No random number of the run is used up by a pass that does not count, neither by one that failed nor by the filler's: so
what a step draws depends on its samples and on how they are cut, and the run that is resumed draws the same.

Every process must cut a step again, or none. So with several processes, a size that was never tried is first run
without any exchange of gradients; the processes then exchange how it went, and their gradients in a pass of no weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visgraft.data.batch import Batch
from visgraft.errors import MaskSizeError, ModelError
from visgraft.model.memory import free_memory, is_out_of_memory
from visgraft.training.session import Session
from visgraft.training.sharding import is_sharded
from visgraft.training.state import get_random_state, set_random_state
from visgraft.training.steps import Step, Steps, cut_finer, num_groups, whole_samples

WHAT_TO_DO = (
    "Make a sample smaller (data.max_dialogs_per_prefix, data.max_text_tokens, model.image_size, "
    "model.projection.pool), set train.gradient_checkpointing: true, or train less of the model; "
    "`visgraft estimate RECIPE` says what takes how much"
)


@dataclass(frozen=True)
class Gradients:
    """What the backward passes of a step leave behind, besides the gradients.

    Attributes:
        step: as it was computed: cut again, if memory ran out. Its batches are on the device.
        losses: of the targets of each batch.
        total: supervised tokens of all processes.
    """

    step: Step
    losses: list[Tensor]
    total: int


def add_gradients(session: Session, step: Step, steps: Steps) -> Gradients:
    """Add up the gradients of a step, in micro-batches halved as often as memory asks for it, and later ones likewise.

    Raises:
        ModelError: one sample alone does not fit; or, where processes exchange more than gradients (FSDP, DeepSpeed),
            a micro-batch does not.
    """
    accelerator = session.accelerator
    while True:
        step = cut_finer(step, session.processor, settings=session.loader)
        moved = (batch.to(accelerator.device, non_blocking=True) for batch in step.batches)
        batches = tuple(session.processor.finish(batch) for batch in moved)
        step = replace(step, batches=batches)
        mine = [
            sum(batch.target.numel() for batch in batches),
            len(batches),
            max((batch.kind.numel() for batch in batches), default=0),
        ]
        counts = accelerator.gather(torch.tensor([mine], device=accelerator.device))
        total, num_passes, largest = int(counts[:, 0].sum()), int(counts[:, 1].max()), int(counts[:, 2].max())
        if total == 0:
            return Gradients(step, [], 0)
        can_go_back = not is_sharded(session.model)  # else the others wait for its weights in the middle of it
        is_trial = accelerator.num_processes > 1 and can_go_back and largest > session.state.proven_positions
        losses: list[Tensor] = []
        limit = math.inf
        before = get_random_state(accelerator.device)
        try:
            passes = len(batches) if is_trial else num_passes
            backward(session, batches, losses, total=total, num_passes=passes, exchanges=not is_trial)
        except (RuntimeError, MaskSizeError) as error:
            if not is_out_of_memory(error):
                raise
            limit = _next_limit(batches, len(losses))
            if limit == 0 or not (is_trial or accelerator.num_processes == 1):
                # Others that wait for this process's gradients end with it.
                raise ModelError(_what_did_not_fit(batches, len(losses), limit)) from error
        # Behind the handler, where nothing holds the activations of what failed.
        if is_trial:
            own = torch.tensor([limit], dtype=torch.float32, device=accelerator.device)
            limit = float(accelerator.gather(own).min())
        if limit == math.inf:
            if is_trial:
                backward(session, (), [], total=total, num_passes=1, exchanges=True)
            session.state.proven_positions = max(session.state.proven_positions, largest)
            return Gradients(step, losses, total)
        set_random_state(before, device=accelerator.device)
        _halve(session, steps, int(limit), why=_what_did_not_fit(batches, len(losses), limit))


def backward(
    session: Session, batches: Sequence[Batch], losses: list[Tensor], *, total: int, num_passes: int, exchanges: bool
) -> None:
    """Add up the gradients of this process's batches; append the losses of their targets as they come.

    Each of the `total` supervised tokens weighs the same, whichever process and micro-batch it is in. DDP averages over
    processes, hence the factor. All processes make `num_passes`; what is missing to it is the filler at weight 0, which
    leaves the random state alone.
    Processes exchange their gradients in the last pass; or not at all, and then this process waits for no other. Those
    that share the weights out do so in every pass, or each would hold the gradients of all weights until the last.
    """
    accelerator = session.accelerator
    network = session.network if exchanges else session.model
    for number in range(num_passes):
        is_mine, is_last = number < len(batches), number == num_passes - 1
        is_kept = exchanges and not is_last and not is_sharded(session.model)
        with (
            accelerator.no_sync(network) if is_kept else nullcontext(),
            nullcontext() if is_mine else undrawn(accelerator.device),
        ):
            out = network(batch=batches[number] if is_mine else session.filler)
            accelerator.backward(out.loss_sum * (accelerator.num_processes / total if is_mine else 0.0))
        if is_mine:
            losses.append(out.target_losses)


@contextmanager
def undrawn(device: torch.device) -> Iterator[None]:
    """Put the random state back to where it was before."""
    before = get_random_state(device)
    yield
    set_random_state(before, device=device)


@torch.no_grad()
def samples_not_finite(session: Session, done: Gradients) -> list[str]:
    """Name the samples whose losses are no finite numbers.

    What is no number spreads over the whole row, masked or not (0 times NaN is NaN), so each suspect is tried alone.
    """
    accelerator, step = session.accelerator, done.step
    suspects: list[str] = []
    guilty: list[str] = []
    for batch, samples, losses in zip(step.batches, step.samples, done.losses, strict=True):
        whole = list(whole_samples(batch, samples))
        for index in batch.target_sample[~losses.isfinite()].unique().tolist():
            suspects.append(batch.sample_ids[index])
            if not is_sharded(session.model):
                alone = session.processor.collate([whole[index]], layout=batch.layout).to(accelerator.device)
                with accelerator.autocast(), undrawn(accelerator.device):
                    loss = session.model.loss(alone).loss
                guilty += [] if loss is None or loss.isfinite() else [batch.sample_ids[index]]
    return guilty or suspects


def _next_limit(batches: Sequence[Batch], failed: int) -> float:
    """Give the limit of a micro-batch, in positions, after one that failed; 0 if it was a sample alone."""
    return 0 if failed == len(batches) or num_groups(batches[failed]) == 1 else batches[failed].kind.numel() // 2


def _what_did_not_fit(batches: Sequence[Batch], failed: int, limit: float) -> str:
    if limit == 0:
        named = f"sample {batches[failed].sample_ids[0]} alone" if failed < len(batches) else "the smallest batch"
        return f"memory does not suffice for {named}. {WHAT_TO_DO}"
    if failed == len(batches):
        return f"another process ran out of memory: train.micro_batch_positions: {limit:g} halves its micro-batch"
    return (
        f"memory does not suffice for a micro-batch of {batches[failed].kind.numel()} positions: "
        f"train.micro_batch_positions: {limit:g} halves it"
    )


def _halve(session: Session, steps: Steps, limit: int, *, why: str) -> None:
    """Zero the gradients and halve the micro-batches for the rest of the run, resumed or not."""
    session.optimizer.zero_grad()
    session.state.micro_batch_positions = limit
    session.loader = steps.settings = replace(session.loader, micro_batch_positions=limit)
    session.progress.say(f"{why}; this is done from here on, and the step is computed again")
    free_memory(session.accelerator.device)
