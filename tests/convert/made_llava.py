"""Tiny LLaVA folders of transformers, as llava-hf's are on disk: CLIP, an MLP, a language model, a processor.

In: an empty folder. Out: its path, and transformers' own model and processor of it.
Usage: `llava, processor = save_llava(tmp_path / "llava")`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
)

from tests.data.made_tokenizers import TOKENIZERS
from tests.tiny import randomise
from tests.training.tiny import CLIP, PATCH, SIDE

# That of llava-hf/llava-1.5-7b-hf, in our own words: roles in capitals, all images first, then all texts.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def save_llava(
    folder: Path, *, text_config: PreTrainedConfig | None = None, tokenizer: str = "llama, always", **settings: Any
) -> tuple[Any, Any]:
    """Save a LLaVA and its processor, and load both with transformers' own classes."""
    made = TOKENIZERS[tokenizer]()
    made.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    made.chat_template = None
    image_id = made.convert_tokens_to_ids("<image>")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": len(made)}
    text = text_config or LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=96)
    text.vocab_size = len(made)
    config = LlavaConfig(vision_config=CLIP, text_config=text, image_token_index=image_id, **settings)
    torch.manual_seed(3)
    randomise(LlavaForConditionalGeneration(config), seed=3).save_pretrained(folder)
    strategy = config.vision_feature_select_strategy
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        tokenizer=made,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return LlavaForConditionalGeneration.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
