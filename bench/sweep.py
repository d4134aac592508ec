"""Every family of causal language models that transformers has, tiny and random, joined and tried: right or wrong?

In: nothing. Out: one line a family, counts, and a JSON file with both. Each family has a process of its own, with
limits on time and memory. A family counts as right if it is joined and holds all of these: without an image it computes
what the bare model computes; pads and neighbours change nothing; later text moves nothing earlier, and the image moves
every text; shared prefixes have the loss and the gradients of rows; generation with a cache is greedy choice without
one, alone and among neighbours; LoRA goes in, and what of it a loss does not reach is named; a saved model computes the
same.

    python bench/sweep.py [FAMILY ...] -o sweep.json

A refusal is an error of visgraft's own with its reason; any other exception is a fault. `untried` is a family of which
the library's default config cannot be made tiny here, or which cannot run alone.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from visgraft.config import LoraSettings
from visgraft.data.batch import EncodedSample, collate
from visgraft.data.prompt import EncodedDialog
from visgraft.errors import VisgraftError
from visgraft.model.checks.tiny_twin import shrink, shrink_whole
from visgraft.model.trainable import freeze_unused, set_trainable
from visgraft.model.vlm import VisionLanguageModel

TIMEOUT_S, MEMORY_BYTES = 150, 12 * 2**30
VOCABULARY, IMAGE = 64, 5  # tokens; image tokens of the encoder below
# What the default config of a family needs besides `shrink`: it leaves a size open, or has one kind of layer alone.
TWO_KINDS = ["linear_attention", "full_attention"]
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}
INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 64,
           "indexer_compress_ratio": 2}  # fmt: skip
HALF_ROTATED = {"rope_parameters": {kind: {**PLAIN_ROPE, "partial_rotary_factor": 0.5}
                                    for kind in ("indexed_attention", "sliding_attention")}}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64, "patcher_config.vocab_size": 64, "global_config.hidden_size": 64,
            "global_config.head_dim": 16, "global_config.encoder_cross_output_size": None},
    "bamba": {"attn_layer_indices": [1], **MAMBA},
    "bailing_hybrid": {"linear_attn_config": None},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"],
                            "rope_parameters": {"sliding_attention": PLAIN_ROPE, "full_attention": PLAIN_ROPE}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note": HALF_ROTATED,
    "dots3_note_text": HALF_ROTATED,
    "granitemoehybrid": {"layer_types": TWO_KINDS, **MAMBA},
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "marian": {"decoder_vocab_size": 64},
    "nemotron": {"num_key_value_heads": 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "ministral3": {"head_dim": 8},
    "prophetnet": {"num_decoder_layers": 2, "num_encoder_layers": 2, "num_decoder_attention_heads": 4,
                   "num_encoder_attention_heads": 4, "encoder_ffn_dim": 48},
    "qwen4_exp": {"num_key_value_heads": 2, **INDEXER},
    "qwen4_exp_text": {"num_key_value_heads": 2, **INDEXER},
    "deepseek_v2": {"topk_method": "greedy", "first_k_dense_replace": 0, "num_experts_per_tok": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "xlnet": {"d_head": 8, "n_head": 4, "d_inner": 48, "n_layer": 2},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
# Families whose sizes follow from others when the config is made: it is made with these.
MADE_WITH: dict[str, dict[str, Any]] = {
    "dbrx": {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
             "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0},
             "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "xlstm": {"vocab_size": 64, "hidden_size": 128, "num_heads": 4, "num_hidden_layers": 2, "chunk_size": 16},
    "musicgen": {"vocab_size": 64, "max_position_embeddings": 64, "num_hidden_layers": 2, "ffn_dim": 48,
                 "num_attention_heads": 4, "hidden_size": 32, "num_codebooks": 1, "pad_token_id": 64},
}  # fmt: skip
# Families whose class is not that of their text part: the whole is made, with these.
NO_IDS_IN_LAYERS = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
WHOLE: dict[str, dict[str, Any]] = {
    "blt": {},
    "gemma4_assistant": {"text_config": {"model_type": "gemma4_text", "num_kv_shared_layers": 30, **NO_IDS_IN_LAYERS}},
    "gemma4_unified_assistant": {},
    "fuyu": {},
    "gemma3": {},
    "gemma3n": {},
    "gemma4": {},
    "gemma4_unified": {},
    "got_ocr2": {},
    "moss_transcribe_diarize": {},
}
MADE_WITH["musicgen_melody"] = MADE_WITH["musicgen"]


class NotTinyError(Exception):
    """The library makes no tiny model of a family's default config, or its classes do not let themselves be run."""


