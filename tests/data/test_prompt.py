import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from visgraft.data.prompt import PromptTemplate, encode_dialog, encode_prompt, end_token_id
from visgraft.data.sample import Turn
from visgraft.errors import BadSampleError, ConfigError

CORPUS = [
    "Question: What is it? Answer: A cat on a sofa. Question: Which colour? Answer: Red, I think.",
    "a cat on a sofa with two dogs and a bird USER ASSISTANT system [INST] [/INST]\n",
]
SPECIALS = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
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


def wrap(tokenizer, *, bos="<s>", eos="</s>", chat_template=None, **names):
    names = {"bos_token": bos, "eos_token": eos, "unk_token": "<unk>", **names}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
        **{key: value for key, value in names.items() if value is not None},
    )
    fast.chat_template = chat_template
    return fast


def ids_around(tokenizer, before="<s>", after=None):
    """Let the tokenizer itself add tokens around every text."""
    text = " ".join(part for part in (before, "$A", after) if part)
    names = [name for name in (before, after) if name]
    specials = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=text, special_tokens=specials)
    return tokenizer


def byte_level(*, add_prefix_space=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace(prepend_scheme, *, model="unigram"):
    tokenizer = Tokenizer(models.Unigram() if model == "unigram" else models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    kind = trainers.UnigramTrainer if model == "unigram" else trainers.BpeTrainer
    alphabet = sorted(set("".join(CORPUS) + "<>|/▁é_"))
    settings = {"unk_token": "<unk>"} if model == "unigram" else {}
    tokenizer.train_from_iterator(
        CORPUS, kind(vocab_size=220, special_tokens=SPECIALS, initial_alphabet=alphabet, **settings)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=model == "unigram")
    return tokenizer


def legacy_llama():
    """The older form of the same: a normalizer puts the dummy prefix in front, the decoder strips it."""
    tokenizer = metaspace("never", model="bpe")
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def gemma_like():
    """SentencePiece without a dummy prefix."""
    tokenizer = metaspace("never", model="bpe")
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return tokenizer


def word_level():
    words = sorted({word for text in CORPUS for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIALS, *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), behavior="removed")
    return tokenizer


TOKENIZERS = {
    "gpt2": lambda: wrap(byte_level(), bos="</s>"),
    "gpt2 with a pad token": lambda: wrap(byte_level(), bos="</s>", pad_token="<unk>"),
    "qwen without bos": lambda: wrap(byte_level(), bos=None, eos="<|im_end|>", pad_token="<s>"),
    "opt, llama 3": lambda: wrap(ids_around(byte_level())),
    "roberta-like": lambda: wrap(ids_around(byte_level(add_prefix_space=True), after="</s>")),
    "llama, always": lambda: wrap(ids_around(metaspace("always", model="bpe"))),
    "mistral, first": lambda: wrap(ids_around(metaspace("first", model="bpe"))),
    "llama, legacy": lambda: wrap(ids_around(legacy_llama())),
    "t5-like": lambda: wrap(ids_around(metaspace("always"), before=None, after="</s>"), bos=None, pad_token="<s>"),
    "gemma-like": lambda: wrap(ids_around(gemma_like())),
    "word list": lambda: wrap(word_level(), bos=None),
    "word list with cls and sep": lambda: wrap(ids_around(word_level(), after="</s>"), cls_token="<s>"),
}
TURNS = [Turn("What is it?", "A cat on a sofa."), Turn("Which colour?", "Red, I think.")]
DIALOGS = [[Turn("", "a cat on a sofa")], TURNS[:1], TURNS, [Turn("What is it?", "A cat on a sofa."), Turn("", "Red,")]]
TEMPLATES = ["plain", "question", "USER: {prompt} ASSISTANT:", "<|im_start|>{prompt}\n<|im_end|> "]


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make() for name, make in TOKENIZERS.items()}


def answers_of(tokenizer, encoded):
    """Decode each run of supervised tokens."""
    runs, current = [], []
    for token, is_target in zip([*encoded.input_ids, None], [*encoded.supervised, False], strict=True):
        if is_target:
            current.append(token)
            if token == tokenizer.eos_token_id or token == tokenizer.convert_tokens_to_ids("<|im_end|>"):
                runs, current = [*runs, current], []
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("spec", TEMPLATES)
@pytest.mark.parametrize("turns", DIALOGS)
def test_the_targets_decode_to_exactly_the_answers_and_end_of_text(tokenizers, name, spec, turns):
    tokenizer = tokenizers[name]
    encoded = encode_dialog(tokenizer, PromptTemplate.from_spec(spec), turns)
    decoded = answers_of(tokenizer, encoded)
    gap = " " if "word list" in name else ""  # such tokenizers decode a space between any two tokens
    assert [text.removeprefix(" ") for text in decoded] == [t.answer + gap + tokenizer.eos_token for t in turns]
    assert not encoded.supervised[0] and encoded.supervised[-1] and not encoded.truncated
    assert encoded.input_ids[-1] == end_token_id(tokenizer, PromptTemplate.from_spec(spec))
    assert encoded.num_answer_characters == sum(len(turn.answer) for turn in turns)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("spec", TEMPLATES)
@pytest.mark.parametrize("turns", DIALOGS)
def test_training_ids_cut_before_the_last_answer_are_the_serving_prompt(tokenizers, name, spec, turns):
    template = PromptTemplate.from_spec(spec)
    encoded = encode_dialog(tokenizers[name], template, turns)
    unknown = [*turns[:-1], Turn(turns[-1].prompt, "")]
    prompt_ids = encode_prompt(tokenizers[name], template, unknown)
    assert list(encoded.input_ids[: len(prompt_ids)]) == prompt_ids
    assert all(encoded.supervised[len(prompt_ids) :])
    assert not encoded.supervised[len(prompt_ids) - 1] or turns[-1].prompt == ""


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_dialog_reads_as_one_text_with_single_spaces(tokenizers, name):
    tokenizer = tokenizers[name]
    encoded = encode_dialog(tokenizer, PromptTemplate.named("question"), TURNS[:1])
    text = tokenizer.decode([token for token in encoded.input_ids if token not in tokenizer.all_special_ids])
    assert text.strip() == "Question: What is it? Answer: A cat on a sofa."


@pytest.mark.parametrize("name", ["gpt2", "opt, llama 3", "gemma-like"])
def test_the_leading_space_belongs_to_the_answer(tokenizers, name):
    tokenizer = tokenizers[name]
    for spec in ("question", "Question: {prompt} Answer: "):
        encoded = encode_dialog(tokenizer, PromptTemplate.from_spec(spec), TURNS[:1])
        assert answers_of(tokenizer, encoded) == [" A cat on a sofa." + tokenizer.eos_token]
    caption = encode_dialog(tokenizer, PromptTemplate.named("question"), [Turn("", "a cat")])
    assert answers_of(tokenizer, caption) == ["a cat" + tokenizer.eos_token]


def test_apart_or_together_the_text_has_the_same_tokens(tokenizers):
    text = "Question: What is it? Answer: A cat on a sofa."
    for name in ("gpt2", "opt, llama 3", "llama, always", "llama, legacy", "gemma-like", "word list"):
        encoded = encode_dialog(tokenizers[name], PromptTemplate.named("question"), TURNS[:1])
        assert list(encoded.input_ids[:-1]) == tokenizers[name](text).input_ids, name


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_empty_prompt_becomes_one_start_token(tokenizers, name):
    tokenizer = tokenizers[name]
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for template in (PromptTemplate.named("plain"), PromptTemplate.named("question"), PromptTemplate(" {prompt}")):
        assert encode_prompt(tokenizer, template, [Turn(" ", "")]) == [start]


@pytest.mark.parametrize("name, before", [("gpt2", []), ("opt, llama 3", ["<s>"]), ("t5-like", [])])
def test_only_the_first_prompt_carries_what_the_tokenizer_adds(tokenizers, name, before):
    tokenizer = tokenizers[name]
    ids = encode_prompt(tokenizer, PromptTemplate.named("question"), [*TURNS, Turn("What is it?", "")])
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert [token for token in tokens if token == "<s>"] == before
    assert tokens.count("</s>") == 2  # of the two answers; none that the tokenizer appends
    assert tokens[: len(before)] == before


def test_an_end_of_text_inside_an_answer_is_only_text(tokenizers):
    tokenizer = tokenizers["opt, llama 3"]
    encoded = encode_dialog(tokenizer, PromptTemplate.named("plain"), [Turn("What?", "A </s> cat.")])
    assert encoded.input_ids.count(tokenizer.eos_token_id) == 1
    assert answers_of(tokenizer, encoded) == [" A </s> cat.</s>"]


def test_outer_white_space_is_no_part_of_an_answer(tokenizers):
    tokenizer = tokenizers["gpt2"]
    one, two = (
        encode_dialog(tokenizer, PromptTemplate.named("question"), [Turn("What?", text)]) for text in ("A.", " A.\n")
    )
    assert one == two


@pytest.mark.parametrize("name", ["gpt2", "llama, always"])
def test_truncation_cuts_the_end_and_counts_the_characters_that_are_left(tokenizers, name):
    template = PromptTemplate.named("question")
    whole = encode_dialog(tokenizers[name], template, TURNS)
    room = len(encode_prompt(tokenizers[name], template, TURNS)) + 2
    cut = encode_dialog(tokenizers[name], template, TURNS, max_text_tokens=room)
    assert cut.truncated and cut.input_ids == whole.input_ids[:room] and cut.supervised == whole.supervised[:room]
    left = tokenizers[name].decode(cut.input_ids[-2:]).strip()
    assert cut.num_answer_characters == len("A cat on a sofa.") + len(left)
    one_turn = encode_dialog(tokenizers[name], template, TURNS[:1])
    assert not encode_dialog(tokenizers[name], template, TURNS[:1], max_text_tokens=len(one_turn.input_ids)).truncated
    only_first = encode_dialog(tokenizers[name], template, TURNS, max_text_tokens=len(one_turn.input_ids))
    assert only_first.num_answer_characters == len("A cat on a sofa.") and only_first.truncated


def test_a_prompt_that_fills_the_room_is_a_bad_sample(tokenizers):
    with pytest.raises(BadSampleError, match="leaves no room for the answer"):
        encode_dialog(tokenizers["gpt2"], PromptTemplate.named("question"), TURNS, max_text_tokens=3)


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_is_a_bad_sample(tokenizers, answer):
    with pytest.raises(BadSampleError, match="answer is empty"):
        encode_dialog(tokenizers["gpt2"], PromptTemplate.named("plain"), [Turn("What?", answer)])


def test_an_answer_that_the_tokenizer_drops_is_a_bad_sample():
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Replace("☃", "")
    with pytest.raises(BadSampleError, match="answer has no tokens"):
        encode_dialog(wrap(tokenizer), PromptTemplate.named("plain"), [Turn("", "☃")])


def test_a_dialog_needs_a_turn(tokenizers):
    with pytest.raises(BadSampleError, match="dialog has no turns"):
        encode_prompt(tokenizers["gpt2"], PromptTemplate.named("plain"), [])


def test_a_tokenizer_needs_an_end_of_text_token():
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        encode_prompt(wrap(byte_level(), eos=None), PromptTemplate.named("plain"), TURNS)


@pytest.mark.parametrize("spec", ["plain", "question", "chat", "Look: {prompt} ->"])
def test_a_template_round_trips_through_its_spec(spec):
    assert PromptTemplate.from_spec(PromptTemplate.from_spec(spec).spec) == PromptTemplate(spec)


def test_an_unknown_template_is_refused_with_the_nearest_name():
    with pytest.raises(
        ConfigError, match=r"got 'qestion'; did you mean 'question'\? allowed are plain, question, chat"
    ):
        PromptTemplate.from_spec("qestion")
    with pytest.raises(ConfigError, match="no template is named 'a"):
        PromptTemplate.named("a {prompt}")


def test_a_custom_template_is_taken_as_written_with_braces_and_empty_prompts():
    template = PromptTemplate.from_spec("{x} {prompt} {}:")
    assert template.fill("What {prompt}?") == "{x} What {prompt}? {}:"
    assert PromptTemplate("Say: {prompt}\n").fill("") == "Say: \n"


@pytest.mark.parametrize("name", ["qwen without bos", "gpt2", "llama, always", "mistral, first", "gemma-like"])
@pytest.mark.parametrize("chat_template", [CHATML, LLAMA2, THINKING])
@pytest.mark.parametrize("turns", [DIALOGS[0], TURNS[:1], TURNS])
def test_a_chat_template_holds_to_the_same_rules(tokenizers, name, chat_template, turns):
    tokenizer = tokenizers[name]
    tokenizer.chat_template = chat_template
    template = PromptTemplate.named("chat")
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
    assert encode_prompt(tokenizer, PromptTemplate.named("chat"), TURNS) == ids


def test_a_chat_template_that_strips_still_gives_the_text_it_renders(tokenizers):
    tokenizer = tokenizers["gpt2"]
    tokenizer.chat_template = LLAMA2
    encoded = encode_dialog(tokenizer, PromptTemplate.named("chat"), [Turn("What is it?", " A cat on a sofa. ")])
    assert tokenizer.decode(encoded.input_ids) == "</s>[INST] What is it? [/INST] A cat on a sofa.</s>"


def test_a_chat_template_without_a_closing_token_ends_with_end_of_text(tokenizers):
    tokenizer = tokenizers["opt, llama 3"]
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    encoded = encode_dialog(tokenizer, PromptTemplate.named("chat"), TURNS)
    assert tokenizer.decode(encoded.input_ids) == (
        "user: What is it?\nassistant: A cat on a sofa.</s>\nuser: Which colour?\nassistant: Red, I think.</s>"
    )


def test_the_longest_closing_token_of_a_chat_template_counts():
    tokenizer = wrap(byte_level())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|end|>!"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|end|>!{% endfor %}"
    assert end_token_id(tokenizer, PromptTemplate.named("chat")) == tokenizer.convert_tokens_to_ids("<|end|>!")


def test_a_tokenizer_that_tokenises_a_text_differently_with_its_special_tokens_is_refused():
    class Moody:
        bos_token_id = eos_token_id = 0

        def __call__(self, text, *, add_special_tokens, verbose):
            return {"input_ids": [9, 9] if add_special_tokens else [1]}

    with pytest.raises(ConfigError, match="gives a text other tokens when it adds its special tokens"):
        encode_prompt(Moody(), PromptTemplate.named("plain"), TURNS)


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizers):
    tokenizers["gpt2"].chat_template = None
    with pytest.raises(ConfigError, match="got 'chat', but this tokenizer has no chat template"):
        encode_prompt(tokenizers["gpt2"], PromptTemplate.named("chat"), TURNS)


def test_a_chat_template_that_rewrites_history_is_refused(tokenizers):
    tokenizer = tokenizers["gpt2"]
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}\n{% endfor %}"
    with pytest.raises(ConfigError, match="rewrites earlier messages"):
        encode_prompt(tokenizer, PromptTemplate.named("chat"), TURNS)


def test_a_chat_template_that_refuses_its_messages_is_named(tokenizers):
    tokenizer = tokenizers["gpt2"]
    tokenizer.chat_template = "{{ raise_exception('a system message first, please') }}"
    with pytest.raises(ConfigError, match="refuses user and assistant messages"):
        encode_prompt(tokenizer, PromptTemplate.named("chat"), TURNS)
