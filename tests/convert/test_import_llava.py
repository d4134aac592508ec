"""A LLaVA folder of transformers becomes a model folder that says the same, and can be trained on and chatted with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import MistralConfig

from tests.convert.made_llava import CHAT_TEMPLATE, save_llava
from tests.training.tiny import save_data
from visgraft import Processor, Sample, Turn, VisionLanguageModel, train
from visgraft.builder.describe import describe_model
from visgraft.convert.import_llava import PUBLISHED_TEMPLATE, import_llava
from visgraft.convert.importing import NOT_JOINED, import_model
from visgraft.data.prompt import PromptTemplate
from visgraft.errors import CheckpointError, ConfigError
from visgraft.inference import answer
from visgraft.inference.conversation import Conversation

RED, BLUE = (Image.new("RGB", (40, 30), colour) for colour in ((200, 30, 30), (20, 40, 200)))
QUESTION = "What is it?"


def asks(*turns: Any) -> list[dict[str, Any]]:
    """Write a chat: a string is an answer, a tuple a question and its images."""
    messages = []
    for turn in turns:
        if isinstance(turn, str):
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn}]})
        else:
            text, *images = turn
            shown = [{"type": "image", "image": image} for image in images]
            messages.append({"role": "user", "content": [*shown, {"type": "text", "text": text}]})
    return messages


def inputs_of(processor: Any, *turns: Any) -> Any:
    return processor.apply_chat_template(
        asks(*turns), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("llava")
    llava, theirs = save_llava(folder / "llava")
    report = import_model(folder / "llava", folder / "model")
    model, processor = VisionLanguageModel.from_pretrained(report), Processor.from_pretrained(report.folder)
    return llava, theirs, model.eval(), processor, report


def test_logits_and_greedy_tokens_are_those_of_transformers(imported: Any) -> None:
    llava, theirs, model, processor, report = imported
    given = inputs_of(theirs, (QUESTION, RED))
    ours = processor(images=RED, text=QUESTION)
    torch.testing.assert_close(ours["pixel_values"], given["pixel_values"], rtol=0, atol=0)
    behind = ours["input_ids"].shape[1]
    assert given["input_ids"][0, -behind:].tolist() == ours["input_ids"][0].tolist()
    with torch.no_grad():
        expected, found = llava(**given).logits, model(**ours).logits
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    settings = {"max_new_tokens": 8, "do_sample": False}
    assert (
        model.generate(**ours, **settings)[0, behind:].tolist()
        == llava.generate(**given, **settings)[0, given["input_ids"].shape[1] :].tolist()
    )
    before = len(model.config.text_before_images["first"])
    assert (
        f"4 image tokens, causal attention, behind {before} tokens of text" in describe_model(report.folder).facts[0][1]
    )
    assert report.num_image_tokens == 4 and report.image_attention == "causal"


def test_the_loop_that_answers_says_the_same(imported: Any) -> None:
    llava, theirs, model, processor, _ = imported
    samples = [Sample([image], [[Turn(QUESTION, "")]]) for image in (RED, BLUE)]
    samples.append(Sample([RED, BLUE], [[Turn(QUESTION, "")]]))  # a line break stands between two images
    found = answer(model, processor, samples, max_new_tokens=8)
    for images, text in zip(([RED], [BLUE], [RED, BLUE]), found, strict=True):
        given = inputs_of(theirs, (QUESTION, *images))
        told = llava.generate(**given, max_new_tokens=8, do_sample=False)[0, given["input_ids"].shape[1] :]
        assert text == theirs.tokenizer.decode(told, skip_special_tokens=True).strip()


def test_an_image_in_a_later_turn_sees_what_was_said_before(imported: Any) -> None:
    llava, theirs, model, processor, _ = imported
    talk = Conversation(model, processor)
    talk.show(RED)
    first = "".join(talk.say(QUESTION, max_new_tokens=4))
    talk.show(BLUE)
    second = "".join(talk.say("And this?", max_new_tokens=8))
    text = f"USER: <image>\n{QUESTION} ASSISTANT: {first}</s>USER: <image>\nAnd this? ASSISTANT:"
    given = theirs(images=[RED, BLUE], text=text, return_tensors="pt")
    told = llava.generate(**given, max_new_tokens=8, do_sample=False)[0, given["input_ids"].shape[1] :]
    assert second == theirs.tokenizer.decode(told, skip_special_tokens=True).strip()


def test_a_prompt_without_an_image_is_framed_without_it(imported: Any) -> None:
    llava, theirs, model, processor, _ = imported
    given = theirs(text=f"USER: {QUESTION} ASSISTANT:", return_tensors="pt")
    ours = processor(text=QUESTION)
    assert ours["input_ids"].tolist() == given["input_ids"].tolist()
    with torch.no_grad():
        torch.testing.assert_close(model(**ours).logits, llava(**given).logits, rtol=0, atol=1e-4)


def test_several_texts_share_the_prefix_with_the_text_in_front_of_it(imported: Any) -> None:
    _, _, model, processor, _ = imported
    dialogs = [[Turn(QUESTION, "A cat.")], [Turn("Which colour?", "Red, I think.")]]
    samples = [Sample([RED], dialogs, id="1"), Sample([RED, BLUE], dialogs[:1], id="2")]
    batches = [processor.collate(samples, layout=layout) for layout in ("shared", "rows")]
    shared, rows = (model.loss(batch).loss for batch in batches)
    torch.testing.assert_close(shared, rows)
    prefix, is_real = model.image_prefix(processor(images=RED, text=QUESTION)["pixel_values"])
    before = model.config.text_before_images["first"]
    assert prefix.shape[1] == len(before) + 4 and is_real.all()
    torch.testing.assert_close(prefix[0, : len(before)], model.get_input_embeddings()(torch.tensor(before)))


@pytest.mark.slow
def test_it_is_trained_on(imported: Any, tmp_path: Path) -> None:
    report = imported[-1]
    data = save_data(tmp_path / "data", num_images=4)
    recipe: dict[str, Any] = {
        "model": {"start_from": report.folder},
        "train": {"language": "lora", "epochs": 1, "text_tokens_per_step": 200, "precision": "fp32"},
        "data": {"train": [{"source": "folder", "path": data}]},
        "output": str(tmp_path / "run"),
    }
    run = train(recipe)
    trained = VisionLanguageModel.from_pretrained(Path(run) / "model")
    assert trained.config.text_before_images == imported[2].config.text_before_images
    recipe["model"]["template"] = "question"
    with pytest.raises(ConfigError, match="the model was made with its images in"):
        train({**recipe, "output": str(tmp_path / "other")})


@pytest.mark.parametrize(
    "settings",
    [
        {"vision_feature_select_strategy": "full"},
        {"vision_feature_layer": -1},
        {"multimodal_projector_bias": False},
        {"text_config": MistralConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                                      num_key_value_heads=2, sliding_window=6, max_position_embeddings=96)},
        {"tokenizer": "opt, llama 3"},
        {"tie_word_embeddings": True},
    ],
    ids=["class token", "last layer", "no bias", "mistral", "byte level", "tied"],
)  # fmt: skip
def test_others_of_its_form_are_joined_exactly(settings: dict[str, Any], tmp_path: Path) -> None:
    llava, theirs = save_llava(tmp_path / "llava", **settings)
    report = import_llava(tmp_path / "llava", tmp_path / "model")
    model, processor = VisionLanguageModel.from_pretrained(report), Processor.from_pretrained(report.folder)
    given, ours = inputs_of(theirs, (QUESTION, RED)), processor(images=RED, text=QUESTION)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**ours).logits, llava(**given).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(NOT_JOINED))
def test_a_relative_that_does_more_is_refused_with_what_it_does(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(CheckpointError, match=f"model_type {kind} {NOT_JOINED[kind][:20]}"):
        import_model(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"vision_feature_layer": [-2, -1]}, "joins several layers"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
    ],
)
def test_another_form_is_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    save_llava(tmp_path / "llava", **settings)
    with pytest.raises(CheckpointError, match=said):
        import_llava(tmp_path / "llava", tmp_path / "model")


def test_a_tensor_too_many_is_refused(tmp_path: Path) -> None:
    llava, _ = save_llava(tmp_path / "llava")
    state = {**llava.state_dict(), "image_newline": torch.zeros(32)}
    llava.save_pretrained(tmp_path / "llava", state_dict=state)
    with pytest.raises(CheckpointError, match="1 tensors are too many: image_newline"):
        import_llava(tmp_path / "llava", tmp_path / "model")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "visgraft"}, "is a model folder of visgraft already"),
        ({"model_type": "llama"}, "got model_type 'llama'; allowed are llava, nanoVLM's"),
        ({}, "got model_type None"),
        ([], "holds no settings"),
        ({"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}, "convert it first"),
    ],
)
def test_what_is_no_checkpoint_of_these_is_refused(values: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=said):
        import_model(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        import_model(tmp_path, tmp_path / "out")


def test_settings_of_other_projects_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ConfigError, match=r"--lora-alpha: got 8.0, but .* says itself what it is"):
        import_model(tmp_path, tmp_path / "out", lora_alpha=8.0)


def test_a_chat_template_that_puts_images_last_needs_one_of_the_users_own(tmp_path: Path) -> None:
    save_llava(tmp_path / "llava")
    last = "{{ 'USER: ' }}{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}{{ '<image>' }}"
    (tmp_path / "llava" / "chat_template.jinja").write_text(last)
    with pytest.raises(CheckpointError, match=r"must stand in front of .*give one as --template"):
        import_llava(tmp_path / "llava", tmp_path / "model")
    report = import_llava(tmp_path / "llava", tmp_path / "model", template=PUBLISHED_TEMPLATE)
    assert Processor.from_pretrained(report.folder).template == PUBLISHED_TEMPLATE


def test_without_a_chat_template_it_is_framed_as_the_published_one(tmp_path: Path) -> None:
    save_llava(tmp_path / "llava")
    (tmp_path / "llava" / "chat_template.jinja").unlink()
    report = import_llava(tmp_path / "llava", tmp_path / "model")
    assert "framed as LLaVA 1.5" in report.notes[0]
    assert Processor.from_pretrained(report.folder).template == PUBLISHED_TEMPLATE


def test_images_stand_in_a_template_once_and_in_front_of_the_prompt() -> None:
    with pytest.raises(ConfigError, match="stands more than once"):
        PromptTemplate("{image}{image}{prompt}")
    with pytest.raises(ConfigError, match="must stand in front of"):
        PromptTemplate("{prompt} {image}")
    assert CHAT_TEMPLATE
