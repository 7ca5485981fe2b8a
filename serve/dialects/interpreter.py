"""Code on the way to an answer, as the chat page asks for it: run here, in the sandbox's child."""

import threading

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwen_jax.sandbox import interpreter
from serve.api import endpoint
from serve.api.sse import until_gone
from serve.http.errors import ApiError
from serve.schemas.interpreter import TurnRequest
from serve.service import Service


async def turn(request: Request) -> Response:
    """What a reply's last call shows, behind the answer so far; null where it calls nothing."""
    service: Service = request.app.state.service
    if not service.settings.run_generated_code:
        raise ApiError(403, "this server runs no code; it may when it has --run-generated-code")
    fields = await endpoint.read(request, TurnRequest)
    unwanted = threading.Event()
    arguments = fields.begun, fields.reply, interpreter.SECONDS, "", unwanted
    running = endpoint.in_lane(request, service.lanes.code, interpreter.turn, *arguments)
    try:
        made = await until_gone(request.receive, running)
    except ValueError as error:
        raise ApiError(400, str(error), "begun") from None
    finally:
        unwanted.set()
    return JSONResponse(made._asdict())
