"""Replicas of the server behind Ray Serve; deploy/ray_serve.yaml says how many.

Beware of the names: `serve run` is Ray's command and `ray.serve` its module, but `import serve`
is this repository's server.
"""

import logging
from typing import Any

from pydantic import TypeAdapter
from ray.serve import Application, deployment, ingress
from starlette.applications import Starlette

from serve import app, loading
from serve.http.keys import Keys
from serve.service import Service
from serve.settings import ServeConfig


def build(arguments: dict[str, Any]) -> Application:
    """What Ray runs; arguments: the options of `python -m serve` that say how to answer.

    Those that say where to listen and how long to drain are Ray's to decide.
    """
    if unknown := arguments.keys() - ServeConfig.__dataclass_fields__.keys():
        raise ValueError(f"python -m serve has no option {', '.join(sorted(unknown))}")
    settings = TypeAdapter(ServeConfig).validate_python(arguments)

    def application() -> Starlette:
        """In a replica: a warm model."""
        logging.getLogger("serve").setLevel(logging.INFO)
        service = Service(settings)
        params = loading.parameters(settings)
        loading.start(service, params, loading.runner(params, settings))
        loading.settle()
        return app.build(service, Keys.read(settings.api_keys))

    return deployment(ingress(application)(Replica), name="Qwen").bind()


class Replica:
    """One copy of the model; the base that `ingress` adds has the application."""

    def check_health(self) -> None:
        """Ray ends a replica that raises, and starts another."""
        service: Service = self.app.state.service
        if service.trouble:
            raise RuntimeError(service.trouble)

    def __del__(self) -> None:
        """Ray has let requests under way come to their end."""
        model = self.app.state.service.model
        if model is not None:
            model.engine.stop()
            model.grammars.close()
        self.app.state.service.lanes.close()
