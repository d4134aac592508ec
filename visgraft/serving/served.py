"""One model that is served: its decoding loop, and what is kept of conversations.

In: a chat, whoever asks it, settings. Out: replies on their way.

    served = ServedModel("my-run", model, processor, settings)
    prompt = served.prompt_of(chat, owner="key-1")
    [reply] = served.submit(prompt, decoding, num_answers=1, stream=True, on_change=wake)

What is known of an image or of a conversation is known to its owner alone (an api key): that something was asked before
makes an answer come sooner, and nobody is to learn that of somebody else.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from visgraft.data.sample import Turn
from visgraft.inference.candidates import Normalise, score_prompt
from visgraft.inference.decoding import Decoding
from visgraft.inference.engine import Engine
from visgraft.inference.limits import stop_token_ids
from visgraft.inference.prefix_cache import PrefixCache
from visgraft.inference.requests import ImageSegment, Prompt, ReadRow, Reply, segments_of
from visgraft.model.vlm import VisionLanguageModel
from visgraft.processor import Processor
from visgraft.serving.messages import Chat
from visgraft.serving.settings import ServeSettings
from visgraft.serving.tokens import TokenNames


class KeptConversations:
    """What the language model has read of conversations, the ones used last, up to a number of bytes.

    Attributes:
        max_bytes: what is kept at most.
        size_bytes: what is kept.
        num_hits: questions of which an earlier turn was known.
    """

    def __init__(self, *, max_bytes: int) -> None:
        """Begin with none."""
        self.max_bytes = max_bytes
        self.size_bytes = self.num_hits = 0
        self._kept: OrderedDict[tuple[str, bytes], ReadRow] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, owner: str, keys: Sequence[bytes]) -> ReadRow | None:
        """Find what was read up to the latest turn that is known; `keys` are those of a `Chat`."""
        with self._lock:
            for key in reversed(keys):
                row = self._kept.get((owner, key))
                if row is not None:
                    self._kept.move_to_end((owner, key))
                    self.num_hits += 1
                    return row
        return None

    def keep(self, owner: str, key: bytes, row: ReadRow) -> None:
        """Keep what was read up to a turn and its answer; what was used longest ago goes, until it fits."""
        with self._lock:
            old = self._kept.pop((owner, key), None)
            self.size_bytes -= old.states.size_bytes if old else 0
            if row.states.size_bytes > self.max_bytes:
                return
            self._kept[owner, key] = row
            self.size_bytes += row.states.size_bytes
            while self.size_bytes > self.max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self.size_bytes -= oldest.states.size_bytes


class ServedModel:
    """A model with its loop.

    Attributes:
        name: by which clients ask for it.
        created_at: when it was made ready, in seconds since 1970.
        mean_seconds: that its last answers took.
        engine: its loop; a thread runs it while the server runs.
        conversations: what is kept of them.
        end_ids: tokens that end an answer and are not part of its text.
        vocabulary: how many tokens may be named.
        names: of the tokens, for clients that ask for log-probabilities.
    """

    def __init__(
        self,
        name: str,
        model: VisionLanguageModel,
        processor: Processor,
        settings: ServeSettings,
        *,
        after_step: Callable[[], None],
    ) -> None:
        """Make a loop that nobody runs yet; `after_step` is called behind each of its steps."""
        self.name = name
        self.created_at = int(time.time())
        self.mean_seconds = 1.0
        self.processor = processor
        self.engine = Engine(
            model,
            processor,
            num_slots=settings.num_slots,
            max_positions=settings.max_positions,
            max_waiting=settings.max_waiting,
            prefix_cache=PrefixCache(max_bytes=settings.prefix_cache_bytes),
            after_step=after_step,
        )
        self.conversations = KeptConversations(max_bytes=settings.conversation_cache_bytes)
        self.end_ids = frozenset(stop_token_ids(model, processor))
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.names = TokenNames(processor.tokenizer)
        processor.prompt([Turn("", "")])  # from here on nothing of the tokenizer changes, and threads may share it

    def prompt_of(self, chat: Chat, *, owner: str, keep: bool) -> Prompt:
        """Make what is read in front of the answer; what is known of the chat goes with it.

        Raises:
            BadSampleError: an image cannot be used.
        """
        items: list[ImageSegment | Turn] = []
        for turn, images in zip(chat.turns, chat.shown, strict=True):
            if images:
                items.append(ImageSegment(self.processor.make_pixels(images, images), owner=owner))
            items.append(turn)
        segments = segments_of(self.processor, items)
        read = self.conversations.find(owner, chat.keys)
        return Prompt(segments, dialog=chat.turns, read=read, keep=keep)

    def submit(
        self,
        prompt: Prompt,
        decoding: Decoding,
        *,
        num_answers: int,
        stream: bool,
        on_change: Callable[[], None],
    ) -> list[Reply]:
        """Ask for answers.

        Raises:
            BusyError: the queue is full.
            ConfigError: the settings cannot be followed.
        """
        return self.engine.submit_several(prompt, decoding, num_answers=num_answers, stream=stream, on_change=on_change)

    def note_seconds(self, seconds: float) -> None:
        """Take in how long an answer took."""
        self.mean_seconds += 0.1 * (seconds - self.mean_seconds)

    @property
    def again_s(self) -> int:
        """Guess in how many seconds there is room again."""
        waiting = self.engine.num_waiting / self.engine.num_slots
        return max(1, min(60, math.ceil(self.mean_seconds * waiting)))

    def score_later(self, prompt: Prompt, candidates: Sequence[str], *, normalise: Normalise) -> Future[list[float]]:
        """Score candidates between two steps of the loop; errors are those of `score_prompt`."""
        model, cache = self.engine.model, self.engine.prefix_cache
        return self.engine.call(
            lambda: score_prompt(model, self.processor, prompt, candidates, normalise=normalise, prefix_cache=cache)
        )

    def keep(self, chat: Chat, *, owner: str, reply: Reply) -> None:
        """Keep what was read for a reply, for the next turn of its chat."""
        if reply.read is not None:
            self.conversations.keep(owner, chat.keys[-1], reply.read)
            reply.read = None
