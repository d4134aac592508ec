"""visgraft grafts sight onto a language model: join a vision encoder and a causal LM, train the join, ask it.

In: nothing. Out: the public names below, each loaded when first touched, so that `import visgraft` needs no torch; and
transformers' Auto classes know our models from then on (registration.py).
Usage: `from visgraft import VisionLanguageModel, Processor, Sample, Turn`
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from visgraft.errors import VisgraftError as VisgraftError
from visgraft.registration import register_lazily
from visgraft.telemetry import switch_off as _switch_off_telemetry

if TYPE_CHECKING:
    from visgraft.config import Recipe as Recipe
    from visgraft.config import load_recipe as load_recipe
    from visgraft.config import recipe_to_yaml as recipe_to_yaml
    from visgraft.convert.import_git_llm import import_git_llm as import_git_llm
    from visgraft.convert.importing import import_model as import_model
    from visgraft.data.batch import Batch as Batch
    from visgraft.data.prompt import PromptTemplate as PromptTemplate
    from visgraft.data.sample import Sample as Sample
    from visgraft.data.sample import Turn as Turn
    from visgraft.model.vlm import VisionLanguageModel as VisionLanguageModel
    from visgraft.processor import Processor as Processor
    from visgraft.runs import Run as Run
    from visgraft.training.loop import train as train

__version__ = "0.1.0"

_switch_off_telemetry()

_MODULE_OF = {
    "Batch": "visgraft.data.batch",
    "Processor": "visgraft.processor",
    "PromptTemplate": "visgraft.data.prompt",
    "Recipe": "visgraft.config",
    "Run": "visgraft.runs",
    "Sample": "visgraft.data.sample",
    "Turn": "visgraft.data.sample",
    "VisionLanguageModel": "visgraft.model.vlm",
    "import_git_llm": "visgraft.convert.import_git_llm",
    "import_model": "visgraft.convert.importing",
    "load_recipe": "visgraft.config",
    "recipe_to_yaml": "visgraft.config",
    "train": "visgraft.training.loop",
}

_REGISTERED = {name: _MODULE_OF[name] for name in ("VisionLanguageModel", "Processor")}

__all__ = sorted([*_MODULE_OF, "VisgraftError"])


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        from visgraft.config.renamed import PACKAGE_NAMES

        if name in PACKAGE_NAMES:
            raise AttributeError(f"visgraft.{name} is called visgraft.{PACKAGE_NAMES[name]} today")
        raise AttributeError(f"module 'visgraft' has no attribute {name!r}; it has {', '.join(__all__)}")
    if name in _REGISTERED:  # transformers' Auto classes then know both, whichever was touched
        for module in _REGISTERED.values():
            import_module(module)
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register_lazily()
