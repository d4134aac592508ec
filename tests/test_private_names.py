"""Every name of a library that it does not promise to keep: where it is used, why, and what ends without it.

In: the imports of the package. Out: a list that must stay whole. Usage: a name that is missing here fails the test.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

import visgraft
from tests.tiny import ALIBI, bare_language
from visgraft.errors import MissingNameError, names_needed_for
from visgraft.model.language import read_attention_spec

PACKAGE = Path(visgraft.__file__).parent
LIBRARIES = ("transformers", "torch", "peft", "accelerate")
DOCUMENTED = (  # what we take from them has a page in the libraries' documentation
    *(f"transformers.{name}" for name in ("cache_utils", "modeling_outputs", "modeling_layers", "pytorch_utils")),
    *("transformers.utils", "transformers.utils.generic", "transformers.utils.hub", "peft.tuners.lora"),
    *("accelerate.utils", "accelerate.state", "accelerate.tracking"),
)
#: imported inside of what needs it: (module, name) -> (file, what ends without it)
WHERE_USED = {
    ("transformers.models.bloom.modeling_bloom", "build_alibi_tensor"): (
        "model/language.py", "BLOOM: its slopes of ALiBi, in which no two families round alike"),
    ("transformers.models.falcon.modeling_falcon", "build_alibi_tensor"): (
        "model/language.py", "Falcon with ALiBi: its slopes, rounded to bfloat16"),
    ("transformers.models.mpt.modeling_mpt", "build_mpt_alibi_tensor"): ("model/language.py", "MPT: its slopes"),
    ("transformers.masking_utils", "create_causal_mask"): (
        "model/japanese_stablelm.py", "Japanese StableLM Alpha alone: takes a 4-D mask as it is"),
    ("transformers.models.auto.modeling_auto", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"): (
        "convert/placeholder_model.py", "`transformers serve` of an exported folder: it looks its class up there"),
    ("transformers.models.auto.modeling_auto", "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES"): (
        "convert/placeholder_model.py", "the same"),
    ("transformers.processing_utils", "MultiModalData"): (
        "convert/placeholder_model.py", "what servers on top of transformers ask an exported processor for"),
    ("transformers.core_model_loading", "revert_weight_conversion"): (
        "model/storage/weights.py", "saving: names on disk are stable, those in memory are not"),
    ("peft.utils.integrations", "dequantize_module_weight"): (
        "model/quantization.py", "merging into 4-bit and 8-bit weights"),
}  # fmt: skip
#: `visgraft estimate` runs steps without numbers and follows their memory, which torch offers under private names
#: alone; nothing else imports these files
OF_ESTIMATE = {
    ("torch._subclasses.fake_tensor", name)
    for name in (
        "DataDependentOutputException", "DynamicOutputShapeException", "FakeTensor", "FakeTensorMode",
        "UnsupportedOperatorException",
    )
} | {
    ("torch.utils._python_dispatch", "TorchDispatchMode"), ("torch.utils._python_dispatch", "_disable_current_modes"),
    ("torch.utils._pytree", "tree_leaves"), ("torch.utils._pytree", "tree_map"),
}  # fmt: skip
#: names with an underscore of objects that are not ours -> why there is no other way
ATTRIBUTES = {
    "_attn_implementation": "the kernel that a part computes with; read at every call, as it may change",
    "_attn_implementation_internal": "a config of few layers keeps the kernel of the whole",
    "_supports_flex_attn": "whether a class says that it takes block masks",
    "_prepare_cache_for_generation": "`generate` sizes caches without the image tokens",
    "_name_or_path": "an imported part is of no folder that could be named",
    "_parameters": "a quantized weight as it is: `.weight` of a LoRA layer is another",
    "_buffers": "as _parameters",
    "_forward_pre_hooks": "whether a module was given our hook before",
    "_from_config": "a class that no Auto class knows, made of its configuration without weights",
    "_version": "whether a tensor was written to since its states were kept",
    "_prepare_generation_config": "the settings of `generate` as it reads them, for the decoding loop",
    "_prepare_special_tokens": "as _prepare_generation_config",
    "_get_logits_processor": "as _prepare_generation_config",
}


def imports() -> Iterator[tuple[str, bool, str, str]]:
    """List (file, whether at its top, module, name) of every import from the libraries."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
                for alias in node.names:
                    file = path.relative_to(PACKAGE).as_posix()
                    yield file, node in tree.body, str(node.module), alias.name


