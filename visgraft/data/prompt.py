"""Turn dialogs into token ids; training and serving come through the same few lines.

In:  a tokenizer, a PromptTemplate and the turns of one dialog.
Out: EncodedDialog (ids, and which of them carry loss), or the serving prompt's ids.

Prompt and answer are tokenised apart and every answer is closed by the end-of-text token (E):

    turns       ("What is it?", "A cat.")                              ("Colour?", "Red.")
    text        Question: What is it? Answer:| A cat.E|Question: Colour? Answer:| Red.E
    supervised  ..............................|111111|.........................|11111

    encode_dialog(tokenizer, PromptTemplate("question"), [Turn("What is it?", "A cat.")])

A template that holds {image} says where a turn's images stand in its text, as LLaVA's does. What is in front of them
there is the model's own (`text_before_images`), and a dialog's ids begin behind its images:

    template    USER: {image}\\n{prompt} ASSISTANT:
    in front    <s>USER: iiii          ids  \\nWhat is it? ASSISTANT: A cat.</s>
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from visgraft.data.control_tokens import ControlTokens, control_tokens, plain_ids, show
from visgraft.data.sample import Turn
from visgraft.errors import BadSampleError, ConfigError

PROMPT_FIELD = "{prompt}"
INSTRUCTION_FIELD = "{instruction}"
IMAGE_FIELD = "{image}"
CHAT = "chat"
# A named template leaves an empty prompt empty (captioning); a custom string is taken as it was written.
NAMED_TEMPLATES = {
    "plain": PROMPT_FIELD,
    "question": f"Question: {PROMPT_FIELD} Answer:",
    CHAT: "the tokenizer's own chat template",
    "git-llm": f"##Instruction: {INSTRUCTION_FIELD} ##Question: {PROMPT_FIELD} ##Answer:",
    "heron": f"##human: {INSTRUCTION_FIELD} {PROMPT_FIELD}\n##gpt:",
}
_FIELDS = re.compile(r"\{prompt\}|\{instruction\}")
_IMAGE = re.compile(r"\{image\}\n?")  # with the line break behind it, which goes with it
_FOLLOW_UP = "And then?"  # any user message: rendered behind an answer to see how the template closes it
_FIXED_DATE = "26 Jul 2024"  # else templates that print the date would give another prompt every day


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """Name the text around a prompt: a name of NAMED_TEMPLATES or a string that holds {prompt}.

    Where the string holds {instruction} too, a turn's instruction goes there; else it stands in front of the prompt.
    Where it holds {image}, the images of a turn stand there; without images, {image} and one line break behind it are
    left out.

    Raises ConfigError for anything else.
    """

    spec: str

    def __post_init__(self) -> None:
        if self.spec in NAMED_TEMPLATES or PROMPT_FIELD in self.spec:
            if self.places_images and self.spec.count(IMAGE_FIELD) > 1:
                raise ConfigError(f"template: got {self.spec!r}, where {IMAGE_FIELD} stands more than once; need one")
            if self.places_images and not self.spec.index(IMAGE_FIELD) < self.spec.index(PROMPT_FIELD):
                raise ConfigError(f"template: got {self.spec!r}; {IMAGE_FIELD} must stand in front of {PROMPT_FIELD}")
            return
        near = get_close_matches(self.spec, NAMED_TEMPLATES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"template: got {self.spec!r}; {hint}allowed are {', '.join(NAMED_TEMPLATES)} "
            f"or a string that contains {PROMPT_FIELD}"
        )

    @property
    def places_images(self) -> bool:
        """Say whether it holds {image}."""
        return IMAGE_FIELD in self.spec

    def fill(self, turn: Turn, *, image: str = "", num_images: int = 0) -> str:
        """Return the text in front of a turn's answer; of the chat template see encode_dialog.

        Args:
            turn: prompt and instruction.
            image: what stands for an image, where the template holds {image}.
            num_images: of this turn.
        """
        assert self.spec != CHAT, "the chat template needs the tokenizer"
        if self.places_images:
            [found] = _IMAGE.findall(self.spec)
            images = found.replace(IMAGE_FIELD, image) * num_images
            return PromptTemplate(_IMAGE.sub(lambda _: images, self.spec)).fill(turn)
        named = NAMED_TEMPLATES.get(self.spec)
        if named is not None and not turn.request:
            return ""
        if self.spec == "plain" and not turn.instruction:
            return turn.prompt
        text, prompt = (self.spec, turn.prompt) if named is None else (named, turn.prompt.strip())
        if self.spec == "heron" and not turn.instruction:  # it has no place for what is not there
            text = text.replace(f"{INSTRUCTION_FIELD} ", "")
        if INSTRUCTION_FIELD not in text:
            prompt = turn.request if turn.instruction else prompt
        # in one go, as the text of one field may hold the name of the other
        parts = {PROMPT_FIELD: prompt, INSTRUCTION_FIELD: turn.instruction.strip()}
        return _FIELDS.sub(lambda field: parts[field[0]], text)


@dataclass(frozen=True, slots=True)
class EncodedDialog:
    """Hold one dialog as ids; supervised[i] says that input_ids[i] is a target (answer or end-of-text).

    input_ids, supervised: [T]. The first id is never supervised. num_answer_characters counts the answers'
    characters that are left after truncation (leading space and end-of-text not counted).
    """

    input_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    num_answer_characters: int
    truncated: bool


def encode_dialog(
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    turns: Sequence[Turn],
    *,
    max_text_tokens: int | None = None,
    image_turns: Collection[int] = (),
) -> EncodedDialog:
    """Encode a dialog for training; what exceeds max_text_tokens is cut from its end.

    `image_turns` are the indices of the turns that have images, which matter where the template holds {image}.

    Raises BadSampleError for an empty answer and where no answer token is left, ConfigError for a tokenizer that
    lacks end-of-text or a usable chat template.
    """
    if any(not turn.answer.strip() for turn in turns):
        raise BadSampleError("answer is empty")
    ids: list[int] = []
    supervised: list[bool] = []
    num_characters = 0
    for turn, (prompt_ids, answer_ids) in zip(
        turns, _encode_turns(tokenizer, template, turns, image_turns), strict=True
    ):
        if len(answer_ids) < 2:  # end-of-text alone
            raise BadSampleError("answer has no tokens")
        ids += prompt_ids
        room = len(answer_ids) - 1 if max_text_tokens is None else max(0, max_text_tokens - len(ids))
        num_characters += _count_characters(tokenizer, turn.answer.strip(), answer_ids[:-1], room)
        ids += answer_ids
        supervised += [False] * len(prompt_ids) + [True] * len(answer_ids)
    truncated = max_text_tokens is not None and len(ids) > max_text_tokens
    if truncated:
        ids, supervised = ids[:max_text_tokens], supervised[:max_text_tokens]
        if not any(supervised):
            raise BadSampleError(f"prompt leaves no room for the answer (max_text_tokens {max_text_tokens})")
    return EncodedDialog(tuple(ids), tuple(supervised), num_characters, truncated)


def encode_any_dialog(
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    turns: Sequence[Turn],
    *,
    image_turns: Collection[int] = (),
) -> EncodedDialog:
    """Encode a dialog as `encode_dialog` does, or where its last answer is empty, up to where that begins."""
    if turns[-1].answer.strip():
        return encode_dialog(tokenizer, template, turns, image_turns=image_turns)
    pairs = list(_encode_turns(tokenizer, template, turns, image_turns))
    parts = [(ids, is_answer) for pair in pairs for is_answer, ids in enumerate(pair)][:-1]
    marks = tuple(bool(is_answer) for ids, is_answer in parts for _ in ids)
    return EncodedDialog(tuple(token for ids, _ in parts for token in ids), marks, 0, False)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    turns: Sequence[Turn],
    *,
    image_turns: Collection[int] = (),
) -> list[int]:
    """Encode the serving prompt: all turns, but of the last one its prompt only.

    Equals encode_dialog(...).input_ids cut before the last answer; raises the same ConfigErrors.
    """
    return [token for ids in encode_prompt_turns(tokenizer, template, turns, image_turns=image_turns) for token in ids]


def encode_prompt_turns(
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    turns: Sequence[Turn],
    *,
    image_turns: Collection[int] = (),
) -> list[list[int]]:
    """Encode the serving prompt as `encode_prompt` does, turn by turn, so that images may stand between."""
    pairs = list(_encode_turns(tokenizer, template, turns, image_turns))
    return [*(prompt_ids + answer_ids for prompt_ids, answer_ids in pairs[:-1]), pairs[-1][0]]


def render_dialog(
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    turns: Sequence[Turn],
    *,
    image_turns: Collection[int] = (),
    is_begun: bool = False,
) -> str:
    """Write a dialog as a text whose plain tokens are those that the model is trained on; see `encode_dialog`.

    The last answer may be empty: the text then ends where it begins. A prompt and its answer are tokenised apart, so
    whoever tokenises the text cuts it there.

    Args:
        tokenizer, template, turns, image_turns: as there.
        is_begun: leave out the token that closes the last answer.

    Raises:
        ConfigError: no text has these tokens.
    """
    pairs = list(_encode_turns(tokenizer, template, turns, image_turns))
    whole = [ids for pair in pairs for ids in pair]
    text = _text_of(tokenizer, [token for ids in whole[:-1] for token in ids])
    if not turns[-1].answer.strip():
        return text
    return text + _text_of(tokenizer, whole[-1][:-1] if is_begun else whole[-1])


def _text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if rendered_ids(tokenizer, text) != ids:
        raise ConfigError(
            f"apply_chat_template(tokenize=False): this tokenizer reads the text {text!r} as other tokens than the "
            "model is trained on; tokenize at once (tokenize=True)"
        )
    return text


def rendered_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode a text that is framed already, as `render_dialog` writes it: nothing is added."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def text_before_images(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> dict[str, list[int]] | None:
    """Return the ids that stand in front of images in a template that holds {image}; None = it holds none.

    `first`: in front of the images of a dialog's first turn; `later`: of a later turn; `next`: between two images.

    Raises ConfigError where the tokenizer has no token for an image.
    """
    if not template.places_images:
        return None
    image_id = _image_token_id(tokenizer)
    turn = Turn("a", "")
    ids = []
    for is_first in (True, False):
        text = template.fill(turn, image=_image_token(tokenizer), num_images=2)
        encoded = control_tokens(tokenizer).encode(text)
        ids.append(_ids_in_front(tokenizer, text, encoded) + encoded if is_first else encoded)
    first, later = ids
    start, behind = first.index(image_id), first[first.index(image_id) + 1 :]
    between = behind[: behind.index(image_id)]
    return {"first": first[:start], "later": later[: later.index(image_id)], "next": between}


def end_token_id(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> int:
    """Return the id of the token that closes every answer, where generation has to stop.

    It is the tokenizer's end-of-text token, or of a chat template the special token behind an assistant's message.
    """
    return _chat_texts(tokenizer, [Turn("", "Yes.")])[1] if template.spec == CHAT else _end_of_text_id(tokenizer)


def _encode_turns(
    tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, turns: Sequence[Turn], image_turns: Collection[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield per turn the prompt's ids and the answer's ids, the latter closed by the end-of-text token.

    Where the template holds {image}, those of a turn with images begin behind its images.
    """
    if not turns:
        raise BadSampleError("dialog has no turns")
    is_chat = template.spec == CHAT
    controls = control_tokens(tokenizer)
    hidden = [_hide(turn, controls) for turn in turns]
    image_turns = image_turns if template.places_images else ()
    texts, end_id = (
        _chat_texts(tokenizer, hidden) if is_chat else _filled_texts(tokenizer, template, hidden, image_turns)
    )
    for index, (prompt, answer) in enumerate(texts):
        if prompt.endswith(" "):
            prompt, answer = prompt.rstrip(" "), " " + answer.lstrip(" ")
        prompt_ids = controls.encode(prompt)
        if index in image_turns:
            prompt_ids = prompt_ids[prompt_ids.index(_image_token_id(tokenizer)) + 1 :]
        elif index == 0 and prompt_ids and not is_chat:  # a chat template writes its own start token
            prompt_ids = _ids_in_front(tokenizer, show(prompt), prompt_ids) + prompt_ids
        if index == 0 and not prompt_ids:
            prompt_ids = [_start_token_id(tokenizer)]
        if answer.startswith(" ") and _puts_space_in_front(tokenizer):
            answer = answer[1:]
        yield prompt_ids, [*controls.encode(answer), end_id]


