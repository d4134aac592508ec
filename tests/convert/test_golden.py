"""An import computes what the original code computed: golden tensors of five checkpoints and of the image processor."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import visgraft
from tests.convert import restatement
from visgraft import VisionLanguageModel
from visgraft.data.images.pixels import make_pixels
from visgraft.data.tokenizer_and_image_processor import load_image_processor

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "golden"
CASES = ["gitllm-opt", "gitllm-llama", "gitllm-mpt", "gitllm-llama-lora", "heron-neox"]
WHOLE_CASES = [case for case in CASES if case != "gitllm-llama-lora"]
NUM_TOKENS = 17
Load = Callable[[str], tuple[VisionLanguageModel, dict[str, Tensor]]]
# the originals' names -> ours
NAMES = {
    "visual_projection.visual_projection.0.": "projection.linear.",
    "visual_projection.visual_projection.1.": "projection.norm.",
    "image_encoder.vision_model.": "vision.",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imported")


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    @functools.cache
    def load_case(case: str) -> tuple[VisionLanguageModel, dict[str, Tensor]]:
        visgraft.import_git_llm(GOLDEN / case, folder / case)
        model = VisionLanguageModel.from_pretrained(folder / case)
        return model, load_file(GOLDEN / case / "io.safetensors")

    return load_case


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def our_name(name: str) -> str:
    root = next(root for root in ("gpt_neox.", "transformer.", "model.") if name.startswith(root))
    inside = name.removeprefix(root)
    for theirs, ours in NAMES.items():
        if inside.startswith(theirs):
            return ours + inside.removeprefix(theirs)
    return f"language.{name}"


@pytest.mark.parametrize("case", CASES)
def test_logits_losses_and_gradients(case: str, load: Load) -> None:
    model, io = load(case)
    model.requires_grad_(True)
    ids, pixels, mask = io["in.input_ids"], io["in.pixel_values"], io["in.attention_mask"]
    output = model(input_ids=ids, pixel_values=pixels, attention_mask=mask, labels=io["in.labels"])
    close(output.logits, io["out.logits"])
    close(output.loss[None], io["out.loss"], 1e-5)
    expected = {our_name(name.removeprefix("grad.")): grad for name, grad in io.items() if name.startswith("grad.")}
    parameters = {name.replace(".base_layer.", "."): one for name, one in model.named_parameters()}
    # the encoder's names in memory are transformers' own affair: found by their end
    chosen = [parameters[name] if name in parameters else _by_end(parameters, name) for name in expected]
    for name, own, grad in zip(expected, torch.autograd.grad(output.loss, chosen), expected.values(), strict=True):
        close(own / grad.abs().max(), grad / grad.abs().max())
        assert own.abs().max() > 0, name
    if "in.labels_ignore" in io:
        ignoring = model(input_ids=ids, pixel_values=pixels, attention_mask=mask, labels=io["in.labels_ignore"])
        close(ignoring.loss[None], io["out.loss_ignore"], 1e-5)


def _by_end(parameters: dict[str, torch.nn.Parameter], name: str) -> torch.nn.Parameter:
    end = name.removeprefix("vision.")
    (found,) = (one for path, one in parameters.items() if path.startswith("vision.") and path.endswith(end))
    return found


@pytest.mark.parametrize("case", WHOLE_CASES)
def test_text_alone(case: str, load: Load) -> None:
    model, io = load(case)
    mask = io["in.attention_mask"].bool()
    logits = model(input_ids=io["in.input_ids"], attention_mask=mask).logits
    close(logits[mask], io["textonly.logits"][mask])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens(case: str, use_cache: bool, load: Load) -> None:
    model, io = load(case)
    ids, pixels = io["gen.input_ids"], io["gen.pixel_values"]
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "use_cache": use_cache}
    tokens = model.generate(input_ids=ids, pixel_values=pixels, **settings)
    assert tokens[:, 6:].tolist() == io["gen.nocache_tokens"].tolist()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("case", WHOLE_CASES)
def test_beams(case: str, use_cache: bool, load: Load) -> None:
    model, io = load(case)
    settings = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None, "use_cache": use_cache}
    tokens = model.generate(input_ids=io["beam3.input_ids"], pixel_values=io["beam3.pixel_values"], **settings)
    assert tokens.tolist() == io["beam3.sequences"].tolist()


@pytest.mark.parametrize("case", WHOLE_CASES)
def test_a_left_padded_row_is_the_row_alone(case: str, load: Load) -> None:
    model, io = load(case)
    inputs = {name: io[f"leftpad.{name}"] for name in ("input_ids", "attention_mask", "pixel_values")}
    logits = model(**inputs).logits[1]
    expected = io["leftpad.row1_unpadded_logits"][0]
    close(logits[:NUM_TOKENS], expected[:NUM_TOKENS])
    close(logits[NUM_TOKENS + 3 :], expected[NUM_TOKENS:])
    for use_cache in (True, False):
        settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "use_cache": use_cache}
        tokens = model.generate(**inputs, **settings)[1, 9:]
        assert tokens.tolist() == io["leftpad.row1_unpadded_gen_tokens"][0].tolist()


def test_a_bidirectional_image_of_gpt_neox(folder: Path) -> None:
    io = load_file(GOLDEN / "heron-neox" / "io.safetensors")
    report = visgraft.import_git_llm(GOLDEN / "heron-neox", folder / "bidirectional", image_attention="bidirectional")
    model = VisionLanguageModel.from_pretrained(report)
    output = model(
        input_ids=io["in.input_ids"],
        pixel_values=io["in.pixel_values"],
        attention_mask=io["in.attention_mask"],
        labels=io["in.labels"],
    )
    close(output.logits, io["out_bidir.logits"])
    close(output.loss[None], io["out_bidir.loss"], 1e-5)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    tokens = model.generate(input_ids=io["gen.input_ids"], pixel_values=io["gen.pixel_values"], **settings)
    assert tokens[:, 6:].tolist() == io["gen_bidir.nocache_tokens"].tolist()


@pytest.mark.parametrize("case", CASES)
def test_the_restatement_of_the_tests_is_right(case: str) -> None:
    io, state = load_file(GOLDEN / case / "io.safetensors"), load_file(GOLDEN / case / "model.safetensors")
    values = json.loads((GOLDEN / case / "config.json").read_text())
    ids, mask = io["in.input_ids"], io["in.attention_mask"]
    logits = restatement.forward(values, state, ids, pixels=io["in.pixel_values"], mask=mask)
    close(logits, io["out.logits"])
    close(restatement.loss(logits, io["in.labels"])[None], io["out.loss"], 1e-5)
    tokens = restatement.greedy(values, state, io["gen.input_ids"], io["gen.pixel_values"], steps=8)
    assert tokens.tolist() == io["gen.nocache_tokens"].tolist()


@pytest.mark.parametrize("name", ["exact", "landscape", "portrait", "small", "square", "wide"])
def test_pixels_are_those_of_the_original(name: str) -> None:
    io = load_file(GOLDEN / "preprocess" / "io.safetensors")
    image = Image.fromarray(io[f"{name}.image_u8_hwc"].numpy())
    pixels = make_pixels(load_image_processor(GOLDEN / "preprocess"), [image])["pixel_values"][0]
    close(pixels, io[f"{name}.pixel_values"], 1e-5)
