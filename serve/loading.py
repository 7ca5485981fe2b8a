"""From settings to a model that is warm and running."""

import dataclasses
import logging
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from qwen_jax import load
from qwen_jax.adapters import attach, peft
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.text import chatml
from serve import cache_length
from serve.engine.engine import Engine
from serve.engine.model_runner import Compilations, ModelRunner
from serve.engine.multihost import Leader
from serve.engine.scheduler import Scheduler
from serve.service import Model, Service
from serve.settings import ServeConfig
from serve.text.grammar import Grammars

log = logging.getLogger("serve")


def parameters(settings: ServeConfig) -> Qwen:
    """The checkpoint on a mesh over all devices, or on the only one."""
    split = jax.device_count() > 1 or settings.data * settings.fsdp > 1
    mesh = make_mesh(settings.data, settings.fsdp) if split else None
    added = {name: peft.read(folder) for name, folder in settings.adapters.items()}
    params = load(settings.model, mesh, settings.dtype, settings.cache_dtype)
    if added:
        params = attach.add_all(params, added)
    if params.assets.tokenizer is None:
        raise ValueError(f"{settings.model} has no tokenizer, and a server needs one")
    return params


def runner(params: Qwen, settings: ServeConfig) -> ModelRunner:
    """Slots as long as `cache_length` says; every process of a run has as many tokens."""
    length = cache_length.choose(params, settings)
    if jax.process_count() > 1:
        length = int(multihost_utils.process_allgather(np.array(length)).min())
    why = cache_length.reason(settings, params.config, length)
    log.info("%d slots of %d tokens: %s", settings.slots, length, why)
    return ModelRunner(params, settings.slots, length, settings.chunk, settings.step_tokens)


def start(service: Service, params: Qwen, device: ModelRunner | Leader) -> None:
    """Compile everything, then let requests in."""
    settings, assets = service.settings, params.assets
    compilations = Compilations()
    before, began = compilations.count, time.monotonic()
    device.warm()
    compiled = compilations.count - before
    seconds = time.monotonic() - began
    log.info("warm after %.1f s: %d programs of %d slots", seconds, compiled, device.slots)
    settled, compilations.settled = compilations.count, True
    service.metrics.watch(
        "compilations",
        "Programs compiled since the warm-up; each held everybody up",
        lambda: compilations.count - settled,
    )
    ends = [end[0] for end in assets.defaults.eos_ids if len(end) == 1]
    if chatml.IM_END in assets.tokenizer.specials:
        ends.append(assets.tokenizer.specials[chatml.IM_END])
    schedule = Scheduler(
        settings.slots, settings.chunk, settings.queue, settings.step_tokens, settings.prefix_reuse
    )
    engine = Engine(device, schedule, service.metrics)
    grammars = Grammars(
        assets.tokenizer, params.config.vocab, ends or [assets.tokenizer.end_of_text]
    )
    engine.start()
    model = Model(
        name=settings.served_name,
        adapter=0,
        config=params.config,
        tokenizer=assets.tokenizer,
        defaults=assets.defaults,
        length=device.length,
        engine=engine,
        grammars=grammars,
        prefix_scope=device.prefix_scope,
    )
    service.named = {alias: dataclasses.replace(model, name=alias) for alias in settings.aliases}
    service.named |= {
        name: dataclasses.replace(model, name=name, adapter=number)
        for number, name in enumerate(settings.adapters, 1)
    }
    service.model = model
