"""Every fault in the form of OpenAI's API, or of the dialect that was spoken."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}

_GENERATE = ("/generate", "/generate_stream", "/embed")
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


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

    def renamed(self, names: Mapping[str, str]) -> "ApiError":
        """The same in the words of a dialect, whose names of fields these are."""
        name, dot, rest = (self.param or "").partition(".")
        if name not in names:
            return self
        known = names[name]
        message = re.sub(rf"^{name}\b|\b{name}(?=\.\w)", known, self.message)
        return ApiError(self.status, message, f"{known}{dot}{rest}", self.code, self.headers)

    def response(self, path: str = "") -> JSONResponse:
        """In the form of the API that the path belongs to."""
        return JSONResponse(self.form(path), self.status, self.headers)

    def form(self, path: str) -> dict[str, Any]:
        if path.startswith("/v1/messages"):
            fallback = "api_error" if self.status >= 500 else "invalid_request_error"
            kind = _ANTHROPIC.get(self.status, fallback)
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        if path in _GENERATE:
            return {
                "error": self.message,
                "error_type": "validation" if self.status < 500 else "generation",
            }
        return self.body


def busy(message: str, status: int, seconds: int = 1) -> ApiError:
    """A refusal that says when to come back."""
    return ApiError(status, message, headers={"Retry-After": str(seconds)})


async def on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response(request.url.path)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {shown(request.url.path)}"
    headers = dict(error.headers or {})
    return ApiError(error.status_code, message, headers=headers).response(request.url.path)


def shown(text: str, most: int = 80) -> str:
    """A client's text as an error may hold it."""
    return text if len(text) <= most else f"{text[:most]}…"


def invalid(error: ValidationError) -> ApiError:
    """A 400 that names the first field that is wrong, and tells of the others."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    described = []
    for fault in faults[:5]:
        what = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            what = "this field is not supported"
        described.append(f"{_where(fault) or 'the body'}: {shown(what, 300)}")
    if len(faults) > 5:
        described.append(f"and {len(faults) - 5} more")
    return ApiError(400, "; ".join(described), _where(faults[0]) or None)


def _where(fault: Any) -> str:
    return ".".join(shown(str(part)) for part in fault["loc"])
