"""From settings to a model that is warm and running."""

import copy
import dataclasses
import gc
import logging
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from qwen_jax import load, memory
from qwen_jax.adapters import attach, bank, peft
from qwen_jax.checkpoint import Examined, examine
from qwen_jax.decoding import drafts
from qwen_jax.decoding.completion import defaults_of, text_tokenizer, tokenizer_of
from qwen_jax.decoding.flat_params import flatten
from qwen_jax.embeddings import end_of
from qwen_jax.nn import backends
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.program import progress
from qwen_jax.text import chatml, relevance
from serve import cache_memory
from serve.adapters import Adapters, Loaded
from serve.cache_memory import Room
from serve.engine.compilations import Compilations
from serve.engine.dashboards import Dashboards
from serve.engine.engine import Engine
from serve.engine.model_runner import ModelRunner
from serve.engine.multihost import Leader
from serve.engine.scheduler import Scheduler
from serve.engine.turn import Limits
from serve.service import Model, Service
from serve.settings import ServeConfig
from serve.text.grammar import Grammars

_TURN = 0.0001  # seconds that a thread keeps the interpreter while another waits for it
_LONGEST_STRETCH = 2**20  # bytes: 50 MB of work space

log = logging.getLogger("serve")


def check(settings: ServeConfig) -> Examined:
    """Raise what `parameters` would, as far as it shows before an array is read."""
    manifest, config, assets = examined = examine(settings.model)
    if assets.tokenizer is None:
        raise ValueError(f"{settings.model} has no tokenizer, and a server needs one")
    for name, folder in settings.adapters.items():
        try:
            attach.deltas_of(peft.read(folder), config, manifest.model_type)
        except ValueError as error:
            raise ValueError(f"adapter {name!r}: {error}") from None
    task = settings.task or _own_task(assets)
    if task == "rerank":
        relevance.answers(assets.tokenizer)
    if task == "embed":
        end_of(assets.tokenizer)
    if settings.adapter_folder and jax.process_count() > 1:
        raise ValueError(
            "--adapter-folder is for a server of one process; start several with --adapter"
        )
    mesh, platform = _mesh(settings), jax.devices()[0].platform
    x = settings.dtype or manifest.leaves["norm.scale"].dtype
    how: dict[str, Any] = {"shared": True, "x": x, "stored": settings.cache_dtype}
    backends.choose(settings.attention, platform, config, ModelRunner.page, mesh, **how)
    cache_memory.check(settings, config)
    return examined


def _mesh(settings: ServeConfig) -> Mesh | None:
    """Over all devices; None is the only one."""
    sizes = (settings.mesh_data, settings.mesh_fsdp, settings.mesh_tensor)
    split = jax.device_count() > 1 or sizes != (1, 1, None)
    return make_mesh(*sizes) if split else None


def parameters(settings: ServeConfig, examined: Examined | None = None) -> Qwen:
    """The checkpoint on a mesh over all devices, or on the only one; examined: by `check`."""
    added = {name: peft.read(folder) for name, folder in settings.adapters.items()}
    params = load(examined or settings.model, _mesh(settings), settings.dtype)
    if settings.adapter_folder:
        params = bank.with_room(params, settings.adapter_ranks, settings.max_adapters)
    elif added:
        params = attach.add_all(params, added)
    if tokenizer_of(params) is None:
        raise ValueError(f"{settings.model} has no tokenizer, and a server needs one")
    return params


def runner(params: Qwen, settings: ServeConfig) -> ModelRunner:
    """With as many pages as `cache_memory` says; every process of a run has as many."""
    room = cache_memory.choose(params, settings, ModelRunner.page)
    if jax.process_count() > 1:
        sizes = multihost_utils.process_allgather(np.array([room.pages, room.length]))
        pages, length = sizes.min(axis=0).tolist()
        room = dataclasses.replace(room, pages=pages, length=length)
    log.info("a cache of %d tokens: %s", room.tokens, room.reason(settings, params.config))
    why = room.length_reason(settings, params.config)
    log.info("%d slots, texts of at most %d tokens: %s", settings.slots, room.length, why)
    weights, draft_tokens = flatten(params), settings.draft_tokens
    if draft_tokens is None and weights.platform == "cpu":
        draft_tokens = 0  # with sixteen plain answers under way they cost a tenth of the speed
    return ModelRunner(
        params,
        settings.slots,
        room.length,
        room.pages,
        settings.chunk,
        settings.step_tokens,
        memory.dtype_of_cache(params, settings.cache_dtype, settings.attention),
        _pools(params, settings),
        drafts.wanted(weights, 2, draft_tokens),
        settings.attention,
    )