def _hide(turn: Turn, controls: ControlTokens) -> Turn:
    """Return a turn whose control tokens stand for nothing but their characters."""
    shown = (turn.prompt, turn.answer, turn.instruction)
    prompt, answer, instruction = hidden = tuple(map(controls.hide, shown))
    return turn if hidden == shown else replace(turn, prompt=prompt, answer=answer, instruction=instruction)


def _filled_texts(
    tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, turns: Sequence[Turn], image_turns: Collection[int]
) -> tuple[list[tuple[str, str]], int]:
    """Return (prompt, answer with its leading space) per turn, and the id of end-of-text."""
    texts = []
    image = _image_token(tokenizer) if image_turns else ""
    for index, turn in enumerate(turns):
        prompt = template.fill(turn, image=image, num_images=int(index in image_turns))
        space = " " if prompt and not prompt[-1].isspace() else ""
        texts.append((prompt, space + turn.answer.strip()))
    return texts, _end_of_text_id(tokenizer)


def _chat_texts(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> tuple[list[tuple[str, str]], int]:
    """Return the same of the chat template: a prompt is what stands between two answers.

    Each answer is seen with a user message behind it, as every later turn will see it: some templates write the very
    last answer differently (with an empty thinking block, say).
    """
    messages: list[dict[str, str]] = [{"role": "user", "content": turns[0].request}]
    rendered = _render(tokenizer, messages)
    rest = rendered
    texts: list[tuple[str, str]] = []
    end_id = None
    for index, turn in enumerate(turns):
        answer = turn.answer.strip()
        following = turns[index + 1].request if index + 1 < len(turns) else _FOLLOW_UP
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": following}]
        longer = _render(tokenizer, messages)
        behind = longer[len(rendered) :]
        space = behind[: len(behind) - len(behind.lstrip())] if answer else ""
        if not longer.startswith(rendered) or not behind.startswith(space + answer):
            raise ConfigError(
                "template: the tokenizer's chat template rewrites earlier messages when a message is added, so a "
                "dialog has no fixed text; set template to 'question' or to a string that contains {prompt}"
            )
        texts.append((rest, space + answer))
        rest, end_id = _cut_end_token(tokenizer, behind[len(space + answer) :])
        rendered = longer
    return texts, _end_of_text_id(tokenizer) if end_id is None else end_id


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    if not tokenizer.chat_template:
        raise ConfigError(
            "template: got 'chat', but this tokenizer has no chat template; "
            "set template to 'question', 'plain' or a string that contains {prompt}"
        )
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, date_string=_FIXED_DATE
        )
    except (TemplateError, TypeError) as error:
        raise ConfigError(
            f"template: the tokenizer's chat template refuses user and assistant messages ({error}); "
            "set template to 'question' or to a string that contains {prompt}"
        ) from error
    return cast(str, text)


