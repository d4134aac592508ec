"""Scores behind one prefix are those of separate rows, for every family; the likeliest is what the model would say."""

from typing import Any

import pytest
import torch

from tests.inference.asked import ask, picture
from tests.tiny import LANGUAGES, fresh, randomise
from visgraft import Processor, Sample, Turn, VisionLanguageModel
from visgraft.errors import BadSampleError, ConfigError, ModelError
from visgraft.inference import PrefixCache, answer, candidates, score_candidates

Pair = tuple[VisionLanguageModel, Processor]
COLOURS = ["red", "a very dark blue", "green", "red and green", "no colour at all"]


def apart(model: VisionLanguageModel, processor: Processor, sample: Sample, texts: list[str]) -> list[float]:
    """The log-likelihood of each answer by the training loss of a row of its own."""
    earlier = sample.dialogs[0][:-1]
    [said] = processor.encode_text(Sample((), [earlier])) if earlier else [None]
    num_earlier = 0 if said is None else sum(said.supervised)
    scores = []
    for text in texts:
        turns = [*earlier, Turn(sample.dialogs[0][-1].prompt, text)]
        with torch.no_grad():
            losses = model.loss(processor.collate([Sample(sample.images, [turns])], layout="rows")).target_losses
        assert losses is not None
        scores.append(-float(losses[num_earlier:].double().sum()))
    return scores


@pytest.mark.parametrize("language", LANGUAGES)
def test_all_candidates_in_one_forward_score_as_each_in_a_row_of_its_own(language: str, pair: Pair) -> None:
    model = fresh(language)
    model.language.resize_token_embeddings(len(pair[1].tokenizer))
    randomise(model.language, seed=5)
    sample = ask("Which colour?", images=(picture(0),))
    scores = score_candidates(model, pair[1], sample, COLOURS)
    assert scores == pytest.approx(apart(model, pair[1], sample, COLOURS), abs=2e-4)


def test_a_dialog_and_no_image_are_scored_alike(pair: Pair) -> None:
    turns = [Turn("What is it?", "A cat."), Turn("Which colour?", "never read")]
    for images in ([picture(0), picture(1)], []):
        sample = Sample(images, [turns])
        assert score_candidates(*pair, sample, COLOURS) == pytest.approx(apart(*pair, sample, COLOURS), abs=2e-4)


def test_groups_change_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = ask("Which colour?", images=(picture(0),))
    whole = score_candidates(*pair, sample, COLOURS)
    monkeypatch.setattr(candidates, "_TOKENS_AT_ONCE", 3)
    assert score_candidates(*pair, sample, COLOURS) == pytest.approx(whole, abs=1e-5)


def test_the_image_is_read_once_for_many_questions(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PrefixCache()
    first = score_candidates(*pair, ask("Why?", images=(picture(0),)), COLOURS, prefix_cache=cache)
    monkeypatch.setattr(pair[0], "read_image", None)
    assert score_candidates(*pair, ask("Why?", images=(picture(0),)), COLOURS, prefix_cache=cache) == first


def test_probabilities_of_what_is_said_and_all_else_agree(pair: Pair) -> None:
    """The text that greedy decoding writes is likelier than the same with one word more."""
    sample = ask("What is it?", images=(picture(0),))
    [said] = answer(*pair, [sample], max_new_tokens=3)
    scores = score_candidates(*pair, sample, [said, said + " red"])
    assert scores[1] < scores[0] < 0 or len(said) == 0


def test_ways_to_normalise(pair: Pair) -> None:
    sample = ask("Which colour?", images=(picture(0),))
    whole, by_token, by_character = (
        score_candidates(*pair, sample, COLOURS, normalise=how)  # type: ignore[arg-type]
        for how in ("sum", "token", "character")
    )
    assert by_character == pytest.approx([score / len(text) for score, text in zip(whole, COLOURS, strict=True)])
    ratios = [score / mean for score, mean in zip(whole, by_token, strict=True)]
    assert ratios == pytest.approx([round(ratio) for ratio in ratios])


def test_what_cannot_be_scored_is_said(pair: Pair) -> None:
    sample: Any = ask("Which colour?", images=(picture(0),))
    with pytest.raises(ConfigError, match="candidates: got none, need at least one"):
        score_candidates(*pair, sample, [])
    with pytest.raises(ConfigError, match="normalise: got 'mean', allowed are sum, token, character"):
        score_candidates(*pair, sample, ["red"], normalise="mean")  # type: ignore[arg-type]
    with pytest.raises(BadSampleError, match="answer is empty"):
        score_candidates(*pair, sample, ["red", " "])
    with pytest.raises(ModelError, match="leave no room for an answer"):
        score_candidates(*pair, sample, ["red", "very " * 150])


@pytest.mark.parametrize("language", ["llama", "qwen3_5"])
def test_what_candidates_begin_with_is_read_once_and_changes_no_score(language: str, pair: Pair) -> None:
    model = fresh(language)
    model.language.resize_token_embeddings(len(pair[1].tokenizer))
    randomise(model.language, seed=5)
    alike = ["a very dark blue and a little red", "a very dark blue and a little green", "a very dark blue", "red"]
    sample = ask("Which colour?", images=(picture(0),))
    read: list[int] = []
    decode = model._decode

    def counting(embeds: Any, *others: Any, **named: Any) -> Any:
        read.append(embeds.shape[1])
        return decode(embeds, *others, **named)

    model._decode = counting  # type: ignore[method-assign]
    scores = score_candidates(model, pair[1], sample, alike)
    assert scores == pytest.approx(apart(model, pair[1], sample, alike), abs=2e-4)
    if language == "llama":
        dialogs = [[Turn("Which colour?", text)] for text in alike]
        whole = pair[1].encode_text(Sample((), dialogs))
        num_prompt = len(pair[1].prompt(dialogs[0]))
        assert read[-1] < sum(len(dialog.input_ids) - num_prompt - 1 for dialog in whole) - 8
