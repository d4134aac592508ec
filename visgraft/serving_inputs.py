"""Prompts about images and chats, as the model takes them: what the processor does where nothing is trained by us.

In: prompts or messages, with images. Out: the inputs of `generate` and `forward`, or text. This is half of the class
`Processor`, the half that transformers' and trl's processors have too.

    inputs = processor(images="cat.jpg", text="What is it?")
    inputs = processor.apply_chat_template(messages)

Axis letters: B samples, F images of one sample, T text tokens.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from visgraft.data.images.opening import open_image
from visgraft.data.images.pixels import stack_frames
from visgraft.data.messages import Images, Messages, check_last, pair_prompts, pair_rendered, read_messages
from visgraft.data.prompt import CHAT, PromptTemplate, encode_any_dialog, encode_prompt, render_dialog, rendered_ids
from visgraft.data.prompt_rows import check_padding, pad_rows
from visgraft.data.sample import ImageRef, Turn
from visgraft.errors import ConfigError


class ServingInputs(ProcessorMixin):
    """Frame prompts and chats, and make one batch of them and of their images' pixels."""

    prompt_template: PromptTemplate

    @abc.abstractmethod
    def make_pixels(
        self, refs: Sequence[ImageRef], opened: Sequence[Image.Image], *, exact: bool = True, as_bytes: bool = False
    ) -> dict[str, Tensor]:
        """Make what the encoder takes of images."""

    def prompt(self, turns: Sequence[Turn], *, has_images: bool = False) -> list[int]:
        """Encode what the model is given to answer the last turn; that turn's own answer is ignored.

        `has_images` says whether images stand in front; it matters where the template holds {image}.
        """
        image_turns = _image_turns(has_images)
        return encode_prompt(self.tokenizer, self.prompt_template, turns, image_turns=image_turns)

    def __call__(
        self,
        images: Images | None = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = True,
        return_tensors: str = "pt",
        add_special_tokens: bool = True,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool | None = None,
        max_length: int | None = None,
    ) -> BatchFeature:
        """Make the inputs of `generate` for prompts about images.

        Args:
            images: one image; a list (the images of one prompt, or one for each prompt); a list of lists. None in a
                list, or in place of it, means no image.
            text: the prompts (questions, say), which the template frames; None = captions, one for each image.
            padding: True; prompts are padded to the longest.
            return_tensors: "pt".
            add_special_tokens: False = the texts are framed already, as `apply_chat_template(tokenize=False)` writes
                them (trl does): their tokens are taken as they are.
            padding_side: left (the default) or right.
            pad_to_multiple_of: the length is a multiple of this.
            truncation: cut what is longer than `max_length` from the end; True needs it.
            max_length: the most tokens of a text.

        Returns:
            `input_ids` and `attention_mask` [B, T]; with images `pixel_values` [B, 3, H, W] float, normalised by the
            encoder's own mean/std, or where some sample has not just one image [B, F, 3, H, W] with `image_mask`
            [B, F], True = a real image.

        Raises:
            BadSampleError: an image cannot be used.
            ConfigError: the numbers of prompts and images differ, or another kind of output is asked for.
        """
        if add_special_tokens or text is None:
            prompts, groups = pair_prompts(text, images=images)
            pairs = zip(prompts, groups, strict=True)
            ids = [self.prompt([Turn(prompt, "")], has_images=bool(group)) for prompt, group in pairs]
        else:
            texts, groups = pair_rendered(text, images=images)
            ids = [rendered_ids(self.tokenizer, each) for each in texts]
        return self._inputs(
            ids,
            groups,
            padding=padding,
            return_tensors=return_tensors,
            padding_side=padding_side,
            pad_to_multiple_of=pad_to_multiple_of,
            max_length=max_length if truncation else None,
        )

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Messages | Sequence[Messages],
        chat_template: str | None = None,
        *,
        tools: Sequence[Any] | None = None,
        tokenize: bool = True,
        return_dict: bool = True,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        return_tensors: str = "pt",
        return_assistant_tokens_mask: bool = False,
        load_audio_from_video: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
    ) -> BatchFeature | Tensor | str | list[str]:
        """Make the inputs of the model for one chat or several, framed by the processor's own template.

        A chat that ends with the user's message ends where the answer begins; one that ends with the assistant's is a
        whole dialog, as it is trained on, closed by the token that ends answers.

        Args:
            conversation: messages as `read_messages` describes them, or a list of such chats.
            chat_template: a template of the tokenizer's form, instead of the processor's own.
            tools: none, as no prompt of these models holds any.
            tokenize: False = a text, for `processor(text=..., add_special_tokens=False)`.
            return_dict: False = `input_ids` alone.
            add_generation_prompt: True = the chat must end with the user's message; False = with the assistant's.
            continue_final_message: go on with the assistant's last message instead of closing it.
            return_tensors: "pt".
            return_assistant_tokens_mask: add `assistant_masks` [B, T] long, 1 = a token of an answer, its end included.
            load_audio_from_video: False, as no encoder of these models hears.
            processor_kwargs: `padding`, `padding_side` and so on, as `__call__` takes them.

        Raises:
            BadSampleError: an image cannot be used.
            ConfigError: the messages are in another format, or something is asked for that these models lack.
        """
        if tools or load_audio_from_video:
            given = "tools" if tools else "load_audio_from_video=True"
            raise ConfigError(f"apply_chat_template: got {given}, which the prompts of these models have no place for")
        is_single = isinstance(conversation[0], Mapping)
        chats = [conversation] if is_single else conversation
        read = [read_messages(chat) for chat in chats]  # type: ignore[arg-type]
        tokenizer, template = self._chat_tools(chat_template)
        for turns, _ in read:
            check_last(turns, add_generation_prompt=add_generation_prompt, is_begun=continue_final_message)
        if not tokenize:
            is_begun = continue_final_message
            texts = [
                render_dialog(tokenizer, template, turns, image_turns=_image_turns(bool(images)), is_begun=is_begun)
                for turns, images in read
            ]
            return texts[0] if is_single else texts
        dialogs = [
            encode_any_dialog(tokenizer, template, turns, image_turns=_image_turns(bool(images)))
            for turns, images in read
        ]
        cut = -1 if continue_final_message else None  # all but its end-of-text
        settings = dict(processor_kwargs or {})
        truncation = settings.pop("truncation", None)
        settings["max_length"] = settings.get("max_length") if truncation else None
        settings.pop("add_special_tokens", None)  # the template has said what stands there
        inputs = self._inputs(
            [list(dialog.input_ids[:cut]) for dialog in dialogs],
            [images for _, images in read],
            masks={"assistant_masks": [list(dialog.supervised[:cut]) for dialog in dialogs]}
            if return_assistant_tokens_mask
            else {},
            **{"padding": True, "return_tensors": return_tensors, **settings},
        )
        return inputs if return_dict else inputs["input_ids"]

    def _chat_tools(self, chat_template: str | None) -> tuple[PreTrainedTokenizerBase, PromptTemplate]:
        """Return tokenizer and template for chats, with another chat template where one is given."""
        if chat_template is None or chat_template == self.chat_template:
            return self.tokenizer, self.prompt_template
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = chat_template
        return tokenizer, PromptTemplate(CHAT)

    def _inputs(
        self,
        ids: list[list[int]],
        groups: list[list[ImageRef]],
        *,
        padding: bool | str,
        return_tensors: str,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        max_length: int | None = None,
        masks: Mapping[str, list[list[int]]] | None = None,
    ) -> BatchFeature:
        check_padding(return_tensors=return_tensors, padding=padding, padding_side=padding_side)
        pixels = [self.make_pixels(refs, [open_image(ref) for ref in refs]) for refs in groups]
        rows = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], **(masks or {})}
        tensors = {
            name: pad_rows(
                each,
                pad=self._pad_token_id if name == "input_ids" else 0,
                padding_side=padding_side or "left",
                multiple_of=pad_to_multiple_of or 1,
                max_length=max_length,
            )
            for name, each in rows.items()
        }
        return BatchFeature({**tensors, **stack_frames(pixels)})

    @property
    def _pad_token_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)


def _image_turns(has_images: bool) -> tuple[int, ...]:
    """Name the turns that images stand in front of: all images are the prefix of the whole chat."""
    return (0,) if has_images else ()
