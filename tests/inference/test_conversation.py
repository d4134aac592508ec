"""A cached conversation is the uncached one: every answer, whatever was shown, said, forgotten or cut short."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.inference.asked import ask, picture
from tests.tiny import fresh, randomise, table_logits
from tests.training.tiny import save_parts
from visgraft import Processor, Sample, Turn, VisionLanguageModel
from visgraft.errors import BadSampleError, ConfigError, ModelError
from visgraft.inference import Conversation, PrefixCache, answer
from visgraft.inference.requests import ImageSegment
from visgraft.model.sequence import append_segment, empty_table
from visgraft.segments import IMAGE, TEXT

Pair = tuple[VisionLanguageModel, Processor]


def say(talk: Conversation, prompt: str, **settings: Any) -> str:
    return "".join(talk.say(prompt, **{"max_new_tokens": 5, **settings}))


def without_cache(model: VisionLanguageModel, processor: Processor, items: list[Any], num_new: int = 5) -> str:
    """Answer the last turn of pictures and turns by one whole forward over their segment table for every token."""
    turns = [item for item in items if isinstance(item, Turn)]
    ends = [len(processor.prompt(turns[: index + 1])) for index in range(len(turns))]
    whole, pieces, place = processor.prompt(turns), [], 0
    for index, item in enumerate(items):
        if isinstance(item, Turn):
            behind = sum(isinstance(later, Turn) for later in items[index + 1 :])
            number = len(turns) - 1 - behind
            alone = processor.prompt(turns[number : number + 1]) if number == 0 else None
            end = ends[number] if behind == 0 else ends[number + 1] - _num_prompt(processor, turns, number + 1)
            assert alone is None or whole[: len(alone)] == alone
            pieces.append((TEXT, torch.tensor([whole[place:end]])))
            place = end
        else:
            pixels = processor(images=item)["pixel_values"]
            pieces.append((IMAGE, model.image_prefix(pixels)[0]))
    new: list[int] = []
    while len(new) < num_new and processor.tokenizer.eos_token_id not in new:
        row = [*pieces[:-1], (TEXT, torch.cat([pieces[-1][1], torch.tensor([new], dtype=torch.long)], 1))]
        new.append(int(_logits(model, row)[-1].argmax()))
    return processor.tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def _num_prompt(processor: Processor, turns: list[Turn], number: int) -> int:
    """Count a later turn's own prompt ids: what two prompts that differ in it alone have apart."""
    longer = processor.prompt([*turns[:number], Turn(turns[number].prompt, "")])
    empty = processor.prompt([*turns[:number], Turn("", "")])
    return len(longer) - len(empty)  # the template leaves an empty prompt empty


def _logits(model: VisionLanguageModel, pieces: list[Any]) -> torch.Tensor:
    table = empty_table(1)
    for kind, piece in pieces:
        table = append_segment(table, torch.ones(1, piece.shape[1], dtype=torch.bool), kind=kind)
    ids = torch.cat([p if kind == TEXT else torch.zeros(p.shape[:2], dtype=torch.long) for kind, p in pieces], 1)
    images = [p if kind == IMAGE else torch.zeros(*p.shape, model.prefix_injection.width) for kind, p in pieces]
    embeds = model.prefix_injection.inject(model.get_input_embeddings()(ids), torch.cat(images, 1), table.kind == IMAGE)
    with torch.no_grad():
        return table_logits(model, embeds, table)[0]


@pytest.fixture(params=["llama", "gemma3", "mistral", "bloom", "opt", "gpt2"])
def family(request: pytest.FixtureRequest, pair: Pair) -> Pair:
    """The pair's encoder and tokenizer with another family, whose vocabulary and rows are long enough."""
    model = fresh(request.param, max_position_embeddings=128)
    tokenizer = pair[1].tokenizer
    model.language.resize_token_embeddings(len(tokenizer))
    randomise(model.language, seed=5)
    return model.eval(), pair[1]


def test_an_image_at_a_later_turn_is_answered_as_one_uncached_forward_would(family: Pair) -> None:
    talk, items = Conversation(*family), []
    limit = {"max_new_tokens": 3}
    for step in ("Hi?", picture(0), "What is it?", "Why?", picture(1), "And this?", "Both?"):
        if isinstance(step, str):
            items.append(Turn(step, ""))
            expected = without_cache(*family, items, num_new=3)
            text = say(talk, step, **limit)
            assert text == expected
            items[-1] = Turn(step, text)
        else:
            talk.show(step)
            items.append(step)
    assert talk.turns == [item for item in items if isinstance(item, Turn)]


def test_with_one_image_in_front_it_is_the_dialog_that_answer_knows(pair: Pair) -> None:
    talk = Conversation(*pair)
    talk.show(picture(0))
    for prompt in ("Which colour?", "And what is it?", "Why?"):
        [expected] = answer(
            *pair, [Sample(images=[picture(0)], dialogs=[[*talk.turns, Turn(prompt, "")]])], max_new_tokens=5
        )
        assert say(talk, prompt) == expected


