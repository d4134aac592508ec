"""A greedy answer is the same whatever its neighbours, their settings and the order in which they come."""

import functools
import math
import random
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from transformers import CLIPImageProcessor

from tests.data.made_tokenizers import TOKENIZERS
from tests.inference.asked import picture
from tests.tiny import fresh, randomise, table_logits
from tests.training.tiny import CLIP, SIDE
from visgraft import Processor, VisionLanguageModel
from visgraft.inference import Decoding, Engine, PrefixCache, Prompt, Reply
from visgraft.inference.eval_mode import eval_mode
from visgraft.inference.prefix_cache import open_pixels
from visgraft.inference.requests import ImageSegment, Segment
from visgraft.model.sequence import append_segment, empty_table
from visgraft.segments import IMAGE, TEXT

# Rotary, learned and ALiBi positions, sliding windows, soft-capping, an eager kernel, shared keys.
FAMILIES = ["llama", "opt", "gpt_neox", "mistral", "gemma3", "bloom", "mpt", "gemma2"]
LIMIT = 9  # tokens of an answer
INTERLEAVINGS = 300

Pair = tuple[VisionLanguageModel, Processor]


def make_pair(family: str) -> Pair:
    """A tiny pair of a family whose answers differ from prompt to prompt; its images have 5 tokens each."""
    tokenizer = TOKENIZERS["opt, llama 3"]()
    model = fresh(family, max_position_embeddings=128)
    model.language.resize_token_embeddings(len(tokenizer))
    randomise(model.language, seed=5)
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
    assert CLIP.image_size == SIDE
    return model.eval(), Processor.from_parts(images, tokenizer, num_image_tokens=5)


@functools.cache
def pair_of(family: str) -> Pair:
    return make_pair(family)


def prompts(processor: Processor) -> list[Prompt]:
    """An image, several, none; one turn and several; an image that comes later."""
    ids = [processor.tokenizer(text)["input_ids"] for text in ("What is it?", "a cat on a sofa and two dogs", "Why")]

    def images(*seeds: int) -> ImageSegment:
        return ImageSegment(open_pixels(processor, [picture(seed) for seed in seeds]))

    one = images(1)
    rows: list[list[Segment]] = [
        [one, ids[0]],
        [one, ids[1]],
        [images(2), ids[0]],
        [images(1, 2), ids[2]],
        [images(3, 4, 5), ids[1]],
        [ids[1]],
        [ids[2]],
        [images(2), [*ids[0], *ids[1], *ids[2]]],
        [one, ids[1], images(6), ids[0]],
        [ids[0], images(1), ids[2]],
    ]
    return [Prompt(row) for row in rows]


def uncached(model: VisionLanguageModel, prompt: Prompt) -> list[int]:
    """Answer by one whole forward over the segment table for every token; no cache anywhere."""
    new: list[int] = []
    with eval_mode(model):
        segments = [*prompt.segments]
        while len(new) < LIMIT:
            table, ids, tokens, width = empty_table(1), [], [], model.prefix_injection.width
            for segment in [*segments[:-1], [*segments[-1], *new]]:
                if isinstance(segment, ImageSegment):
                    inputs = {name: tensor[None] for name, tensor in segment.pixels.items()}
                    tokens.append(model.image_prefix(**inputs)[0])
                    ids.append(torch.zeros(1, tokens[-1].shape[1], dtype=torch.long))
                else:
                    ids.append(torch.tensor([segment]))
                    tokens.append(torch.zeros(1, len(segment), width))
                kind = IMAGE if isinstance(segment, ImageSegment) else TEXT
                table = append_segment(table, torch.ones_like(ids[-1], dtype=torch.bool), kind=kind)
            embeds = model.get_input_embeddings()(torch.cat(ids, 1))
            embeds = model.prefix_injection.inject(embeds, torch.cat(tokens, 1), table.kind == IMAGE)
            new.append(int(table_logits(model, embeds, table)[0, -1].argmax()))
    return new


