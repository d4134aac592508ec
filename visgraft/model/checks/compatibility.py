"""How a language model can be joined exactly, found by trying, not by a list of names.

In: a language model. Out: its `AttentionSpec`, or an `UnsupportedModelError` that names the model and the reason. A
tiny random model of the same class and configuration is asked: does it compute without an image what the bare LM does;
does anything flow past a mask that hides everything? If nothing does: does a change at one position move exactly the
positions that the mask lets see it, and do two texts behind one prefix compute what each computes alone? Then the mask
alone is enough. If something does (recurrent, linear and convolutional layers), or a text depends on its place in the
row: is each text right in a row of its own, whatever pads and rows are beside it; what does it read rightly behind a
cache; and do texts that read on from copies of an image's states give the loss and the gradients of rows of their own?
A model whose class cannot be made tiny is tried itself, without gradients.
(Later, `supervised_losses` refuses what makes its logits elsewhere than in its output embeddings.)

    attention_spec = check_language(language)
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from visgraft.errors import UnsupportedModelError
from visgraft.model.activation_checkpointing import checkpoint_activations
from visgraft.model.checks.tiny_twin import FAILURES, MAX_TINY, TEXT_ONLY, get_setting, tiny_like
from visgraft.model.language import AttentionSpec, BehindCache, read_attention_spec
from visgraft.model.passes import losses_in_passes, read
from visgraft.model.precision import let_layer_norms_take_float32
from visgraft.model.sequence import (
    SegmentTable,
    append_segment,
    attention_mask,
    empty_table,
    image_then_text,
    shared_prefix,
)
from visgraft.model.state_cache import StateCache
from visgraft.segments import IMAGE, TEXT

NUM_IMAGE, TEXT_LENGTHS = 4, (3, 3)
_found: dict[str, dict[str, Any]] = {}  # by class and config: what trying added to what `read_attention_spec` says


def check_language(language: PreTrainedModel, *, causal_image: bool = False) -> AttentionSpec:
    """Find out how a language model reads images and texts rightly.

    Args:
        language: the causal LM.
        causal_image: image tokens will see only earlier image tokens.

    Raises:
        UnsupportedModelError: it does not follow the mask and the positions it is given, and is not right in rows of
            its own either; with the model type and what it did. Or what is saved of it could not be loaded again.
    """
    config = language.config.get_text_config(decoder=True)
    if type(language.config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(language.config, "auto_map", None):
        raise UnsupportedModelError(
            f"{config.model_type} ({type(language).__name__}) cannot be joined: what is saved of it could not be "
            f"loaded again, as AutoModelForCausalLM does not know {type(language.config).__name__}. Register it "
            "(AutoModelForCausalLM.register), or choose another causal LM"
        )
    name = f"{type(language).__module__}.{type(language).__qualname__}"
    key = json.dumps([name, config.to_dict(), config._attn_implementation, causal_image], sort_keys=True, default=str)
    if key not in _found:
        with torch.random.fork_rng(devices=[]):
            with torch.device("cpu"):
                tiny = tiny_like(language)
            subject = language if tiny is None else tiny
            if type(subject) is not type(language) and language.device.type != "meta":
                with torch.no_grad():  # only its text part was made tiny: the rest must not get in the way
                    _Trial(language, exact=False, causal_image=causal_image).compare_text_only()
            was_training = subject.training
            subject.eval()
            torch.manual_seed(0)
            _found[key] = _find(subject, exact=subject is not language, causal_image=causal_image)
        subject.train(was_training)
    found = dict(_found[key])
    if "position_offset" in found:  # the tiny one's pads have another id
        found["position_offset"] = config.pad_token_id + 1
    return replace(read_attention_spec(language), **found)


def _find(language: PreTrainedModel, *, exact: bool, causal_image: bool) -> dict[str, Any]:
    """Try a language model; give the fields of its `AttentionSpec` that trying finds."""
    trial = _Trial(language, exact=exact, causal_image=causal_image)
    with torch.no_grad():
        trial.compare_text_only()
        why_not = trial.why_no_mask_is_enough()
        if why_not is None:
            return {**trial.found, **trial.precision()}
        try:
            flows = trial.flows_past_masks()
        except FAILURES:
            trial.refuse(why_not)
        if not flows and not causal_image and "must see" in why_not:
            trial.refuse(f"{why_not}. With model.image_attention: causal it may be joined")
        image_is_causal = trial.check_rows(why_not, flows=flows)
        trial.spec = replace(trial.spec, sharing="rows", image_is_causal=image_is_causal)
        trial.spec = replace(trial.spec, behind_cache=trial.find_behind_cache())
        found = {**trial.found, **trial.precision()}
    found |= {"sharing": "rows", "image_is_causal": image_is_causal, "behind_cache": trial.spec.behind_cache}
    if exact or language.num_parameters() < MAX_TINY:
        trial.check_gradients(why_not)
    if exact and trial.spec.behind_cache == "several" and trial.states_equal_rows():
        found["sharing"] = "state"
    return found


class _Trial:
    """One language model being tried."""

    def __init__(self, language: PreTrainedModel, *, exact: bool, causal_image: bool) -> None:
        self.language = language
        self.exact = exact
        self.causal_image = causal_image
        self.found: dict[str, Any] = {}
        self.device = language.device
        self.embeddings: Any = language.get_input_embeddings()
        self.ids = torch.randint(3, 60, (1, TEXT_ONLY), device=self.device)
        self.name = language.config.get_text_config(decoder=True).model_type
        try:
            with torch.no_grad():  # before a quirk changes anything
                self.bare = language(input_ids=self.ids, use_cache=False).logits.float()
        except FAILURES as error:
            self.refuse(f"it does not run on token ids alone ({type(error).__name__}: {error})")
        self.spec = read_attention_spec(language)
        is_exact = exact or self.embeddings.weight.dtype == torch.float32
        self.tolerance = (1e-4 if is_exact else 3e-2) * float(self.bare.abs().max())

    def refuse(self, reason: str) -> NoReturn:
        """Say why it cannot be joined."""
        raise UnsupportedModelError(
            f"{self.name} cannot be joined exactly: {reason}. Choose another language model; most causal LMs work"
        )

    def inputs(self, num_rows: int, length: int) -> Tensor:
        """Give random token embeddings."""
        embeds: Tensor = self.embeddings(torch.randint(3, 60, (num_rows, length), device=self.device))
        return embeds

    def is_close(self, first: Tensor, second: Tensor) -> bool:
        """Say whether two tensors agree."""
        return bool(((first - second).abs().max() <= self.tolerance).item())

    def logits(self, inputs: Tensor, table: SegmentTable) -> Tensor:
        """Run whole rows as the mask has them."""
        arguments = self.spec.arguments(table, dtype=inputs.dtype, causal_image=self.causal_image)
        logits: Tensor = self.spec.call(self.language, inputs, arguments).logits
        return logits.float()

    # --- What every family must do

    def compare_text_only(self) -> None:
        """Choose how it takes its masks: so that without an image it computes what it computes alone."""
        none, real = torch.zeros(1, 0).bool().to(self.device), torch.ones_like(self.ids).bool()
        table = image_then_text(none, real)
        wrong = "without an image it does not compute what the bare model computes"
        for changed in self._ways():
            spec, self.spec = self.spec, replace(self.spec, **changed)
            try:
                if self.is_close(self.logits(self.embeddings(self.ids), table), self.bare):
                    self.found = changed
                    return
            except FAILURES as error:
                wrong = f"it cannot take embeddings and a mask of who sees whom ({type(error).__name__}: {error})"
            self.spec = spec
        self.refuse(wrong)

    def _ways(self) -> list[dict[str, Any]]:
        """List the ways in which a family may take masks and positions, the usual first."""
        padding = get_setting(self.language.config.get_text_config(decoder=True), "pad_token_id")
        ways: list[dict[str, Any]] = [{}]
        if self.spec.unmasked:
            ways.append({"one_mask": True})
        if self.spec.takes_positions and isinstance(padding, int):  # positions count on from that of pads
            ways.append({"position_offset": padding + 1})
        return [*ways, {"takes_mask": False}]

    def precision(self) -> dict[str, bool]:
        """Say whether its layers take float32 states between narrower weights under autocast, or narrow ones."""
        if not self.exact:
            return {}
        is_wide = self._runs_in_mixed_precision(torch.float32)
        is_mixed = is_wide or self._runs_in_mixed_precision(torch.bfloat16)
        return {"wide_states": is_wide, "mixed_precision": is_mixed}

    def _runs_in_mixed_precision(self, states: torch.dtype) -> bool:
        narrow = copy.deepcopy(self.language).bfloat16()
        none, real = torch.zeros(1, 0).bool(), torch.ones_like(self.ids).bool()
        inputs = self.embeddings(self.ids).to(states)
        arguments = self.spec.arguments(image_then_text(none, real), dtype=states)
        try:
            let_layer_norms_take_float32(narrow)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                self.spec.call(narrow, inputs, arguments)
        except FAILURES:
            return False
        return True

    # --- By the mask alone

    def flows_past_masks(self) -> bool:
        """Say whether a position moves others where a mask hides each from all others."""
        length = 6
        inputs, alone = self.inputs(1, length), torch.arange(length, device=self.device)[None]
        kind, sees = torch.full_like(alone, TEXT), torch.zeros(1, 1, 1, dtype=torch.bool, device=self.device)
        table = SegmentTable(kind, alone, torch.zeros_like(alone), alone, sees)
        other = inputs.clone()
        other[:, 0] += torch.randn_like(other[:, 0]) * inputs.std() * 3
        moved = (self.logits(other, table) - self.logits(inputs, table)).abs()[0, 1:]
        return bool(moved.max() > self.tolerance)

    def why_no_mask_is_enough(self) -> str | None:
        """Try whether the mask alone says who sees whom; None = it does."""
        try:
            if self.flows_past_masks():
                return "its state flows past any mask"
            table = shared_prefix(num_image_tokens=NUM_IMAGE, text_lengths=TEXT_LENGTHS).to(self.device)
            inputs = self.inputs(1, table.length)
            logits = self.logits(inputs, table)
            wrong = self._wrong_reader(inputs, table, logits, self.logits)
            if wrong is not None:
                return f"{wrong}: it ignores the mask"
            start = NUM_IMAGE
            for length in TEXT_LENGTHS:
                columns = [*range(NUM_IMAGE), *range(start, start + length)]
                own = shared_prefix(num_image_tokens=NUM_IMAGE, text_lengths=[length]).to(self.device)
                if not self.is_close(self.logits(inputs[:, columns], own), logits[:, columns]):
                    return "it takes positions from the row and not from position_ids, so texts cannot share a prefix"
                start += length
        except FAILURES as error:
            return f"it cannot take a mask of who sees whom ({type(error).__name__}: {error})"
        return None

    def _moved(self, inputs: Tensor, table: SegmentTable, run: Callable[[Tensor, SegmentTable], Tensor]) -> Tensor:
        """Change one position at a time along a random direction: how much each reader moves, [changed, reader]."""
        size = table.length
        direction = torch.randn(size, inputs.shape[-1], device=inputs.device, dtype=inputs.dtype)
        changed = inputs.repeat(size, 1, 1)
        index = torch.arange(size, device=inputs.device)
        changed[index, index] += direction * inputs.float().std().to(inputs.dtype) * 3
        return (run(changed, table.repeat(size)) - run(inputs, table)).abs().amax(-1)

    def _wrong_reader(
        self, inputs: Tensor, table: SegmentTable, logits: Tensor, run: Callable[[Tensor, SegmentTable], Tensor]
    ) -> str | None:
        """Compare who moves with who may and who must."""
        moved = self._moved(inputs, table, run)
        direct, reach = self._reachable(table)
        for source in range(table.length):
            for reader in range(table.length):
                if moved[source, reader] > self.tolerance and not reach[reader, source]:
                    return f"position {reader} must not see position {source} and does"
                if moved[source, reader] == 0 and direct[reader, source]:
                    return f"position {reader} must see position {source} and does not"
        return None

    def _reachable(self, table: SegmentTable) -> tuple[Tensor, Tensor]:
        """Give who sees whom in every layer kind at once, and through any number of layers."""
        masks = [
            attention_mask(table, causal_image=self.causal_image, window=reach.window, chunk=reach.chunk)[0, 0]
            for reach, _ in self.spec.reaches.values()
        ]
        direct, reach = torch.stack(masks).all(0), torch.stack(masks).any(0)
        for _ in range(table.length):
            reach = (reach.float() @ reach.float()) > 0
        return direct, reach

    # --- In rows of their own

    def rows(self, inputs: Tensor, table: SegmentTable) -> Tensor:
        """Run rows of one image and one text each, as training and generation without a cache do."""
        try:
            logits, _ = read(self.language, self.spec, inputs, table, causal_image=self.causal_image)
        except FAILURES as error:
            self.refuse(f"it cannot read a row of one image and one text ({type(error).__name__}: {error})")
        return logits.float()

    def check_rows(self, why_not: str, *, flows: bool) -> Literal["nothing", "some", "all"]:
        """Try whether a row of one image and one text is right; say which layers read images from left to right."""
        length = NUM_IMAGE + TEXT_LENGTHS[0]
        table = shared_prefix(num_image_tokens=NUM_IMAGE, text_lengths=TEXT_LENGTHS[:1]).to(self.device)
        inputs = self.inputs(1, length)
        moved = self._moved(inputs, table, self.rows)
        direct, _ = self._reachable(table)
        sees_ahead = False
        for source in range(length):
            for reader in range(length):
                inside_image = max(source, reader) < NUM_IMAGE
                if source > reader and moved[source, reader] > self.tolerance:
                    if not inside_image or self.causal_image:
                        self.refuse(f"{why_not}, and in a row position {reader} sees the later position {source}")
                    sees_ahead = True
                if source <= reader and direct[reader, source] and moved[source, reader] == 0:
                    self.refuse(f"{why_not}, and in a row position {reader} does not see position {source}")
        # Pads stand behind a row; what is real in it computes what it computes alone.
        padded = torch.cat([inputs, self.inputs(1, 3)], 1).repeat(2, 1, 1)
        padded[1] = self.inputs(1, length + 3)[0]
        image = torch.ones(2, NUM_IMAGE, dtype=torch.bool, device=self.device)
        text = torch.ones(2, TEXT_LENGTHS[0] + 3, dtype=torch.bool, device=self.device)
        text[0, TEXT_LENGTHS[0] :] = False
        together = self.logits(padded, image_then_text(image, text))[0, :length]
        if not self.is_close(together, self.rows(inputs, table)[0]):
            self.refuse(f"{why_not}, and pads behind a row or rows beside it change what is in it")
        if self.causal_image or not flows:
            return "nothing"
        return "some" if sees_ahead else "all"

    # --- Behind a cache

    def find_behind_cache(self) -> BehindCache:
        """Try what it reads rightly behind what a cache holds: rows of unlike length, tokens alone or together."""
        num_text, num_rows = 5, 2
        real = torch.ones(num_rows, NUM_IMAGE, dtype=torch.bool, device=self.device)
        real[1, 0] = False  # the second image is shorter, by a pad in front
        inputs = self.inputs(num_rows, NUM_IMAGE + num_text)
        text = torch.ones(num_rows, num_text, dtype=torch.bool, device=self.device)
        image_table = append_segment(self._empty(num_rows), real, kind=IMAGE)
        whole, _ = read(
            self.language,
            self.spec,
            inputs,
            append_segment(image_table, text, kind=TEXT),
            causal_image=self.causal_image,
        )
        # A single token takes another way through the layers than several do.
        ways: tuple[tuple[BehindCache, tuple[int, ...]], ...] = (("several", (2, 1, 2)), ("single", (1,) * num_text))
        for behind_cache, steps in ways:
            spec = replace(self.spec, behind_cache=behind_cache)
            with contextlib.suppress(*FAILURES):
                cache = StateCache()
                read(
                    self.language, spec, inputs[:, :NUM_IMAGE], image_table, cache=cache, causal_image=self.causal_image
                )
                parts = []
                for step in steps:
                    start = cache.num_positions
                    table = append_segment(image_table, text[:, : start + step - NUM_IMAGE], kind=TEXT)
                    own = inputs[:, start : start + step]
                    parts.append(read(self.language, spec, own, table, cache=cache, causal_image=self.causal_image)[0])
                if self.is_close(torch.cat(parts, 1), whole[:, NUM_IMAGE:]):
                    return behind_cache
        return "nothing"

    def _empty(self, num_rows: int) -> SegmentTable:
        return empty_table(num_rows, device=self.device)

    # --- By state

    def states_equal_rows(self) -> bool:
        """Try whether texts behind copies of an image's states train as rows of their own do, kept and recomputed."""
        table = shared_prefix(num_image_tokens=NUM_IMAGE, text_lengths=(5, 3, 4)).to(self.device)
        ids = torch.randint(3, 60, (1, table.length), device=self.device)
        columns = torch.tensor([5, 6, 7, 8, 10, 11, 13, 14, 15], device=self.device)
        pairs = {"source": torch.stack([torch.zeros_like(columns), columns - 1], 1), "target": ids[0, columns]}
        by_rows = self._gradients(self.language, ids, table, pairs, by_state=False)
        for is_recomputed in (False, True):
            try:
                language = copy.deepcopy(self.language)
                if is_recomputed:
                    checkpoint_activations(language)
                by_state = self._gradients(language, ids, table, pairs, by_state=True)
            except FAILURES:
                return False
            if by_state.keys() != by_rows.keys():
                return False
            noise = 1e-3 * max(float(gradient.abs().max()) for gradient in by_rows.values())
            for name, gradient in by_rows.items():
                error, largest = float((by_state[name] - gradient).abs().max()), float(gradient.abs().max())
                if not error <= 1e-4 * max(largest, noise):  # a gradient that all but vanishes is made of rounding
                    return False
        return True

    def check_gradients(self, why_not: str) -> None:
        """Try whether rows of their own can be trained."""
        table = shared_prefix(num_image_tokens=NUM_IMAGE, text_lengths=TEXT_LENGTHS).to(self.device)
        ids = torch.randint(3, 60, (1, table.length), device=self.device)
        columns = torch.tensor([[0, NUM_IMAGE + 1], [0, NUM_IMAGE + TEXT_LENGTHS[0]]], device=self.device)
        try:
            pairs = {"source": columns, "target": ids[0, columns[:, 1] + 1]}
            found = self._gradients(self.language, ids, table, pairs, by_state=False)
        except FAILURES as error:
            self.refuse(f"{why_not}, and in rows it has no gradient ({type(error).__name__}: {error})")
        if not all(gradient.isfinite().all() for gradient in found.values()):
            self.refuse(f"{why_not}, and in rows its gradient is no number")

    def _gradients(
        self, language: PreTrainedModel, ids: Tensor, table: SegmentTable, pairs: dict[str, Tensor], *, by_state: bool
    ) -> dict[str, Tensor]:
        """Give the losses, and the gradient of their sum by every parameter that has one and by the embeddings."""
        language.zero_grad(set_to_none=True)
        with torch.enable_grad():
            embeds = self.embeddings(ids).detach().requires_grad_()
            losses = losses_in_passes(
                language, self.spec, embeds, table, by_state=by_state, causal_image=self.causal_image,
                logits_bytes=2**28, **pairs,
            )  # fmt: skip
            losses.sum().backward()
        found = {name: p.grad for name, p in language.named_parameters() if p.grad is not None}
        language.zero_grad(set_to_none=True)
        assert embeds.grad is not None
        return {**found, "(embeddings)": embeds.grad, "(losses)": losses.detach()}
