"""An HTTP server of trained models: OpenAI's endpoints, and a page.

In: models and their processors. Out: a server that answers as `answer` does, whoever else asks.

    from visgraft.serving import ServeSettings, Service, open_port, run

    run(Service({"my-run": (model, processor)}, ServeSettings()), open_port("127.0.0.1", 8000), ready=print)
"""

from visgraft.serving.app import create_app
from visgraft.serving.running import open_port, run
from visgraft.serving.service import Service
from visgraft.serving.settings import Limits, ServeSettings, read_api_keys

__all__ = ["Limits", "ServeSettings", "Service", "create_app", "open_port", "read_api_keys", "run"]
