"""Language models with states answer, chat and score as reading everything anew does: in slots, behind prefixes."""

import pytest
import torch
from PIL import Image
from transformers import cache_utils

from tests.tiny import bare_language, bare_vision, randomise
from tests.training.tiny import save_parts
from visgraft import Processor, Sample, Turn, VisionLanguageModel
from visgraft.inference.answering import answer
from visgraft.inference.candidates import score_candidates
from visgraft.inference.conversation import Conversation
from visgraft.inference.prefix_cache import PrefixCache

if not hasattr(cache_utils, "LinearAttentionCacheLayerMixin"):
    pytest.skip("transformers keeps states in its caches from 5.20 on", allow_module_level=True)

FAMILIES = ["qwen3_5", "jamba", "mamba2", "rwkv"]  # by state, token by token behind a cache, recurrent alone, anew
QUESTIONS = ["what is it", "a longer question about what it is", "why"]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return Processor.from_parts(*save_parts(tmp_path_factory.mktemp("parts")))


def joined_for(processor: Processor, name: str) -> VisionLanguageModel:
    size = len(processor.tokenizer)
    language = bare_language(name, vocab_size=size)
    model = VisionLanguageModel.from_parts(bare_vision("clip"), language)
    randomise(model.projection, seed=3)
    return model


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (32, 32), colour)


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_among_others_behind_kept_prefixes_are_those_alone(processor: Processor, name: str) -> None:
    model, kept = joined_for(processor, name), PrefixCache()
    samples = [Sample([picture(c)], [[Turn(q, "")] for q in QUESTIONS]) for c in ("red", "blue")]
    samples.append(Sample([], [[Turn(QUESTIONS[0], "")]]))
    together = answer(model, processor, samples, max_new_tokens=5, batch_size=4, prefix_cache=kept)
    again = answer(model, processor, samples, max_new_tokens=5, batch_size=4, prefix_cache=kept)
    assert together == again
    assert kept.num_hits == 2
    alone = [
        answer(model, processor, [Sample(sample.images, [dialog])], max_new_tokens=5)[0]
        for sample in samples
        for dialog in sample.dialogs
    ]
    assert together == alone
    beams = answer(model, processor, samples, max_new_tokens=3, batch_size=4, num_beams=2)
    assert len(beams) == len(together)


@pytest.mark.parametrize("name", FAMILIES)
def test_candidates_have_the_likelihood_that_each_has_alone(processor: Processor, name: str) -> None:
    model = joined_for(processor, name)
    sample = Sample([picture("red")], [[Turn("what", "")]])
    together = score_candidates(model, processor, sample, ["a cat", "dog", "a long answer"])
    alone = [score_candidates(model, processor, sample, [text])[0] for text in ("a cat", "dog", "a long answer")]
    assert torch.allclose(torch.tensor(together), torch.tensor(alone), atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_answers_as_a_dialog_that_is_read_at_once(processor: Processor, name: str) -> None:
    model = joined_for(processor, name)
    talk = Conversation(model, processor)
    talk.show(picture("red"))
    first = "".join(talk.say("what", max_new_tokens=4))
    second = "".join(talk.say("why", max_new_tokens=4))
    whole = Sample([picture("red")], [[Turn("what", first), Turn("why", "")]])
    assert second == answer(model, processor, [whole], max_new_tokens=4)[0]
