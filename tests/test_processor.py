"""The processor: made from parts, training batches, serving inputs, chats, and the way to disk and back."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoProcessor,
    BeitConfig,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    Dinov2Config,
    EfficientNetConfig,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    ViTConfig,
    pipeline,
)

from tests.data.made_tokenizers import TOKENIZERS, answers_of
from visgraft.data.prompt import encode_dialog
from visgraft.data.sample import Sample, Turn
from visgraft.errors import BadSampleError, CheckpointError, ConfigError
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor

NARROW = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PATCHES = {"image_size": 32, "patch_size": 8}
STAGES = {
    "kernel_sizes": [3],
    "in_channels": [32],
    "out_channels": [16],
    "strides": [1],
    "num_block_repeats": [1],
    "expand_ratios": [1],
    "depthwise_padding": [],
}
# name -> (encoder's config, image processor's class, image tokens at 32 and at 64 pixels)
ENCODERS = {
    "clip": (CLIPVisionConfig(**NARROW, **PATCHES), "CLIPImageProcessorPil", 17, 65),
    "siglip": (SiglipVisionConfig(**NARROW, **PATCHES), "SiglipImageProcessorPil", 16, 64),
    "dinov2": (Dinov2Config(**NARROW, **PATCHES), "BitImageProcessorPil", 17, 65),
    "vit": (ViTConfig(**NARROW, **PATCHES), "ViTImageProcessorPil", 17, 65),
    "beit": (BeitConfig(**NARROW, **PATCHES), "BeitImageProcessorPil", 17, 65),
    "efficientnet": (
        EfficientNetConfig(image_size=32, hidden_dim=1280, width_coefficient=1.0, depth_coefficient=1.0, **STAGES),
        "EfficientNetImageProcessorPil",
        256,
        1024,
    ),
    "convnext": (
        ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], image_size=32),
        "ConvNextImageProcessorPil",
        1,
        4,
    ),
}

RED, BLUE = Image.new("RGB", (40, 60), "red"), Image.new("RGB", (64, 32), "blue")
CAPTION, QUESTION = [Turn("", "a cat on a sofa")], [Turn("What is it?", "A cat.")]
TURNS = [*QUESTION, Turn("Which colour?", "Red, I think.")]


@pytest.fixture(scope="module")
def tokenizer():
    return TOKENIZERS["opt, llama 3"]()


@pytest.fixture(scope="module")
def parts(tokenizer, tmp_path_factory):
    """Folders of an encoder of 32 pixels and a language model, as transformers saves them."""
    vision, language = tmp_path_factory.mktemp("vision"), tmp_path_factory.mktemp("language")
    CLIPVisionModel(ENCODERS["clip"][0]).save_pretrained(vision)
    CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(vision)
    config = LlamaConfig(**NARROW, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(language)
    tokenizer.save_pretrained(language)
    return vision, language


@pytest.fixture(scope="module")
def processor(parts):
    return Processor.from_parts(*parts)


@pytest.fixture(scope="module")
def model(parts):
    torch.manual_seed(0)
    return VisionLanguageModel.from_parts(*parts).eval()


# --- From parts


def test_folders_give_their_image_processor_and_tokenizer(processor, tokenizer):
    assert (processor.image_size, processor.num_image_tokens, processor.template) == (32, 17, "question")
    assert processor.image_processor.size["shortest_edge"] == 36
    assert processor.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert processor.tokenizer.padding_side == "left"


def test_loaded_parts_give_the_same_as_their_folders(parts, processor):
    vision, language = CLIPVisionModel.from_pretrained(parts[0]), LlamaForCausalLM.from_pretrained(parts[1])
    assert Processor.from_parts(vision, language).to_dict() == processor.to_dict()
    image_processor, tokenizer = processor.image_processor, processor.tokenizer
    known = {"num_image_tokens": 17, "max_positions": 2048}
    assert Processor.from_parts(image_processor, tokenizer, **known).to_dict() == processor.to_dict()


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_image_tokens_that_are_counted_are_those_that_the_model_makes(name, image_size, tokenizer, tmp_path):
    config, image_processor_class, *counts = ENCODERS[name]
    config.save_pretrained(tmp_path)
    getattr(transformers, image_processor_class)().save_pretrained(tmp_path)
    processor = Processor.from_parts(tmp_path, tokenizer, image_size=image_size)
    encoded = processor.encode(Sample([RED, BLUE], [CAPTION]))
    assert encoded.vision_inputs["pixel_values"].shape == (2, 3, image_size, image_size)
    assert encoded.num_image_tokens == (processor.num_image_tokens,) * 2
    vision = transformers.AutoModel.from_config(config)
    language = LlamaForCausalLM(LlamaConfig(**NARROW, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1))
    model = VisionLanguageModel.from_parts(vision, language, image_size=image_size)
    assert model.encode_images(encoded.vision_inputs).shape[1] == processor.num_image_tokens
    assert processor.num_image_tokens == counts[image_size // 32 - 1]


@pytest.mark.parametrize(
    "settings, count",
    [
        ({"keep_class_token": False}, 16),
        ({"projection": {"pool": 2}}, 4),
        ({"projection": {"pixel_shuffle": 4}}, 1),
        ({"num_image_tokens": 5}, 5),
    ],
)
def test_settings_of_the_join_change_the_count(settings, count, parts):
    assert Processor.from_parts(*parts, **settings).num_image_tokens == count


def test_an_image_processor_alone_does_not_tell_the_count(processor):
    with pytest.raises(ConfigError, match="an image processor alone does not say how many image tokens"):
        Processor.from_parts(processor.image_processor, processor.tokenizer)


def test_without_a_pad_token_end_of_text_takes_its_place():
    tokenizer = TOKENIZERS["gpt2"]()
    assert tokenizer.pad_token is None
    processor = Processor(CLIPImageProcessorPil(), tokenizer, num_image_tokens=1)
    assert processor.tokenizer.pad_token == tokenizer.eos_token
    kept = Processor(CLIPImageProcessorPil(), TOKENIZERS["gpt2 with a pad token"](), num_image_tokens=1)
    assert kept.tokenizer.pad_token == "<unk>"


def test_an_unknown_template_is_refused_at_once(processor):
    with pytest.raises(ConfigError, match="template: got 'questions'; did you mean 'question'"):
        Processor(processor.image_processor, processor.tokenizer, num_image_tokens=1, template="questions")


# --- Training


def test_encoding_opens_the_images_and_leaves_the_pixels_to_the_image_processor(processor, tmp_path):
    RED.save(tmp_path / "red.png")
    encoded = processor.encode(Sample([tmp_path / "red.png", BLUE], [CAPTION, QUESTION], id="7", source="made"))
    expected = processor.image_processor(images=[RED, BLUE], return_tensors="pt")
    assert torch.equal(encoded.vision_inputs["pixel_values"], expected["pixel_values"])
    assert encoded.num_image_tokens == (17, 17)
    assert len(encoded.dialogs) == 2
    assert (encoded.id, encoded.source) == ("7", "made")


def test_text_is_encoded_without_touching_an_image(processor):
    sample = Sample(["missing.png"], [CAPTION, QUESTION])
    texts = processor.encode_text(sample)
    assert texts == processor.encode(Sample([], sample.dialogs)).dialogs
    with pytest.raises(BadSampleError, match="image file is missing"):
        processor.encode(sample)


def test_a_sample_without_dialogs_is_bad(processor):
    with pytest.raises(BadSampleError, match="no dialog"):
        processor.encode(Sample([RED], []))


def test_an_image_beyond_the_limit_is_bad(processor):
    with pytest.raises(BadSampleError, match="image has too many pixels"):
        processor.encode(Sample([RED], [CAPTION]), max_pixels=100)


def test_long_text_is_cut_and_counted(parts):
    batch = Processor.from_parts(*parts, max_text_tokens=4).collate([Sample([RED], [CAPTION, [Turn("", "a")]])])
    assert batch.num_truncated == 1
    assert batch.num_text_tokens == 4 + 3


@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_the_targets_of_a_batch_decode_to_the_answers(layout, processor):
    samples = [Sample([RED], [CAPTION, TURNS]), Sample([], [QUESTION]), Sample([RED, BLUE], [CAPTION])]
    batch = processor.collate(samples, layout=layout)
    end = processor.tokenizer.eos_token
    decoded = [processor.decode(batch.target[batch.target_dialog == index]) for index in range(batch.num_dialogs)]
    assert decoded == [
        f"a cat on a sofa{end}",
        f" A cat.{end} Red, I think.{end}",
        f" A cat.{end}",
        f"a cat on a sofa{end}",
    ]
    assert batch.num_image_tokens.tolist() == [17] * (3 if layout == "shared" else 4)


def test_encoded_samples_collate_like_the_samples_themselves(processor):
    samples = [Sample([RED], [CAPTION, QUESTION]), Sample([BLUE], [TURNS])]
    direct, encoded = processor.collate(samples), processor.collate([processor.encode(sample) for sample in samples])
    for name in ("input_ids", "kind", "segment", "position", "target"):
        assert torch.equal(direct[name], encoded[name])
    assert torch.equal(direct.vision_inputs["pixel_values"], encoded.vision_inputs["pixel_values"])


def test_a_batch_whose_pixels_came_as_bytes_is_the_same_batch(processor):
    samples = [Sample([RED], [CAPTION]), Sample([], [QUESTION]), Sample([BLUE], [QUESTION])]
    encoded = [processor.encode(sample, as_bytes=True) for sample in samples]
    travelling, whole = processor.collate(encoded), processor.collate(samples)
    assert set(travelling.vision_inputs) == {"pixel_bytes"}
    mixed = processor.collate([*encoded[:2], samples[2]])  # not every image can be kept as bytes
    for made in (processor.finish(travelling), processor.finish(mixed)):
        assert set(made.vision_inputs) == {"pixel_values"}
        assert torch.equal(made.vision_inputs["pixel_values"], whole.vision_inputs["pixel_values"])


# --- Serving


@pytest.mark.parametrize("turns", [CAPTION, QUESTION, TURNS])
def test_the_training_prompt_cut_before_the_answer_is_the_serving_prompt(turns, processor):
    (encoded,) = processor.encode_text(Sample([], [turns]))
    prompt = processor.prompt(turns)
    assert list(encoded.input_ids[: len(prompt)]) == prompt
    assert answers_of(processor.tokenizer, encoded)[-1].strip() == turns[-1].answer + processor.tokenizer.eos_token
    if len(turns) == 1:
        inputs = processor(text=turns[0].prompt)
        assert inputs["input_ids"].tolist() == [prompt]


def test_a_prompt_and_an_image_become_the_inputs_of_generate(processor):
    inputs = processor(RED, "What is it?", return_tensors="pt")
    assert list(inputs) == ["input_ids", "attention_mask", "pixel_values"]
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert inputs["attention_mask"].all()


def test_prompts_are_padded_on_the_left(processor):
    inputs = processor(text=["What is it?", "a"], images=[RED, BLUE])
    ids = [processor.prompt([Turn(text, "")]) for text in ("What is it?", "a")]
    for row, mask, expected in zip(inputs["input_ids"], inputs["attention_mask"], ids, strict=True):
        assert row[mask.bool()].tolist() == expected
        assert mask.tolist() == sorted(mask.tolist())


def test_images_alone_ask_for_captions(processor):
    inputs = processor([RED, BLUE])
    assert inputs["input_ids"].tolist() == [processor.prompt(CAPTION)] * 2
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)


def test_an_array_is_one_image_and_four_axes_are_a_list_of_images(processor):
    red = np.asarray(RED)
    expected = processor(images=[RED, RED], text=["What?", "Where?"])["pixel_values"]
    for images in ([red, red], np.stack([red, red]), torch.from_numpy(np.stack([red, red]).transpose(0, 3, 1, 2))):
        assert torch.equal(processor(images=images, text=["What?", "Where?"])["pixel_values"], expected)
    assert processor(images=red, text="What?")["pixel_values"].shape[0] == 1
    with pytest.raises(BadSampleError, match="image is an array of float32: give uint8"):
        processor(images=red / np.float32(255), text="What?")


def test_a_text_that_is_no_unicode_is_refused_in_words(processor):
    with pytest.raises(BadSampleError, match="text is not valid Unicode"):
        processor(text="What \ud83d?")
    with pytest.raises((BadSampleError, ConfigError), match="text is not valid Unicode"):
        processor.apply_chat_template([{"role": "user", "content": "What \ud83d?"}])


def test_samples_with_unlike_numbers_of_images_get_an_image_mask(processor):
    inputs = processor(text=["a", "b", "c"], images=[[RED, BLUE], None, RED])
    assert inputs["pixel_values"].shape == (3, 2, 3, 32, 32)
    assert inputs["image_mask"].tolist() == [[True, True], [False, False], [True, False]]


@pytest.mark.parametrize("settings", [{"return_tensors": "np"}, {"padding": "max_length"}])
def test_other_forms_of_output_are_refused(settings, processor):
    with pytest.raises(ConfigError, match="allowed are 'pt', True or 'longest', and left or right"):
        processor(text="a", **settings)


def message(role, text, *images):
    return {"role": role, "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": text}]}


def test_a_chat_is_framed_like_the_turns_of_training(processor):
    chat = [message("user", "What is it?", RED), message("assistant", "A cat."), message("user", "Which colour?")]
    inputs = processor.apply_chat_template(chat)
    assert inputs["input_ids"].tolist() == [processor.prompt(TURNS)]
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    both = processor.apply_chat_template([chat, chat[:1]], return_dict=False)
    assert both.shape == (2, len(processor.prompt(TURNS)))


def test_a_begun_answer_is_continued(processor):
    chat = [message("user", "What is it?"), message("assistant", "A cat")]
    ids = processor.apply_chat_template(
        chat, continue_final_message=True, add_generation_prompt=False, return_dict=False
    )
    assert processor.decode(ids[0]) == "<s>Question: What is it? Answer: A cat"


@pytest.mark.parametrize("messages, is_begun", [(["user", "assistant"], False), (["user"], True)])
def test_who_spoke_last_must_fit_what_is_asked(messages, is_begun, processor):
    chat = [message(role, "a") for role in messages]
    with pytest.raises(ConfigError, match="the last message must be the user's, or with continue_final"):
        processor.apply_chat_template(chat, continue_final_message=is_begun, add_generation_prompt=True)


def test_a_prompt_that_does_not_end_where_the_answer_begins_is_refused(processor):
    with pytest.raises(ConfigError, match="got add_generation_prompt=False and a chat that ends with the user's"):
        processor.apply_chat_template([message("user", "a")], add_generation_prompt=False)


@pytest.mark.parametrize(
    "settings, what", [({"tools": [{"name": "a"}]}, "tools"), ({"load_audio_from_video": True}, "load_audio")]
)
def test_what_prompts_have_no_place_for_is_refused(settings, what, processor):
    with pytest.raises(ConfigError, match=f"got {what}.* which the prompts of these models have no place for"):
        processor.apply_chat_template([message("user", "a")], **settings)


def test_a_chat_that_ends_with_an_answer_is_the_dialog_of_training(processor):
    chat = [message("user", "What is it?", RED), message("assistant", "A cat.")]
    dialog = encode_dialog(processor.tokenizer, processor.prompt_template, [Turn("What is it?", "A cat.")])
    inputs = processor.apply_chat_template(
        [chat, chat[:1]], return_assistant_tokens_mask=True, processor_kwargs={"padding_side": "right", "padding": True}
    )
    assert tuple(inputs["input_ids"][0].tolist()) == dialog.input_ids
    assert inputs["assistant_masks"][0].bool().tolist() == list(dialog.supervised)
    assert not inputs["assistant_masks"][1].any()
    assert inputs["attention_mask"][1].diff().max() <= 0, "padded on the right"


def test_a_chat_as_text_has_the_tokens_of_training(processor):
    chat = [message("user", "What is it?", RED), message("assistant", "A cat.")]
    dialog = encode_dialog(processor.tokenizer, processor.prompt_template, [Turn("What is it?", "A cat.")])
    prompt, whole = (processor.apply_chat_template(c, tokenize=False) for c in (chat[:1], chat))
    assert whole.startswith(prompt)
    parts = [
        processor(text=text, add_special_tokens=False)["input_ids"][0].tolist()
        for text in (prompt, whole[len(prompt) :])
    ]
    assert tuple(parts[0] + parts[1]) == dialog.input_ids
    begun = processor.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    assert whole.startswith(begun) and len(begun) < len(whole)


def test_another_chat_template_may_be_given(processor):
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}<assistant>"
    text = processor.apply_chat_template([message("user", "a")], template, tokenize=False)
    assert text == "<user>a</s><assistant>"


def test_rows_are_cut_and_padded_as_asked(processor):
    inputs = processor(text=["a b c", "a"], add_special_tokens=False, padding_side="right", pad_to_multiple_of=4)
    assert inputs["input_ids"].shape[1] % 4 == 0
    assert inputs["attention_mask"][:, 0].tolist() == [1, 1]
    assert processor(text="a b c", truncation=True, max_length=2)["input_ids"].shape == (1, 2)


@pytest.mark.filterwarnings("ignore")  # transformers' own, about its pipelines
def test_the_pipeline_of_transformers_answers(processor, model):
    answer = pipeline("image-text-to-text", model=model, processor=processor)
    (plain,) = answer(images=RED, text="What is it?", max_new_tokens=3, return_full_text=False)
    (chat,) = answer(text=[message("user", "What is it?", RED)], max_new_tokens=3, return_full_text=False)
    inputs = processor(RED, "What is it?")
    ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert plain["generated_text"] == chat["generated_text"] == processor.batch_decode(ids, skip_special_tokens=True)[0]


# --- Positions


def with_positions(parts, number, *, image_size=32):
    processor = Processor.from_parts(*parts, max_positions=number)
    processor.image_size = image_size
    return processor


def test_a_dialog_longer_than_the_positions_of_the_language_model_is_bad_and_takes_no_other_along(parts):
    sample = Sample([RED], [CAPTION, TURNS, QUESTION])
    longest = max(len(dialog.input_ids) for dialog in with_positions(parts, None).encode_text(sample))
    fits, short = with_positions(parts, 17 + longest), with_positions(parts, 16 + longest)
    assert len(fits.encode_text(sample)) == 3
    reason = f"^too long for the language model: {17 + longest} positions, {16 + longest} allowed$"
    for encode in (short.encode, short.encode_text, lambda each: short.collate([each])):
        with pytest.raises(BadSampleError, match=reason):
            encode(sample)
    bad = []
    assert short.encode(sample, bad=bad).dialogs == short.encode_text(Sample([RED], [CAPTION, QUESTION]))
    assert len(bad) == 1
    with pytest.raises(BadSampleError, match=reason):
        short.encode(Sample([RED], [TURNS]), bad=[])
    assert len(short.encode_text(Sample([], [TURNS]))) == 1  # the image's positions are free


def test_where_images_bring_their_own_number_of_tokens_that_number_counts(parts):
    (dialog,) = with_positions(parts, None).encode_text(Sample([], [QUESTION]))
    own = with_positions(parts, 16 + len(dialog.input_ids), image_size=None)
    assert own.encode_text(Sample([RED], [QUESTION])) == (dialog,)
    with pytest.raises(BadSampleError, match="too long for the language model"):
        own.encode(Sample([RED], [QUESTION]))


def test_a_processor_knows_the_positions_of_its_language_model(parts, tmp_path):
    processor = Processor.from_parts(*parts)
    assert processor.max_positions == LlamaConfig.from_pretrained(parts[1]).max_position_embeddings
    assert Processor.from_parts(parts[0], processor.tokenizer).max_positions is None
    VisionLanguageModel.from_parts(*parts).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in saved.items() if key != "max_positions"}))
    assert Processor.from_pretrained(tmp_path).max_positions == processor.max_positions  # of the model beside it


# --- Disk


@pytest.mark.parametrize("load", [Processor.from_pretrained, AutoProcessor.from_pretrained])
@pytest.mark.parametrize("name", ["clip", "convnext"])
def test_a_saved_processor_comes_back_the_same(name, load, tokenizer, tmp_path):
    image_processor = getattr(transformers, ENCODERS[name][1])()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    settings = {"num_image_tokens": 9, "template": "USER:\n{prompt}\nASSISTANT:", "max_text_tokens": 30}
    ENCODERS["clip"][0].save_pretrained(tmp_path / "vision")
    image_processor.save_pretrained(tmp_path / "vision")
    saved = Processor.from_parts(tmp_path / "vision", tokenizer, image_size=48, **settings)
    saved.save_pretrained(tmp_path / "saved")
    tokenizer.padding_side = "right"
    loaded = load(tmp_path / "saved")
    assert type(loaded) is Processor
    assert loaded.to_dict() == saved.to_dict()
    assert loaded.tokenizer.padding_side == "left"
    assert loaded.chat_template == loaded.tokenizer.chat_template == tokenizer.chat_template
    sample = Sample([RED, BLUE], [CAPTION, TURNS])
    before, after = saved.encode(sample), loaded.encode(sample)
    assert before.dialogs == after.dialogs
    assert before.num_image_tokens == after.num_image_tokens == (9, 9)
    assert torch.equal(before.vision_inputs["pixel_values"], after.vision_inputs["pixel_values"])


def test_a_folder_of_another_kind_is_refused(parts, tmp_path):
    with pytest.raises(CheckpointError, match="holds no visgraft processor"):
        Processor.from_pretrained(parts[0])
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    with pytest.raises(CheckpointError, match=r"holds no visgraft processor .*Processor.from_parts"):
        Processor.from_pretrained(tmp_path)
