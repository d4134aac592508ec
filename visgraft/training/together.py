"""Several processes end together: an error in one of them ends all within seconds, with one message.

In: the work that each process does. Out: in the process that failed first its error; the others end with its exit
status, without a word.

    with ending_together(tidy=stop_display):
        session = open_session(...)         # the processes join in it

What fails cannot be told by what processes exchange anyway: the others may wait in the middle of a backward pass for
gradients that never come, over NCCL for minutes. So a thread of each looks at the store through which they joined.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any, NoReturn

from torch import distributed

from visgraft.errors import VisgraftError

LOOK_EVERY_S = 0.25
GRACE_S = 3.0  # in which the process that failed says so: a launcher ends it as soon as another one ends
STORE_TIMEOUT = timedelta(seconds=10)
ERROR, BAD_INPUT, INTERRUPTED = 1, 2, 130  # exit status, as the command line's
# What gloo says, as an error of no kind of its own, where another process is gone.
GONE = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe")
_number = count()  # of the pieces of work of this process; every process has as many


@contextmanager
def ending_together(*, tidy: Callable[[], None], leaves: type[BaseException] | tuple[()] = ()) -> Iterator[None]:
    """End all processes where the work of one of them fails; a process alone is left as it is.

    Args:
        tidy: called in a process that ends because another failed.
        leaves: what ends the work in all processes alike, and is no failure.

    Raises:
        VisgraftError: another process of the run was killed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    watch = _Watch(tidy)
    watch.start()
    try:
        yield
    except leaves:
        raise
    except BaseException as error:
        watch.end_unless_first(error)
        rank, size = os.environ.get("RANK", "0"), os.environ["WORLD_SIZE"]
        if _is_another_gone(error):
            raise VisgraftError(
                f"process {rank} of {size}: another process of this run is gone without a word of its own: it was "
                "killed, or its machine ran out of memory or lost its network. Resume the run with --resume"
            ) from error
        if isinstance(error, VisgraftError):
            error.args = (f"process {rank} of {size}: {error}",)
        raise
    finally:
        watch.is_over.set()


class _Watch(threading.Thread):
    """Looks whether another process failed, and ends this one if so."""

    def __init__(self, tidy: Callable[[], None]) -> None:
        super().__init__(name="visgraft-ending-together", daemon=True)
        self.tidy = tidy
        self.is_over = threading.Event()
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the launcher's store outlives a restart
        self.key = f"visgraft/failed/{restart}/{next(_number)}"
        self.rank = os.environ.get("RANK", "0")

    def run(self) -> None:
        store: Any = None
        while not self.is_over.wait(LOOK_EVERY_S):
            with suppress(RuntimeError):  # the store is gone: the main thread learns it from what it waits for
                store = store or open_store()
                if store is not None and store.check([self.key]):
                    self.end(store.get(self.key).decode())

    def end_unless_first(self, error: BaseException) -> None:
        """Tell the others of an error, unless one of them has told of its own: then end without a word."""
        self.is_over.set()
        status = BAD_INPUT if isinstance(error, VisgraftError | OSError) else ERROR
        status = INTERRUPTED if isinstance(error, KeyboardInterrupt) else status
        mine = f"{self.rank} {status}"
        with suppress(RuntimeError):
            store = open_store()
            if store is None:
                return  # the processes have not joined: this one has nobody to tell
            first = store.compare_set(self.key, "", mine).decode()
            if first != mine:
                self.end(first)
            time.sleep(2 * LOOK_EVERY_S)  # the store may be this process's: let the others look before it goes

    def end(self, told: str) -> NoReturn:
        """End this process, wherever its main thread waits, once the one that failed first has had its say."""
        time.sleep(GRACE_S)
        self.tidy()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(int(told.split()[1]))


class Beside:
    """What processes tell one another while they are in the middle of a step, through the store by which they joined.

    A process alone hears itself.
    """

    def __init__(self, name: str) -> None:
        """Begin; `name` tells runs apart."""
        self.prefix = f"visgraft/beside/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"
        self.rank, self.size = (int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1)))
        self.own: dict[str, str] = {}
        self.store: Any = None if self.size == 1 else open_store()

    def tell(self, key: str, text: str = "") -> None:
        """Tell all others something."""
        self.own[key] = text
        if self.store is not None:
            with suppress(RuntimeError):  # the store is gone, and with it whoever could listen
                self.store.set(f"{self.prefix}/{key}", text)

    def hears(self, key: str) -> bool:
        """Say whether someone has told that."""
        return self._text(key) is not None

    def gather(self, what: str, text: str) -> list[str] | None:
        """Tell a text, and list those of all processes in their order; None: not all have told theirs yet."""
        self.tell(f"{what}/{self.rank}", text)
        texts = [self._text(f"{what}/{rank}") for rank in range(self.size)]
        return None if None in texts else [each for each in texts if each is not None]

    def part(self, *, is_main: bool) -> None:
        """Wait before this process ends, where the store may be its own, so that the others have heard all."""
        if is_main and self.store is not None:
            time.sleep(4 * LOOK_EVERY_S)

    def _text(self, key: str) -> str | None:
        if key in self.own:
            return self.own[key]
        with suppress(RuntimeError):
            if self.store is not None and self.store.check([f"{self.prefix}/{key}"]):
                return str(self.store.get(f"{self.prefix}/{key}").decode())
        return None


def open_store() -> Any:
    """Open the store through which the processes joined; None: they have not yet, or joined in another way."""
    if not distributed.is_initialized() or "MASTER_PORT" not in os.environ:
        return None
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return distributed.TCPStore(  # type: ignore[attr-defined]
        *where, is_master=False, wait_for_workers=False, timeout=STORE_TIMEOUT
    )


def _is_another_gone(error: BaseException) -> bool:
    is_networks = isinstance(error, distributed.DistBackendError | distributed.DistNetworkError)
    return is_networks or (isinstance(error, RuntimeError) and any(words in str(error) for words in GONE))
