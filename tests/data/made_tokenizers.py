"""Tokenizers of every kind that matters to prompts, made in memory with the `tokenizers` library.

In: nothing. Out: TOKENIZERS, name -> function that makes one; answers_of, what their targets say.
Usage: `tokenizer = TOKENIZERS["llama, legacy"]()`
"""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Question: What is it? Answer: A cat on a sofa. Question: Which colour? Answer: Red, I think.",
    "a cat on a sofa with two dogs and a bird USER ASSISTANT system [INST] [/INST]\n",
]
SPECIALS = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]


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


def answers_of(tokenizer, encoded):
    """Decode each run of supervised tokens."""
    runs, current = [], []
    for token, is_target in zip([*encoded.input_ids, None], [*encoded.supervised, False], strict=True):
        if is_target:
            current.append(token)
            if token == tokenizer.eos_token_id or token == tokenizer.convert_tokens_to_ids("<|im_end|>"):
                runs, current = [*runs, current], []
    return [tokenizer.decode(run) for run in runs]