def task_of(params: Qwen, settings: ServeConfig) -> str:
    """What requests may ask of the model."""
    return settings.task or _own_task(params.assets)


def _own_task(assets: Any) -> str:
    """What a checkpoint was made for, as far as its files say."""
    return "embed" if getattr(assets, "pooling", None) is not None else "generate"


def _pools(params: Qwen, settings: ServeConfig) -> list[int] | None:
    """What texts become: None, answers; no ids, vectors; ids, their logits."""
    task = task_of(params, settings)
    if task == "generate":
        return None
    return relevance.answers(text_tokenizer(params)) if task == "rerank" else []


def _warm(service: Service, device: ModelRunner | Leader) -> None:
    """Compile; how far that is, is said to those who ask, and in the log."""
    with progress.working("compiling", None, "programs") as task:

        def tell(done: int, count: int) -> None:
            service.stage = f"the model is being loaded: {done} of {count} programs compiled"
            task.total, task.done = count, done

        device.warm(tell)


def start(service: Service, params: Qwen, device: ModelRunner | Leader) -> None:
    """Compile everything, then let requests in."""
    settings, defaults = service.settings, defaults_of(params)
    tokenizer = copy.copy(text_tokenizer(params))
    tokenizer.longest_stretch = _LONGEST_STRETCH
    adapters = _adapters(service, params, device)
    compilations = Compilations()
    before, began = compilations.count, time.monotonic()
    _warm(service, device)
    compiled = compilations.count - before
    seconds = time.monotonic() - began
    log.info("warm after %.1f s: %d programs of %d slots", seconds, compiled, device.slots)
    settled, compilations.settled = compilations.count, True
    service.metrics.watch(
        "compilations",
        "Programs compiled since the warm-up; each held everybody up",
        lambda: compilations.count - settled,
    )
    ends = [end[0] for end in defaults.eos_ids if len(end) == 1]
    if chatml.IM_END in tokenizer.specials:
        ends.append(tokenizer.specials[chatml.IM_END])
    limits = Limits(
        slots=device.slots,
        pages=device.pages,
        page=device.page,
        chunk=settings.chunk,
        step_tokens=settings.step_tokens,
        queue=settings.queue,
        tile=device.tile,
        share=settings.prefix_reuse,
        draft_tokens=device.draft_tokens,
    )
    schedule = Scheduler(limits)
    service.metrics.dashboards = Dashboards(
        service.metrics.registry, settings.served_name, device.pages, device.page
    )
    service.metrics.dashboards.adapters = service.followed
    engine = Engine(device, schedule, service.metrics)
    grammars = Grammars(tokenizer, params.config.vocab, ends or [tokenizer.end_of_text])
    engine.start()
    model = Model(
        name=settings.served_name,
        adapter=Loaded(),
        task=task_of(params, settings),
        config=params.config,
        tokenizer=tokenizer,
        defaults=defaults,
        room=Room(device.pages, device.page, device.length),
        engine=engine,
        grammars=grammars,
        prefix_scope=device.prefix_scope,
        prompts=pooling.prompts if (pooling := getattr(params.assets, "pooling", None)) else {},
    )
    service.named = {alias: dataclasses.replace(model, name=alias) for alias in settings.aliases}
    service.named |= {
        name: dataclasses.replace(model, name=name, adapter=loaded)
        for name, loaded in adapters.items()
    }
    service.model = model


def _adapters(service: Service, params: Qwen, device: ModelRunner | Leader) -> dict[str, Loaded]:
    """Those the server starts with; in a bank, where others may come."""
    folders = service.settings.adapters
    if not service.settings.adapter_folder:
        return {name: Loaded(number, number) for number, name in enumerate(folders, 1)}
    assert isinstance(device, ModelRunner), "several processes have been refused"
    service.adapters = Adapters(bank.Bank(params), device.replace)
    try:
        return {name: service.adapters.load(folder) for name, folder in folders.items()}
    except ValueError as error:
        raise ValueError(f"an adapter: {error}; see --adapter-ranks") from None


def settle() -> None:
    """Make the process a server's, once the model is there."""
    sys.setswitchinterval(_TURN)  # the event loop never works for long, and should not wait long
    gc.freeze()  # what lives as long as the process is looked through no more: 0.2 s each time
