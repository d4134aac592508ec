"""Ask a model: an image and a prompt in, an answer out; the one way that every command and every score takes.

In: a model and its processor, samples whose dialogs end in a turn without an answer. Out: the answers as plain text.

    model, processor = load("runs/20260102-030405-demo")
    texts = answer(model, processor, [Sample(images=["cat.jpg"], dialogs=[[Turn("What is it?", "")]])])
    for piece in stream(model, processor, sample): print(piece, end="")
"""

from visgraft.inference.answering import answer as answer
from visgraft.inference.answering import answer_each as answer_each
from visgraft.inference.candidates import score_candidates as score_candidates
from visgraft.inference.conversation import Conversation as Conversation
from visgraft.inference.decoding import GREEDY as GREEDY
from visgraft.inference.decoding import Decoding as Decoding
from visgraft.inference.engine import Engine as Engine
from visgraft.inference.limits import num_prompt_positions as num_prompt_positions
from visgraft.inference.load import load as load
from visgraft.inference.prefix_cache import PrefixCache as PrefixCache
from visgraft.inference.requests import Answer as Answer
from visgraft.inference.requests import Prompt as Prompt
from visgraft.inference.requests import Reply as Reply
from visgraft.inference.requests import prompts_of as prompts_of
from visgraft.inference.streaming import stream as stream
