"""What every request passes: an id, who asks and with what, a line in the log."""

import json
import logging
import re
import secrets
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.errors import ApiError, busy
from serve.http.keys import PROBES, Keys
from serve.http.origins import Origins
from serve.service import Service

log = logging.getLogger("serve.requests")
_QUIET = PROBES | {"/metrics"}  # machines ask for these all day
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SMALL = 64 * 1024  # bytes of a body that is read whatever others send
_BODIES = 16  # of the largest size that are held at once until they are understood


class Middleware:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, service: Service, keys: Keys):
        self._app, self._service, self._keys = app, service, keys
        self._origins = Origins(service.settings)
        self._held = 0  # bytes of bodies that are not yet understood

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        id = given.decode() if _ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        state: dict[str, Any] = scope.setdefault("state", {})
        began, status, held = time.monotonic(), 0, 0

        async def read() -> Message:
            nonlocal held
            message = await receive()
            size = len(message.get("body", b""))
            held, self._held = held + size, self._held + size
            if held > _SMALL and self._held > _BODIES * self._service.settings.max_body:
                raise busy("the server is busy: too many large bodies are sent at once", 503)
            return message

        def release() -> None:
            nonlocal held
            held, self._held = 0, self._held - held

        state["understood"] = release

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id.encode())]
                release()
            await send(message)

        try:
            if refusal := self._refusal(scope, headers, state):
                await refusal.response(scope["path"])(scope, receive, answer)
            else:
                await self._app(scope, read, answer)
        finally:
            release()
            if status >= 400:
                self._service.metrics.rejected.labels(str(status)).inc()
            self._note(scope, state, id, status, time.monotonic() - began)

    def _refusal(
        self, scope: Scope, headers: dict[bytes, bytes], state: dict[str, Any]
    ) -> ApiError | None:
        """Why a request is not even read, if it is not."""
        # the path that routes see, not what the header or the URL of a proxy makes of it
        owner = self._keys.owner(scope["path"], _credentials(headers), scope["method"])
        state["tenant"] = owner
        if owner is None:
            return ApiError(
                401,
                "a valid key is needed: Authorization: Bearer KEY, or x-api-key: KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
            )
        if not self._keys and (refusal := self._origins.refusal(scope)):
            return refusal
        return _unreadable(headers) if scope["method"] == "POST" else None

    def _note(
        self,
        scope: Scope,
        state: dict[str, Any],
        id: str,
        status: int,
        seconds: float,
    ) -> None:
        """One line of JSON, without any text of a user unless the settings ask for it."""
        choices = state.get("choices", [])
        line: dict[str, Any] = {
            "id": id,
            "method": scope["method"],
            "path": scope["path"][:200],
            "owner": state["tenant"],
            "status": status,
            "seconds": round(seconds, 4),
        }
        if choices:
            line["prompt_tokens"] = len(choices[0].prompt.ids)
            line["new_tokens"] = sum(choice.answer.count for choice in choices)
            line["finish"] = [choice.finish for choice in choices]
            if self._service.settings.log_prompts:
                line["prompt"] = choices[0].prompt.ids
        if "read" in state:
            line["prompt_tokens"] = state["read"]
        quiet = scope["path"] in _QUIET and status in (200, 503)
        log.log(logging.DEBUG if quiet else logging.INFO, json.dumps(line))


def _credentials(headers: dict[bytes, bytes]) -> str:
    """As Authorization has them; Anthropic's clients send the bare key."""
    if b"authorization" not in headers and b"x-api-key" in headers:
        return f"Bearer {headers[b'x-api-key'].decode('latin1')}"
    return headers.get(b"authorization", b"").decode("latin1")


def _unreadable(headers: dict[bytes, bytes]) -> ApiError | None:
    """Why a body is not read; a page of any origin can send forms and plain text, but not JSON."""
    if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
        return None  # there is none
    kind = headers.get(b"content-type", b"").decode("latin1")
    if kind.partition(";")[0].strip().lower() != "application/json":
        return ApiError(
            415,
            f"the body is {kind[:100] or 'of no type'}, wanted JSON: send the header "
            "Content-Type: application/json (curl: --json in place of -d)",
        )
    coding = headers.get(b"content-encoding", b"identity").decode("latin1")
    if coding.strip().lower() not in ("", "identity"):
        return ApiError(
            415,
            f"the body is compressed ({coding[:100]}); send it as it is, without Content-Encoding",
            headers={"Accept-Encoding": "identity"},
        )
    return None
