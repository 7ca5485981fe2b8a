"""What every request passes: an id, a key, a line in the log."""

import json
import logging
import re
import secrets
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.errors import ApiError
from serve.http.keys import Keys
from serve.service import Service

log = logging.getLogger("serve.requests")
_PROBES = {"/health", "/ready", "/metrics"}  # machines ask for these all day
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Middleware:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, service: Service, keys: Keys):
        self._app, self._service, self._keys = app, service, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        id = given.decode() if _ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        state: dict[str, Any] = scope.setdefault("state", {})
        began, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id.encode())]
            await send(message)

        # the path that routes see, not what the header or the URL of a proxy makes of it
        owner = self._keys.owner(scope["path"], headers.get(b"authorization", b"").decode("latin1"))
        state["tenant"] = owner
        try:
            if owner is None:
                refusal = ApiError(
                    401,
                    "a valid key is needed: Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
                )
                await refusal.response()(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        finally:
            if status >= 400:
                self._service.metrics.rejected.labels(str(status)).inc()
            self._note(scope, state, id, owner, status, time.monotonic() - began)

    def _note(
        self,
        scope: Scope,
        state: dict[str, Any],
        id: str,
        owner: str | None,
        status: int,
        seconds: float,
    ) -> None:
        """One line of JSON, without any text of a user unless the settings ask for it."""
        choices = state.get("choices", [])
        line: dict[str, Any] = {
            "id": id,
            "method": scope["method"],
            "path": scope["path"][:200],
            "owner": owner,
            "status": status,
            "seconds": round(seconds, 4),
        }
        if choices:
            line["prompt_tokens"] = len(choices[0].prompt.ids)
            line["new_tokens"] = sum(choice.answer.count for choice in choices)
            line["finish"] = [choice.finish for choice in choices]
            if self._service.settings.log_prompts:
                line["prompt"] = choices[0].prompt.ids
        quiet = scope["path"] in _PROBES and status == 200
        log.log(logging.DEBUG if quiet else logging.INFO, json.dumps(line))
