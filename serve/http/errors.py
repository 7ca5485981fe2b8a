"""Every fault in the form of OpenAI's API."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer with a status of 400 or more."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code, self.headers = code, headers

    @property
    def body(self) -> dict[str, Any]:
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, fallback)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def busy(message: str, status: int, seconds: int = 1) -> ApiError:
    """A refusal that says when to come back."""
    return ApiError(status, message, headers={"Retry-After": str(seconds)})


Body = TypeVar("Body", bound=BaseModel)


def parse(kind: type[Body], content: bytes) -> Body:
    """Raises a 400 for what is no such object in JSON."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise _invalid(error) from None


async def on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path}"
    headers = dict(error.headers or {})
    return ApiError(error.status_code, message, headers=headers).response()


def _invalid(error: ValidationError) -> ApiError:
    """A 400 that names the first field that is wrong, and tells of the others."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    described = []
    for fault in faults[:5]:
        where = ".".join(map(str, fault["loc"])) or "the body"
        what = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            what = "this field is not supported"
        described.append(f"{where}: {what}")
    if len(faults) > 5:
        described.append(f"and {len(faults) - 5} more")
    param = ".".join(map(str, faults[0]["loc"])) or None
    return ApiError(400, "; ".join(described), param)
