"""Keep the libraries below from telling anyone that they are used: switched off once, when this package is imported.

In: the environment. Out: the same, with each library's own switch set where the user has not set it.
Usage: `switch_off()`
"""

import os
import sys

SWITCHES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers, datasets
    "DO_NOT_TRACK": "1",  # what several libraries agreed on
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "WANDB_ERROR_REPORTING": "false",  # what a user sends there by report_to is another thing
    "SCARF_NO_ANALYTICS": "true",
}


def switch_off() -> None:
    """Set every switch that the user has not set; a Hub library that is imported already is told too."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None and os.environ["HF_HUB_DISABLE_TELEMETRY"].upper() in ("1", "ON", "YES", "TRUE"):
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
