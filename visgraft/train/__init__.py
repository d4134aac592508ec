"""Train a recipe: one loop, readable top to bottom, and its optimizer.

In: a recipe. Out: a run folder. The package is itself callable: `visgraft.train(recipe)` is the public call, and Python
binds the package to that very name as soon as anything in it is imported.
Usage: `visgraft.train("recipe.yaml")`
"""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from visgraft.train.loop import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
