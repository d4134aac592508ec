"""Answers do not depend on who else is asked, and streaming, loading and training in between change nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.tiny import randomise
from tests.train.tiny import save_parts
from visgraft import Processor, Sample, Turn, VisionLanguageModel
from visgraft.errors import BadSampleError, CheckpointError, ConfigError, ModelError
from visgraft.infer import answer, load, num_prompt_positions, stream

QUESTIONS = ["What is it?", "", "Which colour has the cat on the sofa, if there is one?", "Is it red?", "Why?"]


def picture(seed: int) -> Image.Image:
    noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def ask(*questions: str, images: tuple[Any, ...] = ()) -> Sample:
    """A sample with one dialog for each question."""
    return Sample(images=images, dialogs=[[Turn(question, "")] for question in questions])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def pair(parts: tuple[str, str]) -> tuple[VisionLanguageModel, Processor]:
    model = VisionLanguageModel.from_parts(*parts)
    for seed, part in enumerate((model.vision, model.projection, model.language)):
        randomise(part, seed=seed)
    return model, Processor.from_parts(*parts)


def test_answers_do_not_depend_on_who_else_is_asked(pair: tuple[VisionLanguageModel, Processor]) -> None:
    samples = [ask(question, images=(picture(seed),)) for seed, question in enumerate(QUESTIONS)]
    samples += [ask("Two of them?", images=(picture(0), picture(1))), ask("And without any image?")]
    alone = [answer(*pair, [sample], max_new_tokens=6)[0] for sample in samples]
    assert len(set(alone)) > 4  # else they could be confused unseen
    assert answer(*pair, samples, max_new_tokens=6) == alone
    assert answer(*pair, samples[::-1], max_new_tokens=6, batch_size=3) == alone[::-1]
    assert answer(*pair, samples, max_new_tokens=6, batch_size=1) == alone


def test_dialogs_of_one_sample_are_answered_in_their_order_behind_one_image(
    pair: tuple[VisionLanguageModel, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = pair
    image = picture(7)
    alone = [answer(model, processor, [ask(question, images=(image,))], max_new_tokens=6)[0] for question in QUESTIONS]
    encoded: list[int] = []
    encode = model.encode_images
    monkeypatch.setattr(
        model, "encode_images", lambda x, **rest: encoded.append(len(x["pixel_values"])) or encode(x, **rest)
    )
    samples = [ask(*QUESTIONS, images=(image,)), ask("What is it?", images=(image,))]
    assert answer(model, processor, samples, max_new_tokens=6, batch_size=4) == [*alone, alone[0]]
    assert encoded == [1]


def test_only_the_last_turn_is_answered_and_its_own_answer_is_ignored(
    pair: tuple[VisionLanguageModel, Processor],
) -> None:
    def chat(first: str, last: str) -> list[str]:
        turns = [Turn("What is it?", first), Turn("Is it red?", last)]
        return answer(*pair, [Sample(images=[picture(0)], dialogs=[turns])], max_new_tokens=6)

    assert chat("A cat.", "") == chat("A cat.", "Yes.")
    assert chat("A cat.", "") != chat("Two dogs on a sofa.", "")


class Say:
    """Make the model say a text, and end."""

    def __init__(self, processor: Processor, text: str) -> None:
        tokenizer = processor.tokenizer
        self.ids = iter([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(scores).index_fill_(1, torch.tensor([next(self.ids)]), 1.0)


def test_an_answer_is_new_text_without_special_tokens_or_outer_space(
    pair: tuple[VisionLanguageModel, Processor],
) -> None:
    model, processor = pair
    sample = ask("What is it?", images=(picture(0),))
    assert answer(model, processor, [sample], logits_processor=[Say(processor, " a cat ")]) == ["a cat"]


def test_whether_an_answer_stopped_by_itself_is_told_of_each_dialog(
    pair: tuple[VisionLanguageModel, Processor],
) -> None:
    model, processor = pair
    sample = ask("What is it?", images=(picture(0),))
    stopped: list[bool] = []
    answer(model, processor, [sample], logits_processor=[Say(processor, "a cat")], stopped=stopped)
    assert stopped == [True]
    answer(
        model, processor, [sample], logits_processor=[Say(processor, "a cat " * 9)], max_new_tokens=3, stopped=stopped
    )
    assert stopped == [False]
    samples = [ask(question, images=(picture(seed),)) for seed, question in enumerate(QUESTIONS)]
    inputs = processor(text=QUESTIONS[1], images=picture(1))
    third = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, -1].item()
    own = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [third]
        answer(model, processor, samples, max_new_tokens=6, stopped=stopped)
        together = list(stopped)
        for sample, expected in zip(samples, together, strict=True):
            answer(model, processor, [sample], max_new_tokens=6, stopped=stopped)
            assert stopped == [expected]
    finally:
        model.generation_config.eos_token_id = own
    assert together[1]
    assert not all(together)


def test_answers_stop_where_the_language_model_itself_stops(pair: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = pair
    sample = ask("What is it?", images=(picture(0),))
    [whole] = answer(model, processor, [sample], max_new_tokens=8)
    inputs = processor(text="What is it?", images=picture(0))
    new = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    own = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [new[3]]
        [cut] = answer(model, processor, [sample], max_new_tokens=8)
    finally:
        model.generation_config.eos_token_id = own
    assert whole.startswith(cut)
    assert cut == processor.tokenizer.decode(new[: new.index(new[3])], skip_special_tokens=True).strip()


def test_settings_of_generate_reach_it_and_greedy_is_the_default(pair: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = pair
    sample = ask("What is it?", images=(picture(0),))
    greedy = answer(model, processor, [sample], max_new_tokens=8)
    model.generation_config.do_sample, model.generation_config.temperature = True, 9.0
    try:
        assert answer(model, processor, [sample], max_new_tokens=8) == greedy
    finally:
        model.generation_config.do_sample, model.generation_config.temperature = None, None
    torch.manual_seed(0)
    assert answer(model, processor, [sample], max_new_tokens=8, do_sample=True, temperature=9.0) != greedy


def test_a_model_in_training_answers_without_dropout_and_goes_on_training(parts: tuple[str, str]) -> None:
    model, processor = VisionLanguageModel.from_parts(*parts), Processor.from_parts(*parts)
    sample = ask("What is it?", images=(picture(0),))
    expected = answer(model, processor, [sample], max_new_tokens=4)
    assert not model.training
    model.train()
    assert answer(model, processor, [sample], max_new_tokens=4) == expected
    assert model.training
    assert model.projection.training


def test_the_callers_autocast_stays_in_force(pair: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = pair
    seen: list[torch.dtype] = []
    head = model.language.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer(model, processor, [ask("What is it?", images=(picture(0),))], max_new_tokens=2)
    answer(model, processor, [ask("What is it?", images=(picture(0),))], max_new_tokens=2)
    handle.remove()
    assert seen == [torch.bfloat16] * 2 + [torch.float32] * 2


def test_a_stream_joined_is_the_answer(pair: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = pair
    sample = ask(QUESTIONS[0], images=(picture(0),))
    assert "".join(stream(*pair, sample, max_new_tokens=8)) == answer(*pair, [sample], max_new_tokens=8)[0]
    said = Say(processor, "  two dogs, and a cat  on a sofa \n")
    pieces = list(stream(model, processor, sample, logits_processor=[said], max_new_tokens=64))
    assert "".join(pieces) == "two dogs, and a cat  on a sofa"
    assert len(pieces) > 3


def test_a_stream_that_is_closed_stops_the_model(pair: tuple[VisionLanguageModel, Processor]) -> None:
    model, processor = pair
    pieces = stream(model, processor, ask("What is it?", images=(picture(0),)), max_new_tokens=100)
    next(pieces)
    num_steps = 0

    def count(*_: Any) -> None:
        nonlocal num_steps
        num_steps += 1

    handle = model.language.register_forward_hook(count)
    pieces.close()
    handle.remove()
    assert num_steps < 90


def test_an_error_inside_a_stream_reaches_its_reader(pair: tuple[VisionLanguageModel, Processor]) -> None:
    with pytest.raises(BadSampleError, match="image file is missing"):
        list(stream(*pair, ask("What is it?", images=("nowhere.png",))))


def test_answers_are_cut_where_the_positions_of_the_language_model_end(
    pair: tuple[VisionLanguageModel, Processor],
) -> None:
    model, processor = pair
    assert model.contract.max_positions == 128
    long = ask("cat " * 110, images=(picture(0),))
    left = 128 - num_prompt_positions(model, processor, long)
    assert 0 < left < 16
    short = ask("What is it?", images=(picture(0),))
    alone = [answer(model, processor, [sample], max_new_tokens=16)[0] for sample in (long, short)]
    assert answer(model, processor, [long, short], max_new_tokens=16) == alone
    with pytest.raises(ModelError, match=r"the 128 positions of llama leave no room for an answer; shorten the prompt"):
        answer(model, processor, [ask("cat " * 200, images=(picture(0),))])


def test_a_saved_model_answers_as_it_did_before(pair: tuple[VisionLanguageModel, Processor], tmp_path: Path) -> None:
    model, processor = pair
    run = tmp_path / "run"
    model.save_pretrained(run / "model", full=True)
    processor.save_pretrained(run / "model")
    (run / "recipe.yaml").write_text("model: {vision: a, language: b}\n")
    samples = [ask(*QUESTIONS, images=(picture(0),))]
    expected = answer(model, processor, samples, max_new_tokens=6)
    loaded = load(str(run), device="cpu", precision="fp32")
    assert answer(*loaded, samples, max_new_tokens=6) == expected
    halved, _ = load(str(run / "model"), device="cpu", precision="bf16")
    assert halved.language.get_input_embeddings().weight.dtype == torch.bfloat16
    assert next(halved.projection.parameters()).dtype == torch.float32
    assert len(answer(halved, processor, samples, max_new_tokens=6)) == len(QUESTIONS)


def test_a_model_that_is_not_there_and_a_device_that_is_not_are_said(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"holds no config\.json: give a run folder, a model folder or a Hub name"
    ):
        load(str(tmp_path), device="cpu")
    with pytest.raises(ConfigError, match="device: got teapot, which this machine and this torch do not have"):
        load(str(tmp_path), device="teapot")
    with pytest.raises(ConfigError, match="precision: got fp16, which needs a GPU"):
        load(str(tmp_path), device="cpu", precision="fp16")
