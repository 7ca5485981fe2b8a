"""Code on the way to an answer, as the chat page asks for it: run here, in the sandbox's child."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwen_jax.sandbox import interpreter
from serve.api import endpoint
from serve.http.errors import ApiError
from serve.schemas.interpreter import TurnRequest
from serve.service import Service


async def turn(request: Request) -> Response:
    """What a reply's last call shows, behind the answer so far; null where it calls nothing."""
    service: Service = request.app.state.service
    if not service.settings.run_generated_code:
        raise ApiError(403, "this server runs no code; it may when it has --run-generated-code")
    fields = await endpoint.read(request, TurnRequest)
    arguments = fields.begun, fields.reply, interpreter.SECONDS
    made = await endpoint.in_lane(request, service.lanes.code, interpreter.turn, *arguments)
    return JSONResponse(made._asdict())