def interleave(pair: Pair, pool: list[Prompt], draw: random.Random, cache: PrefixCache) -> Iterator[tuple[int, Reply]]:
    """Ask a random choice of prompts, at random times, of a loop of random size; some are cancelled on the way."""
    kept = cache if draw.random() < 0.7 else PrefixCache(max_bytes=0)
    engine = Engine(*pair, num_slots=draw.randint(1, 6), prefix_cache=kept)
    coming = [draw.randrange(len(pool)) for _ in range(draw.randint(2, 9))]
    open_ones: list[Reply] = []
    with eval_mode(pair[0]):
        while coming or engine.num_active or engine.num_waiting:
            while coming and draw.random() < 0.6:
                index = coming.pop()
                limit = draw.randint(1, LIMIT)
                others = {"do_sample": True, "temperature": 2.0, "seed": index} if draw.random() < 0.2 else {}
                fresh_ones: list[Segment] = [
                    ImageSegment(each.pixels) if isinstance(each, ImageSegment) else each
                    for each in pool[index].segments
                ]
                prompt = Prompt(fresh_ones if draw.random() < 0.8 else pool[index].segments)  # or of the same sample
                reply = engine.submit(prompt, Decoding.of(max_new_tokens=limit, eos_token_id=None, **others))
                open_ones.append(reply)
                if not others:
                    yield index, reply
            engine.step()
            if open_ones and draw.random() < 0.15:
                open_ones.pop(draw.randrange(len(open_ones))).cancel()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_in_float32_have_equal_tokens_whatever_the_neighbours_and_the_order(family: str) -> None:
    pair = pair_of(family)
    pool = prompts(pair[1])
    expected = [uncached(pair[0], prompt) for prompt in pool]
    assert len({tuple(ids) for ids in expected}) > 3  # else they could be confused unseen
    draw, cache, compared = random.Random(family), PrefixCache(), 0
    for _ in range(math.ceil(INTERLEAVINGS / len(FAMILIES))):
        for index, reply in [*interleave(pair, pool, draw, cache)]:
            answer = reply.answer()
            assert list(answer.token_ids) == expected[index][: len(answer.token_ids)]
            assert answer.finish == "cancelled" or answer.token_ids
            compared += len(answer.token_ids)
    assert compared > 300
    assert cache.num_hits > 20


# --- In bf16, whose logits have 8 bits


class _Steps:
    """Note how many rounding steps of bf16 lie between the two best logits of each token."""

    def __init__(self) -> None:
        self.apart: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        best, second = scores[0].topk(2).values.tolist()
        step = 2.0 ** (math.floor(math.log2(max(abs(best), abs(second), 1e-30))) - 7)
        self.apart.append((best - second) / step)
        return scores


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_answers_in_bf16_differ_only_where_two_logits_are_a_rounding_step_apart(family: str) -> None:
    model, processor = make_pair(family)
    model = model.to(torch.bfloat16)
    pool = prompts(processor)
    alone: list[tuple[tuple[int, ...], list[float]]] = []
    for prompt in pool:
        steps = _Steps()
        asked = Decoding.of(max_new_tokens=LIMIT, eos_token_id=None, logits_processor=[steps])
        reply = Engine(model, processor, num_slots=1).submit(Prompt(prompt.segments), asked)
        alone.append((reply.answer().token_ids, steps.apart))
    draw, cache = random.Random(family), PrefixCache()
    seen: Counter[str] = Counter()
    for _ in range(40):
        for index, reply in [*interleave((model, processor), pool, draw, cache)]:
            expected, apart = alone[index]
            said = reply.answer().token_ids
            pairs = enumerate(zip(said, expected, strict=False))
            different = next((at for at, (one, other) in pairs if one != other), None)
            seen["tokens"] += len(said) if different is None else different + 1
            if different is not None:
                seen["near ties"] += 1
                assert apart[different] <= 1.0, f"{apart[different]} steps apart"
    assert seen["near ties"] < 0.1 * seen["tokens"]