def tiny_language(name: str) -> Any:
    """Make a tiny random model of a family.

    Raises:
        NotTinyError: in none of the ways that are tried.
    """
    failures, made = [], None
    for make in (*((_whole,) if name in WHOLE else ()), _text_part, _text_part_twice, _as_it_is, _whole):
        try:
            tiny = make(name)
            if hasattr(tiny, "is_decoder"):
                tiny.is_decoder = True
            with torch.device("meta"):
                number = _model(name, tiny).num_parameters()
            if number > 60_000_000:
                raise NotTinyError(f"{number} weights are too many")
            torch.manual_seed(0)
            model = _model(name, tiny).float()
            for parameter in model.parameters():
                if parameter.ndim > 1 or not parameter.any():
                    nn.init.normal_(parameter, std=0.15)
            made = model.eval()
            with torch.no_grad():
                model(input_ids=ids_of(2, 9, seed=0), use_cache=False)
            return model
        except Exception as error:
            failures.append(f"{type(error).__name__}: {str(error)[:150]}")
            if made is not None and name in WHOLE:  # what does not run alone is for the check to refuse
                return made
    raise NotTinyError(next((why for why in failures if "NotTinyError" not in why), failures[0]))


def _text_part(name: str) -> Any:
    if name in MADE_WITH:
        raise NotTinyError("is made with its sizes")
    return _set(shrink(CONFIG_MAPPING[name]().get_text_config(decoder=True)), SETTINGS.get(name, {}))


def _text_part_twice(name: str) -> Any:
    """Shrink to two layers of each kind: some tie weights from one to the other."""
    return _set(shrink(CONFIG_MAPPING[name]().get_text_config(decoder=True), num_each=2), SETTINGS.get(name, {}))


def _as_it_is(name: str) -> Any:
    config = CONFIG_MAPPING[name]().get_text_config(decoder=True)
    if name in MADE_WITH:
        config = type(config)(**MADE_WITH[name])
        if name == "dbrx":
            config.attn_config.rope_theta = 1e4  # which its own default config lacks
    return _set(config, SETTINGS.get(name, {}))


def _whole(name: str) -> Any:
    """Shrink a config and all that it is made of."""
    return _set(shrink_whole(CONFIG_MAPPING[name](**WHOLE.get(name, {}))), SETTINGS.get(name, {}))


def _set(config: Any, settings: dict[str, Any]) -> Any:
    for path, value in settings.items():
        *parts, key = path.split(".")
        own = config
        for part in parts:
            own = getattr(own, part)
        setattr(own, key, value)
    return config


def _model(name: str, config: Any) -> Any:
    """Make a family's model, through `AutoModelForCausalLM` where that knows the config."""
    if type(config) in hf.MODEL_FOR_CAUSAL_LM_MAPPING:
        return hf.AutoModelForCausalLM.from_config(config)
    return getattr(hf, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])._from_config(config)