def _cut_end_token(tokenizer: PreTrainedTokenizerBase, behind: str) -> tuple[str, int | None]:
    """Split the text behind an answer: what follows its closing special token, and that token's id (None: no such)."""
    text = behind.lstrip()
    closing = {
        token.content: token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and text.startswith(token.content)
    }
    if not closing:
        return behind, None
    token = max(closing, key=len)
    return text[len(token) :], int(closing[token])


def _ids_in_front(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """Return what the tokenizer itself puts in front of a text (BOS, CLS, ...); what it appends is not wanted."""
    whole = list(tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])
    for start in range(len(whole) - len(ids) + 1):
        if whole[start : start + len(ids)] == ids:
            return whole[:start]
    if text != "a":  # control tokens in the text, which are no characters to the tokenizer; the same stands in front
        return _ids_in_front(tokenizer, "a", plain_ids(tokenizer, "a"))
    raise ConfigError("the tokenizer gives a text other tokens when it adds its special tokens; use another tokenizer")


def _image_token(tokenizer: PreTrainedTokenizerBase) -> str:
    token = getattr(tokenizer, "image_token", None)
    if token is None:
        raise ConfigError(
            f"template: got {IMAGE_FIELD}, but this tokenizer names no image_token to stand there; leave {IMAGE_FIELD} "
            "out, and images stand in front of the text"
        )
    return str(token)


def _image_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.convert_tokens_to_ids(_image_token(tokenizer)))  # type: ignore[arg-type]


def _start_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return _end_of_text_id(tokenizer) if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)


def _end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "this tokenizer has no end-of-text token, so answers could not end; "
            "set its eos_token to the token that ends a text and save it again"
        )
    return int(tokenizer.eos_token_id)


@lru_cache(maxsize=16)
def _puts_space_in_front(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether a text tokenised by itself already reads as a new word (SentencePiece's dummy prefix, word lists)."""
    ids = plain_ids(tokenizer, "a")
    return " " in str(tokenizer.decode(ids + ids, clean_up_tokenization_spaces=False)).strip()


def _count_characters(tokenizer: PreTrainedTokenizerBase, answer: str, answer_ids: list[int], num_kept: int) -> int:
    """Return how many characters of the answer are left when its first num_kept tokens are."""
    if num_kept >= len(answer_ids):
        return len(answer)
    return len(str(tokenizer.decode(answer_ids[:num_kept], clean_up_tokenization_spaces=False)).strip())
