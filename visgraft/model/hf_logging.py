"""Keep transformers from printing while we account for its work ourselves.

In: nothing. Out: a context without its progress bars and log lines; downloads keep their bars.

    with quiet_transformers():
        AutoModel.from_pretrained(name)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from transformers.utils import logging


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' own bars and everything below an error; both come back as they were."""
    level = logging.get_verbosity()
    hook = logging.set_tqdm_hook(_without_bar)
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.set_tqdm_hook(hook)


def _without_bar(_: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return logging.EmptyTqdm(*arguments, **keywords)
