"""How lmms-eval finds visgraft: the manifest that its entry point group `lmms_eval.models` asks for.

In: nothing. Out: a manifest with a class for simple tasks and one for chat tasks; lmms-eval itself stays as it is.

    python -m lmms_eval --model visgraft --model_args pretrained=runs/my-run --tasks pope
"""

from __future__ import annotations

from typing import Any

MODULE = "visgraft.evaluation.lmms_models"


def manifest() -> Any:
    """Give the manifest; lmms-eval calls it, so that it is there."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="visgraft",
        simple_class_path=f"{MODULE}.Visgraft",
        chat_class_path=f"{MODULE}.VisgraftChat",
    )