def test_nothing_is_read_twice(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = pair
    talk = Conversation(model, processor)
    talk.show(picture(0))
    lengths: list[int] = []
    embed = model.get_input_embeddings()
    handle = embed.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    say(talk, "What is it?")
    first = sum(lengths)
    whole = len(processor.prompt([*talk.turns, Turn("Why?", "")]))
    lengths.clear()
    say(talk, "Why?")
    handle.remove()
    assert sum(lengths) < whole + 5 - first + 12  # the end of the answer, whose tokens its text may write otherwise
    assert max(lengths) < whole


def test_earlier_turns_do_not_see_a_later_image(pair: Pair) -> None:
    texts = []
    for seed in (1, 2):
        talk = Conversation(*pair)
        talk.show(picture(0))
        say(talk, "What is it?")
        talk.show(picture(seed))
        behind = say(talk, "And this?")
        texts.append((talk.turns[0].answer, behind, [keys[:, :12] for keys, _ in talk._read.states.layers]))
    assert texts[0][0] == texts[1][0]
    assert texts[0][1] != texts[1][1]
    assert all(torch.equal(one, other) for one, other in zip(texts[0][2], texts[1][2], strict=True))


def test_a_bad_image_leaves_the_conversation_as_it_was(pair: Pair) -> None:
    talk, other = Conversation(*pair), Conversation(*pair)
    for each in (talk, other):
        each.show(picture(0))
        say(each, "What is it?")
    with pytest.raises(BadSampleError, match="image file is missing"):
        talk.show("nowhere.png")
    assert len(talk.items) == 2
    assert say(talk, "Why?") == say(other, "Why?")


def test_an_answer_that_is_stopped_is_remembered_and_read_on(pair: Pair) -> None:
    talk = Conversation(*pair)
    talk.show(picture(0))
    pieces = talk.say("What is it?", max_new_tokens=60)
    begun = next(pieces)
    pieces.close()
    assert talk.turns[0].answer.startswith(begun)
    [expected] = answer(*pair, [Sample([picture(0)], [[*talk.turns, Turn("Why?", "")]])], max_new_tokens=5)
    assert say(talk, "Why?") == expected


def test_a_failure_while_answering_loses_nothing(pair: Pair) -> None:
    talk = Conversation(*pair)
    talk.show(picture(0))
    say(talk, "What is it?")
    with pytest.raises(ConfigError, match=r"settings of decoding: .*temperature"):
        say(talk, "Why?", do_sample=True, temperature=-1.0)
    assert len(talk.turns) == 1
    [expected] = answer(*pair, [Sample([picture(0)], [[*talk.turns, Turn("Why?", "")]])], max_new_tokens=5)
    assert say(talk, "Why?") == expected


def test_the_oldest_is_forgotten_where_the_positions_end(pair: Pair) -> None:
    talk = Conversation(*pair)
    talk.show(picture(0))
    talk.items += [Turn("What is it?", "a cat and a dog " * 6), Turn("Why?", "because " * 3)]
    talk.show(picture(1))
    talk.items += [Turn("Who?", "I. " * 4)]
    assert talk.forget_oldest("Is it?", max_new_tokens=5) == 0
    say(talk, "Is it red?" + " really" * 12)
    kinds = ["image" if isinstance(item, ImageSegment) else item.prompt[:4] for item in talk.items]
    assert kinds == ["image", "image", "Who?", "Is i"]  # the two oldest turns are gone, and that is room enough
    items = list(talk.items)
    with pytest.raises(ModelError, match=r"the 128 positions of llama leave no room for an answer; shorten the prompt"):
        say(talk, "really " * 200)
    assert talk.items == items
    say(talk, "Why?" + " really" * 12)
    assert len(talk.turns) == 1
    assert sum(isinstance(item, ImageSegment) for item in talk.items) == 1  # the newest image is never forgotten
    talk.reset()
    assert [type(item) for item in talk.items] == [ImageSegment]


def test_an_image_in_front_may_be_known_from_elsewhere(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PrefixCache()
    answer(*pair, [ask("Why?", images=(picture(0),))], prefix_cache=cache, max_new_tokens=2)
    monkeypatch.setattr(pair[0], "encode_images", None)
    talk = Conversation(*pair, prefix_cache=cache)
    talk.show(picture(0))
    [expected] = answer(*pair, [ask("What is it?", images=(picture(0),))], prefix_cache=cache, max_new_tokens=5)
    assert say(talk, "What is it?") == expected


def test_an_empty_prompt_behind_an_image_starts_with_a_start_token(pair: Pair) -> None:
    talk = Conversation(*pair)
    say(talk, "Hello?")
    talk.show(picture(0))
    assert say(talk, "") is not None
    assert len(talk.turns) == 2


def test_an_image_that_no_forgetting_makes_room_for_is_refused(tmp_path: Path) -> None:
    parts = save_parts(tmp_path)
    model, processor = VisionLanguageModel.from_parts(*parts), Processor.from_parts(*parts)
    model.attention_spec = type(model.attention_spec)(**{**vars(model.attention_spec), "max_positions": 5})
    with pytest.raises(ModelError, match="behind 5 image tokens, and the 5 positions of llama leave no room"):
        Conversation(model, processor).show(picture(0))
