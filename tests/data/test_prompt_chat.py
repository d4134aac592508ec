import pytest

from tests.data.made_tokenizers import TOKENIZERS, answers_of, byte_level, wrap
from visgraft.data.prompt import PromptTemplate, encode_dialog, encode_prompt, end_token_id
from visgraft.data.sample import Turn
from visgraft.errors import ConfigError

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]"
    "{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
# Like Qwen3: only the very last message shows its thinking.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think></think>"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


TURNS = [Turn("What is it?", "A cat on a sofa."), Turn("Which colour?", "Red, I think.")]
DIALOGS = [[Turn("", "a cat on a sofa")], TURNS[:1], TURNS, [Turn("What is it?", "A cat on a sofa."), Turn("", "Red,")]]


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make() for name, make in TOKENIZERS.items()}


@pytest.mark.parametrize("name", ["qwen without bos", "gpt2", "llama, always", "mistral, first", "gemma-like"])
@pytest.mark.parametrize("chat_template", [CHATML, LLAMA2, THINKING])
@pytest.mark.parametrize("turns", [DIALOGS[0], TURNS[:1], TURNS])
def test_a_chat_template_holds_to_the_same_rules(tokenizers, name, chat_template, turns):
    tokenizer = tokenizers[name]
    tokenizer.chat_template = chat_template
    template = PromptTemplate("chat")
    encoded = encode_dialog(tokenizer, template, turns)
    end = tokenizer.eos_token if chat_template == LLAMA2 else "<|im_end|>"
    assert [text.removeprefix(" ") for text in answers_of(tokenizer, encoded)] == [t.answer + end for t in turns]
    assert encoded.input_ids[-1] == end_token_id(tokenizer, template)
    prompt_ids = encode_prompt(tokenizer, template, [*turns[:-1], Turn(turns[-1].prompt, "not known yet")])
    assert list(encoded.input_ids[: len(prompt_ids)]) == prompt_ids and all(encoded.supervised[len(prompt_ids) :])


@pytest.mark.parametrize("chat_template", [CHATML, THINKING])
def test_a_chat_prompt_is_the_template_rendering_token_by_token(tokenizers, chat_template):
    tokenizer = tokenizers["qwen without bos"]
    tokenizer.chat_template = chat_template
    messages = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A cat on a sofa."},
        {"role": "user", "content": "Which colour?"},
    ]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(tokenizer, PromptTemplate("chat"), TURNS) == ids


def test_a_chat_template_that_strips_still_gives_the_text_it_renders(tokenizers):
    tokenizer = tokenizers["gpt2"]
    tokenizer.chat_template = LLAMA2
    encoded = encode_dialog(tokenizer, PromptTemplate("chat"), [Turn("What is it?", " A cat on a sofa. ")])
    assert tokenizer.decode(encoded.input_ids) == "</s>[INST] What is it? [/INST] A cat on a sofa.</s>"


def test_a_chat_template_without_a_closing_token_ends_with_end_of_text(tokenizers):
    tokenizer = tokenizers["opt, llama 3"]
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    encoded = encode_dialog(tokenizer, PromptTemplate("chat"), TURNS)
    assert tokenizer.decode(encoded.input_ids) == (
        "user: What is it?\nassistant: A cat on a sofa.</s>\nuser: Which colour?\nassistant: Red, I think.</s>"
    )


def test_the_longest_closing_token_of_a_chat_template_counts():
    tokenizer = wrap(byte_level())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|end|>!"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|end|>!{% endfor %}"
    assert end_token_id(tokenizer, PromptTemplate("chat")) == tokenizer.convert_tokens_to_ids("<|end|>!")


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizers):
    tokenizers["gpt2"].chat_template = None
    with pytest.raises(ConfigError, match="got 'chat', but this tokenizer has no chat template"):
        encode_prompt(tokenizers["gpt2"], PromptTemplate("chat"), TURNS)


def test_a_chat_template_that_rewrites_history_is_refused(tokenizers):
    tokenizer = tokenizers["gpt2"]
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}\n{% endfor %}"
    with pytest.raises(ConfigError, match="rewrites earlier messages"):
        encode_prompt(tokenizer, PromptTemplate("chat"), TURNS)


def test_a_chat_template_that_refuses_its_messages_is_named(tokenizers):
    tokenizer = tokenizers["gpt2"]
    tokenizer.chat_template = "{{ raise_exception('a system message first, please') }}"
    with pytest.raises(ConfigError, match="refuses user and assistant messages"):
        encode_prompt(tokenizer, PromptTemplate("chat"), TURNS)