def tiny_vision() -> Any:
    """Make a tiny random CLIP."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return hf.CLIPVisionModel(hf.CLIPVisionConfig(**sizes, image_size=32, patch_size=16)).eval()


def ids_of(*shape: int, seed: int) -> Tensor:
    """Make token ids."""
    return torch.randint(3, VOCABULARY - 4, shape, generator=torch.Generator().manual_seed(seed))


def pixels_of(number: int) -> Tensor:
    """Make images."""
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(number))


def sample(*lengths: int, images: int = 1) -> EncodedSample:
    """Make a sample whose dialogs have these lengths."""
    dialogs = tuple(
        EncodedDialog(tuple(ids_of(n, seed=n).tolist()), tuple(index > 1 for index in range(n)), n, False)
        for n in lengths
    )
    return EncodedSample(dialogs, {"pixel_values": pixels_of(images)} if images else {}, (IMAGE,) * images, id="s")


class WrongError(AssertionError):
    """An invariant does not hold."""


def compare(first: Tensor, second: Tensor, what: str, *, tolerance: float = 2e-4) -> None:
    """Compare relative to the largest entry."""
    error = float((first.float() - second.float()).abs().max()) if first.numel() else 0.0
    if not error <= tolerance * max(1.0, float(second.float().abs().max())):
        raise WrongError(f"{what}: {error:.1e}")


def check(model: Any, bare: Any, folder: Path) -> None:
    """Hold a joined model against the invariants."""
    pixels = pixels_of(3)
    with torch.no_grad():
        ids = ids_of(2, 9, seed=0)
        compare(model(input_ids=ids).logits, bare(input_ids=ids).logits, "text only")
        check_rows(model, pixels)
        check_generation(model, pixels)
    check_layouts(model)
    check_lora(model, folder)


def check_rows(model: Any, pixels: Tensor) -> None:
    """Pads, neighbours, later text, a changed image."""
    lengths, total = (6, 3, 5), 8
    ids, mask = torch.zeros(3, total, dtype=torch.long), torch.zeros(3, total, dtype=torch.long)
    for row, start in enumerate((0, 4, 2)):
        ids[row, start : start + lengths[row]], mask[row, start : start + lengths[row]] = (
            ids_of(lengths[row], seed=row), 1,
        )  # fmt: skip
    together = model(input_ids=ids, pixel_values=pixels, attention_mask=mask).logits
    for row, length in enumerate(lengths):
        alone = model(input_ids=ids_of(1, length, seed=row), pixel_values=pixels[row : row + 1]).logits[0]
        compare(together[row][torch.cat([torch.ones(IMAGE), mask[row]]).bool()], alone, "padding")
    text = ids_of(1, 6, seed=5)
    plain = model(input_ids=text, pixel_values=pixels[:1]).logits
    other = text.clone()
    other[:, 3] += 1
    moved = (model(input_ids=other, pixel_values=pixels[:1]).logits - plain).abs().amax(-1)[0]
    if float(moved[: IMAGE + 3].max()) > 2e-4 * max(1.0, float(plain.abs().max())):
        raise WrongError(f"later text moves what is before it: {float(moved[: IMAGE + 3].max()):.1e}")
    moved = (model(input_ids=text, pixel_values=pixels[1:2]).logits - plain).abs().amax(-1)[0, IMAGE:]
    if not bool((moved > 0).all()):
        raise WrongError("the image moves not every text")


def check_generation(model: Any, pixels: Tensor) -> None:
    """A cache, neighbours."""
    settings: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 4}
    lengths = (6, 3, 5)
    ids, mask = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length], mask[row, :length] = ids_of(length, seed=row), 1
    together = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, **settings)[:, 6:]
    for row, length in enumerate(lengths):
        text, image = ids_of(1, length, seed=row), pixels[row : row + 1]
        for step in range(4):
            logits = model(input_ids=text, pixel_values=image).logits[0, -1]
            best, second = logits.topk(2).values
            if int(logits.argmax()) != int(together[row, step]):
                if float(best - second) > 1e-3:
                    raise WrongError(f"generation among neighbours takes another token at step {step}")
                break
            text = torch.cat([text, logits.argmax().view(1, 1)], 1)


def check_layouts(model: Any) -> None:
    """Shared prefixes and rows."""
    of = [sample(6, 4, 5), sample(5), sample(4, 6, images=2), sample(5, images=0)]
    found = []
    for layout in ("shared", "rows"):
        out = model.loss(collate(of, layout=layout, pad_token_id=0))  # type: ignore[arg-type]
        model.zero_grad(set_to_none=True)
        out.loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((out.target_losses, grads))
    model.zero_grad(set_to_none=True)
    compare(found[0][0], found[1][0], "loss of shared and rows", tolerance=1e-4)
    if found[0][1].keys() != found[1][1].keys():
        raise WrongError("shared and rows reach other weights")
    largest = max(float(grad.abs().max()) for grad in found[1][1].values())
    for name, grad in found[1][1].items():
        error = float((found[0][1][name] - grad).abs().max())
        if not error <= 1e-3 * max(float(grad.abs().max()), 1e-2 * largest):
            raise WrongError(f"gradients of shared and rows: {name} {error:.1e}")


def check_lora(model: Any, folder: Path) -> None:
    """LoRA, and a folder."""
    of = collate([sample(6, 4), sample(5)], layout="shared", pad_token_id=0)
    report = set_trainable(
        model, modes={"projection": "full", "language": "lora"}, lora={"language": LoraSettings(r=2)}
    )
    freeze_unused(model, report, loss=lambda: model.loss(of).loss_sum)  # named in every run, as cross-attention is
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, parameter in trained:
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    out = model.loss(of)
    out.loss.backward()
    unreached = [name for name, parameter in trained if parameter.grad is None]
    if unreached:
        raise WrongError(f"LoRA that nothing reaches: {unreached[0]} and {len(unreached) - 1} others")
    if model.attention_spec.mixed_precision:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            set_trainable(model, modes={"projection": "full", "language": "lora"}, frozen_dtype=torch.bfloat16,
                          lora={"language": LoraSettings(r=2)})  # fmt: skip
            narrow = model.loss(of)
            narrow.loss.backward()
        if not bool(narrow.loss.isfinite()):
            raise WrongError("the loss in bf16 is no number")
    model.float()
    with torch.no_grad():
        before = model.loss(of).target_losses
        model.save_pretrained(folder, full=True)
        loaded = VisionLanguageModel.from_pretrained(folder)
        compare(loaded.loss(of).target_losses, before, "a saved model", tolerance=1e-5)


def try_family(name: str) -> dict[str, Any]:
    """Try one family; give what came of it."""
    stage, found = "made tiny", {}
    try:
        language = tiny_language(name)
        bare = copy.deepcopy(language)
        stage = "joined"
        try:
            model = VisionLanguageModel.from_parts(tiny_vision(), language)
        except VisgraftError as error:
            if "image_attention: causal" not in str(error):
                raise
            model = VisionLanguageModel.from_parts(tiny_vision(), language, image_attention="causal")
            found["image_attention"] = "causal"
        nn.init.normal_(model.projection.linear.weight, std=0.3) if hasattr(model.projection, "linear") else None
        model.generation_config = hf.GenerationConfig()  # some force a token to the end
        spec = model.attention_spec
        found |= {"sharing": spec.sharing, "behind_cache": spec.behind_cache, "image_is_causal": spec.image_is_causal}
        found |= {} if spec.mixed_precision else {"mixed_precision": False}
        stage = "tried"
        with tempfile.TemporaryDirectory() as folder:
            check(model, bare, Path(folder) / "model")
        return {**found, "result": "right"}
    except NotTinyError as error:
        return {**found, "result": "untried", "why": str(error)}
    except WrongError as error:
        return {**found, "result": "wrong", "why": str(error)}
    except VisgraftError as error:
        return {**found, "result": "refused", "why": str(error)[:300], "stage": stage}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return {
            **found, "result": "exception", "stage": stage,
            "why": f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})",
        }  # fmt: skip


def in_a_process(name: str) -> dict[str, Any]:
    """Try a family in a child that may fail or hang in any way."""
    reader, writer = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        signal.alarm(TIMEOUT_S)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        with (
            Path(os.devnull).open("w") as nothing,
            contextlib.redirect_stdout(nothing),
            contextlib.redirect_stderr(nothing),
        ):
            result = try_family(name)
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    result = json.loads(said) if said else {"result": "died", "why": f"status {status}"}
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    """Sweep all families, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity(50)
    torch.set_num_threads(1)
    results = {}
    for name in arguments.families or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        results[name] = result = in_a_process(name)
        how = " ".join(str(result[key]) for key in ("sharing", "behind_cache", "image_is_causal") if key in result)
        sys.stdout.write(
            f"{name:28} {result['result']:10} {result['seconds']:5.1f} s  {how}  {result.get('why', '')}\n"
        )
        sys.stdout.flush()
    counts = dict(Counter(result["result"] for result in results.values()).most_common())
    sys.stdout.write(f"{len(results)} families: {counts}\n")
    if arguments.output:
        machine = {"transformers": hf.__version__, "torch": torch.__version__}
        arguments.output.write_text(json.dumps({"counts": counts, **machine, "families": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
