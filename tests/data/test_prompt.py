import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from tests.data.made_tokenizers import TOKENIZERS, answers_of, byte_level, wrap
from visgraft.data.prompt import PromptTemplate, encode_dialog, encode_prompt, end_token_id
from visgraft.data.sample import Turn
from visgraft.errors import BadSampleError, ConfigError

TURNS = [Turn("What is it?", "A cat on a sofa."), Turn("Which colour?", "Red, I think.")]
DIALOGS = [[Turn("", "a cat on a sofa")], TURNS[:1], TURNS, [Turn("What is it?", "A cat on a sofa."), Turn("", "Red,")]]
TEMPLATES = ["plain", "question", "USER: {prompt} ASSISTANT:", "<|im_start|>{prompt}\n<|im_end|> "]


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make() for name, make in TOKENIZERS.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("spec", TEMPLATES)
@pytest.mark.parametrize("turns", DIALOGS)
def test_the_targets_decode_to_exactly_the_answers_and_end_of_text(tokenizers, name, spec, turns):
    tokenizer = tokenizers[name]
    encoded = encode_dialog(tokenizer, PromptTemplate(spec), turns)
    decoded = answers_of(tokenizer, encoded)
    gap = " " if "word list" in name else ""  # such tokenizers decode a space between any two tokens
    assert [text.removeprefix(" ") for text in decoded] == [t.answer + gap + tokenizer.eos_token for t in turns]
    assert not encoded.supervised[0] and encoded.supervised[-1] and not encoded.truncated
    assert encoded.input_ids[-1] == end_token_id(tokenizer, PromptTemplate(spec))
    assert encoded.num_answer_characters == sum(len(turn.answer) for turn in turns)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("spec", TEMPLATES)
@pytest.mark.parametrize("turns", DIALOGS)
def test_training_ids_cut_before_the_last_answer_are_the_serving_prompt(tokenizers, name, spec, turns):
    template = PromptTemplate(spec)
    encoded = encode_dialog(tokenizers[name], template, turns)
    unknown = [*turns[:-1], Turn(turns[-1].prompt, "")]
    prompt_ids = encode_prompt(tokenizers[name], template, unknown)
    assert list(encoded.input_ids[: len(prompt_ids)]) == prompt_ids
    assert all(encoded.supervised[len(prompt_ids) :])
    assert not encoded.supervised[len(prompt_ids) - 1] or turns[-1].prompt == ""


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_dialog_reads_as_one_text_with_single_spaces(tokenizers, name):
    tokenizer = tokenizers[name]
    encoded = encode_dialog(tokenizer, PromptTemplate("question"), TURNS[:1])
    text = tokenizer.decode([token for token in encoded.input_ids if token not in tokenizer.all_special_ids])
    assert text.strip() == "Question: What is it? Answer: A cat on a sofa."


@pytest.mark.parametrize("name", ["gpt2", "opt, llama 3", "gemma-like"])
def test_the_leading_space_belongs_to_the_answer(tokenizers, name):
    tokenizer = tokenizers[name]
    for spec in ("question", "Question: {prompt} Answer: "):
        encoded = encode_dialog(tokenizer, PromptTemplate(spec), TURNS[:1])
        assert answers_of(tokenizer, encoded) == [" A cat on a sofa." + tokenizer.eos_token]
    caption = encode_dialog(tokenizer, PromptTemplate("question"), [Turn("", "a cat")])
    assert answers_of(tokenizer, caption) == ["a cat" + tokenizer.eos_token]


def test_apart_or_together_the_text_has_the_same_tokens(tokenizers):
    text = "Question: What is it? Answer: A cat on a sofa."
    for name in ("gpt2", "opt, llama 3", "llama, always", "llama, legacy", "gemma-like", "word list"):
        encoded = encode_dialog(tokenizers[name], PromptTemplate("question"), TURNS[:1])
        assert list(encoded.input_ids[:-1]) == tokenizers[name](text).input_ids, name


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_empty_prompt_becomes_one_start_token(tokenizers, name):
    tokenizer = tokenizers[name]
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for template in (PromptTemplate("plain"), PromptTemplate("question"), PromptTemplate(" {prompt}")):
        assert encode_prompt(tokenizer, template, [Turn(" ", "")]) == [start]


@pytest.mark.parametrize("name, before", [("gpt2", []), ("opt, llama 3", ["<s>"]), ("t5-like", [])])
def test_only_the_first_prompt_carries_what_the_tokenizer_adds(tokenizers, name, before):
    tokenizer = tokenizers[name]
    ids = encode_prompt(tokenizer, PromptTemplate("question"), [*TURNS, Turn("What is it?", "")])
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert [token for token in tokens if token == "<s>"] == before
    assert tokens.count("</s>") == 2  # of the two answers; none that the tokenizer appends
    assert tokens[: len(before)] == before