def is_public(module: str, name: str) -> bool:
    library = module.split(".")[0]
    if library == "torch":
        return not any(part.startswith("_") for part in (*module.split("."), name))
    return module in DOCUMENTED or module == library or hasattr(importlib.import_module(library), name)


def test_names_that_no_library_promises_are_listed_and_imported_where_they_are_used() -> None:
    found = [each for each in imports() if not is_public(*each[2:])]
    at_the_top = {(module, name) for file, top, module, name in found if top and not file.startswith("estimate/")}
    assert at_the_top == set(), "import it inside of what needs it, with names_needed_for"
    assert {(module, name) for file, _, module, name in found if file.startswith("estimate/")} == OF_ESTIMATE
    assert {(module, name): file for file, _, module, name in found if not file.startswith("estimate/")} == {
        key: file for key, (file, _) in WHERE_USED.items()
    }


def test_attributes_that_no_library_promises_are_listed_and_there() -> None:
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value)}
        own |= {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) and each.name[0] == "_"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                is_own = is_self(node.value) or node.attr in own or path.parent.name in ("estimate", "readers")
                found |= set() if is_own else {node.attr}
    theirs = PreTrainedModel, PreTrainedConfig(), torch.nn.Linear(1, 1), transformers.GenerationMixin, torch.ones(1)
    assert {name for name in found if any(hasattr(each, name) for each in theirs)} <= set(ATTRIBUTES)
    assert [name for name in ATTRIBUTES if not any(hasattr(each, name) for each in theirs)] == []


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


@pytest.mark.parametrize(("module", "name"), WHERE_USED)
def test_a_name_is_there(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("language", ALIBI)
def test_a_family_whose_name_is_gone_is_refused_and_no_other(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bare_language(language)
    for module, name in WHERE_USED:
        if "alibi" in name:
            monkeypatch.delattr(importlib.import_module(module), name)
    what = language.removesuffix("_alibi")
    with pytest.raises(MissingNameError, match=rf"{what}.*: needs a name that the installed release .* does not have"):
        read_attention_spec(model)
    assert read_attention_spec(bare_language("llama")).alibi is None


def test_what_is_missing_is_said_with_its_name() -> None:
    wanted = r"this: .*cannot import name 'nothing' from 'torch'.*compatibility\.md"
    with pytest.raises(MissingNameError, match=wanted), names_needed_for("this"):
        from torch import nothing  # noqa: F401


@pytest.mark.slow
def test_the_package_is_there_without_any_of_them() -> None:
    names = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py"))]
    left_out = ("estimate", "reproduce", "serving", "lmms_models", "lmms_harness", "__main__", "on_ray", "meteor")
    modules = [".".join(parts) for parts in names if not set(parts) & set(left_out)]
    gone = [*WHERE_USED, *(each for each in OF_ESTIMATE if each[0] == "torch._subclasses.fake_tensor")]
    code = (
        "import importlib, torch, transformers, peft, accelerate\n"
        f"for module in {[module.removesuffix('.__init__') for module in modules]!r}: importlib.import_module(module)\n"
    )
    block = (
        "import builtins\nbefore = builtins.__import__\n"
        f"gone = {set(gone)!r}\n"
        "def guarded(name, globals=None, locals=None, fromlist=(), level=0):\n"
        "    ours = (globals or {}).get('__name__', '').startswith('visgraft')\n"
        "    for each in fromlist or ():\n"
        "        if ours and (name, each) in gone: raise ImportError(f'cannot import name {each!r} from {name!r}')\n"
        "    return before(name, globals, locals, fromlist, level)\n"
        "builtins.__import__ = guarded\n"
    )
    code += "import sys; from visgraft.cli import main; sys.exit(main(['estimate', 'demo']))"
    command = [sys.executable, "-c", block + code]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert said.returncode == 2 and "visgraft estimate: needs a name" in said.stderr, said.stderr
