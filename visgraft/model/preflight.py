"""The check before training: on one real batch, does exactly what may move move, and is there anything to learn?

In: a model and one real batch. Out: the number of supervised tokens and what a person should know, or a PreflightError.
One image and then one text token are changed; every supervised position must notice what it may see and nothing else.

    report = preflight(model, batch)
"""

from __future__ import annotations