def test_an_end_of_text_inside_an_answer_is_only_text(tokenizers):
    tokenizer = tokenizers["opt, llama 3"]
    encoded = encode_dialog(tokenizer, PromptTemplate("plain"), [Turn("What?", "A </s> cat.")])
    assert encoded.input_ids.count(tokenizer.eos_token_id) == 1
    assert answers_of(tokenizer, encoded) == [" A </s> cat.</s>"]


def test_outer_white_space_is_no_part_of_an_answer(tokenizers):
    tokenizer = tokenizers["gpt2"]
    one, two = (encode_dialog(tokenizer, PromptTemplate("question"), [Turn("What?", text)]) for text in ("A.", " A.\n"))
    assert one == two


@pytest.mark.parametrize("name", ["gpt2", "llama, always"])
def test_truncation_cuts_the_end_and_counts_the_characters_that_are_left(tokenizers, name):
    template = PromptTemplate("question")
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
        encode_dialog(tokenizers["gpt2"], PromptTemplate("question"), TURNS, max_text_tokens=3)


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_is_a_bad_sample(tokenizers, answer):
    with pytest.raises(BadSampleError, match="answer is empty"):
        encode_dialog(tokenizers["gpt2"], PromptTemplate("plain"), [Turn("What?", answer)])


def test_an_answer_that_the_tokenizer_drops_is_a_bad_sample():
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Replace("☃", "")
    with pytest.raises(BadSampleError, match="answer has no tokens"):
        encode_dialog(wrap(tokenizer), PromptTemplate("plain"), [Turn("", "☃")])


def test_a_dialog_needs_a_turn(tokenizers):
    with pytest.raises(BadSampleError, match="dialog has no turns"):
        encode_prompt(tokenizers["gpt2"], PromptTemplate("plain"), [])


def test_a_tokenizer_needs_an_end_of_text_token():
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        encode_prompt(wrap(byte_level(), eos=None), PromptTemplate("plain"), TURNS)


def test_an_unknown_template_is_refused_with_the_nearest_name():
    with pytest.raises(
        ConfigError, match=r"got 'qestion'; did you mean 'question'\? allowed are plain, question, chat"
    ):
        PromptTemplate("qestion")


def test_a_custom_template_is_taken_as_written_with_braces_and_empty_prompts():
    template = PromptTemplate("{x} {prompt} {}:")
    assert template.fill(Turn("What {prompt}?", "")) == "{x} What {prompt}? {}:"
    assert PromptTemplate("Say: {prompt}\n").fill(Turn("", "")) == "Say: \n"


def test_a_tokenizer_that_tokenises_a_text_differently_with_its_special_tokens_is_refused():
    class Moody(PreTrainedTokenizerFast):
        def __call__(self, text, *, add_special_tokens, verbose):
            return {"input_ids": [9, 9] if add_special_tokens else [1]}

    with pytest.raises(ConfigError, match="gives a text other tokens when it adds its special tokens"):
        encode_prompt(Moody(tokenizer_object=byte_level(), eos_token="</s>"), PromptTemplate("plain"), TURNS)


def test_the_template_of_git_llm_puts_instruction_and_question_where_it_did():
    turn = Turn("What {instruction}?", "A cat.", instruction="Answer the question.")
    template = PromptTemplate("git-llm")
    assert template.fill(turn) == "##Instruction: Answer the question. ##Question: What {instruction}? ##Answer:"
    assert template.fill(Turn("", "x", instruction="Caption.")) == "##Instruction: Caption. ##Question:  ##Answer:"
    assert template.fill(Turn("Who?", "x")) == "##Instruction:  ##Question: Who? ##Answer:"
    assert template.fill(Turn("", "a cat")) == ""


@pytest.mark.parametrize(
    "spec, text",
    [
        ("plain", "Be brief.\nWhat is it?"),
        ("question", "Question: Be brief.\nWhat is it? Answer:"),
        ("heron", "##human: Be brief. What is it?\n##gpt:"),
        ("Q {prompt} A", "Q Be brief.\nWhat is it? A"),
        ("<{instruction}|{prompt}>", "<Be brief.|What is it?>"),
    ],
)
def test_an_instruction_stands_in_front_of_the_prompt_where_the_template_has_no_place_for_it(spec, text):
    assert PromptTemplate(spec).fill(Turn("What is it?", "A cat.", instruction="Be brief.")) == text
    assert PromptTemplate("heron").fill(Turn("Who?", "x")) == "##human: Who?\n##gpt:"
