"""Adapters loaded into the running server and taken out of it, as vLLM's clients ask for it."""

import asyncio
import dataclasses
import logging

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from qwen_jax.adapters.bank import Full
from serve.adapters import Adapters, within
from serve.api import endpoint
from serve.http.errors import ApiError, busy, shown
from serve.schemas.adapters import LoadRequest, UnloadRequest
from serve.service import Model, Service

log = logging.getLogger("serve.adapters")


async def load(request: Request) -> Response:
    """Load an adapter from a folder on the server; it is a model when this is answered."""
    service, adapters = _allowed(request)
    fields = await endpoint.read(request, LoadRequest)
    name, bare = fields.lora_name, endpoint.model(service, None)
    async with adapters.changing:
        old = _replaced(service, name, fields.load_inplace)
        try:
            folder = await asyncio.to_thread(
                within, service.settings.adapter_folder, fields.lora_path
            )
        except ValueError as error:
            raise ApiError(400, str(error), "lora_path") from None
        leaving = adapters.make_room()
        try:
            loaded = await asyncio.to_thread(adapters.load, folder)
        except Full as error:
            message = f"adapter {name!r} finds no room: {error}; unload another"
            if leaving:
                message += f", or wait: answers still follow {leaving} that are unloaded"
            raise busy(message, 409) from None
        except (OSError, ValueError) as error:
            message = f"adapter {name!r} cannot be loaded: {error}"
            raise ApiError(400, message, "lora_path") from None
        except (MemoryError, RuntimeError) as error:  # of the device; nothing follows what there is
            raise busy(
                f"adapter {name!r} cannot be placed: {shown(str(error), 300)}", 503
            ) from None
        service.named[name] = dataclasses.replace(bare, name=name, adapter=loaded)
        if old is not None:
            old.adapter.retired = True
    log.info("adapter %s: loaded from %s, number %d", name, folder, loaded.number)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def unload(request: Request) -> Response:
    """Take an adapter away: nobody new can ask for it, answers under way end with it."""
    service, adapters = _allowed(request)
    name = (await endpoint.read(request, UnloadRequest)).lora_name
    endpoint.model(service, None)
    async with adapters.changing:
        found = service.named.get(name)
        if found is None or not found.adapter.number:
            raise ApiError(404, f"there is no adapter {name[:80]!r}", "lora_name", "not_found")
        del service.named[name]
        found.adapter.retired = True
        adapters.make_room()
    log.info("adapter %s: taken away", name)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def _allowed(request: Request) -> tuple[Service, Adapters]:
    """Raises a 403 for who may not, and where nobody may."""
    service: Service = request.app.state.service
    if not service.settings.adapter_folder:
        raise ApiError(
            403, "this server's adapters are those it was started with: it has no --adapter-folder"
        )
    admins = service.settings.admin
    if "*" not in admins and request.state.tenant not in admins:
        raise ApiError(403, "only keys of --admin may load and unload adapters")
    endpoint.model(service, None)  # which is ready
    assert service.adapters is not None
    return service, service.adapters


def _replaced(service: Service, name: str, inplace: bool) -> Model | None:
    """The adapter that has the name now; raises a 400 where that must not be replaced."""
    old = service.named.get(name)
    if name == service.settings.served_name or (old is not None and not old.adapter.number):
        raise ApiError(400, f"{name!r} is the model itself; choose another name", "lora_name")
    if old is not None and not inplace:
        raise ApiError(
            400,
            f"adapter {name!r} has already been loaded; to replace it set load_inplace to true",
            "lora_name",
        )
    return old
