"""Make visgraft's models known to transformers' Auto classes by `import visgraft` alone, without importing torch.

In: nothing. Out: the model type `visgraft` in transformers' tables of configurations and processors, behind a module
that is imported when one of them is first looked up; that import registers model and processor.

    import visgraft
    model = AutoModelForImageTextToText.from_pretrained("runs/first/model")

transformers looks a class up by its model type, in a table of names whose modules it imports on demand, from
`transformers.models`. So our names go into the tables as soon as they are there, and the module is made here.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

MODEL_TYPE = "visgraft"
TABLES = {  # module -> its table of names, and our name there
    "transformers.models.auto.configuration_auto": ("CONFIG_MAPPING_NAMES", "VisionLanguageConfig"),
    "transformers.models.auto.processing_auto": ("PROCESSOR_MAPPING_NAMES", "Processor"),
}
MODULE = f"transformers.models.{MODEL_TYPE}"
REGISTERING = {"VisionLanguageConfig": "visgraft.model.vlm", "Processor": "visgraft.processor"}


def register_lazily() -> None:
    """Put the model type into transformers' tables, now or when they are imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for name in TABLES:
        if name in sys.modules:
            _add_name(sys.modules[name])


def _add_name(module: ModuleType) -> None:
    table, name = TABLES[module.__name__]
    getattr(module, table).setdefault(MODEL_TYPE, name)


class _Finder(importlib.abc.MetaPathFinder):
    """Find the module of our model type; and transformers' tables, to add to them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == MODULE:
            return importlib.machinery.ModuleSpec(fullname, _OurModule())
        if fullname not in TABLES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Table(spec.loader)
        return spec


class _OurModule(importlib.abc.Loader):
    """Import what registers model and processor, and give their names."""

    def exec_module(self, module: ModuleType) -> None:
        for name, place in REGISTERING.items():
            setattr(module, name, getattr(importlib.import_module(place), name))


class _Table(importlib.abc.Loader):
    """Run the table's own module, then add to it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _add_name(module)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)  # get_source and the like, which tools ask for
