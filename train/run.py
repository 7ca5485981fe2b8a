"""A run: its folder, its data and its model, from settings to what comes out."""

import json
import shlex
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Literal

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from qwen_jax import checkpoint, distributed, model_folder
from qwen_jax.adapters.peft_config import LoraConfig
from qwen_jax.config import Config
from qwen_jax.files import atomic, strict_json
from qwen_jax.files.lock import only_writer
from qwen_jax.files.problems import Problems
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.program import progress
from qwen_jax.storage.native import Manifest
from qwen_jax.text.tokenizer import Tokenizer
from train import methods
from train.checkpoints import Checkpoints
from train.feed import Feed
from train.loop import Loop
from train.report import plot, speed
from train.report.reporters import Reporters
from train.report.run_logger import LOG, RunLogger, say
from train.samples import Samples
from train.settings import TrainConfig
from train.step import Recipe, Trainer

RATES = {"lora": 3e-4, "qlora": 3e-4, "full": 1e-5}
SETTINGS, CHECKPOINTS, RESULTS = "settings.json", "checkpoints", ("adapter", "model")
LOCK = "run.lock"  # held while a call of the run lives


def fine_tune(settings: TrainConfig) -> Path | None:
    """Train as the settings say, or go on where an earlier call with the same ones stopped.

    Returns the folder of the adapter or the network; None after SIGTERM or Ctrl-C, when all is
    saved for the next call. In a run of several processes all call this alike, and `out` is a
    folder that they all see.
    Raises ValueError with everything that is wrong, loop.NotFinite if training diverges,
    FileNotFoundError, or OSError when the disk is full.
    """
    distributed.join(settings.coordinator, settings.processes, settings.process)
    settings.check(jax.device_count())
    out = Path(settings.out)
    with only_writer(out, out / LOCK) if jax.process_index() == 0 else nullcontext():
        return _fine_tune(settings, out)


def _fine_tune(settings: TrainConfig, out: Path) -> Path | None:
    _expect_same_run(settings, out)
    for result in (out / name for name in RESULTS):
        if result.exists():
            say(f"this run is finished: {result} is there; {_next(settings, result)}")
            return result
    tokenizer = _tokenizer(settings.model, settings.extra_vocab_file)
    samples = _samples(settings.data, tokenizer, settings)
    held_out = None
    if settings.eval_data:
        held_out = _samples(settings.eval_data, tokenizer, settings, "measure")
    _begin(settings, out)
    return _train(settings, out, samples, held_out)


def _train(
    settings: TrainConfig, out: Path, samples: Samples, held_out: Samples | None
) -> Path | None:
    mesh = make_mesh(*settings.mesh_sizes(jax.device_count()))
    feed, measured = _feeds(settings, mesh, samples, held_out)
    with closing(Checkpoints(out / CHECKPOINTS, settings.keep, settings.keep_best)) as checkpoints:
        told = settings.report if jax.process_index() == 0 else ()
        done = checkpoints.latest() or 0
        with Reporters(told, out, done, settings.to_json()) as reporters:
            trainer, adapter, config = _trainer(settings, mesh, feed.steps)
            loop = Loop(settings, trainer, feed, measured, checkpoints)
            trained = sum(leaf.size for leaf in loop.state.trained.values())
            work = speed.work(config, trained, settings.max_length)
            say(
                f"{f'going on after step {done} of' if done else 'training'} {feed.steps} "
                f"steps of {settings.batch_size} rows x {settings.max_length} tokens; "
                f"{trained:,} parameters learn, on {_devices()}"
            )
            watch = RunLogger(out, feed.steps, done, work, settings.log_every, reporters.tell)
            with closing(watch):
                finished = loop.run(watch)
        if not finished:
            say(
                f"stopped after step {loop.done} of {feed.steps}, and saved; the same command "
                "goes on from there"
            )
            return None
        best = checkpoints.best() if settings.keep_best else loop.done
        state = loop.state if best == loop.done else loop.restore(best)
    leaves = state.trained
    if adapter is None:  # the masters of a network are longer than the weights it computes with
        leaves = {name: leaf.astype(trainer.dtype) for name, leaf in leaves.items()}
    result = methods.export(trainer.params(leaves), adapter, out)
    say(f"{watch.summary()}; {result} holds step {best}")
    say(_next(settings, result))
    return result


def _next(settings: TrainConfig, result: Path) -> str:
    """How to go on from what was made: to use it, and to train it further."""
    model, made = shlex.quote(settings.model), shlex.quote(str(result))
    use, more = f"{made} 'Hello'", f"--model {made}"
    if settings.method != "full":
        use, more = f"{model} 'Hello' --adapter {made}", f"--model {model} --adapter {made}"
    return f"use it: qwen-jax generate {use}; train it further: qwen-jax train {more} --out OTHER …"


def _feeds(
    settings: TrainConfig, mesh: Mesh, samples: Samples, held_out: Samples | None
) -> tuple[Feed, Callable[[], Feed] | None]:
    """What is learnt, and what makes a pass over what is held out."""
    rows = settings.division(jax.device_count())
    length = {"epochs": settings.epochs} if settings.steps is None else {"steps": settings.steps}
    feed = Feed(samples, mesh, rows, pack=settings.pack, seed=settings.seed, **length)
    if held_out is None:
        return feed, None
    return feed, lambda: Feed(held_out, mesh, (1, rows[1]), epochs=1, seed=None)


def _trainer(
    settings: TrainConfig, mesh: Mesh, steps: int
) -> tuple[Trainer, LoraConfig | None, Config]:
    """With what it trains: an adapter, or None for everything; and of which network."""
    with progress.working(f"loading {settings.model}"):
        params = checkpoint.load(
            settings.model, mesh, settings.dtype, extra_vocab_file=settings.extra_vocab_file
        )
    dtype = params.embed.dtype
    with progress.working("preparing what learns"):
        made = methods.prepare(params, settings)
    trainer = Trainer(made.params, made.trained, recipe(settings, steps), dtype)
    return trainer, made.adapter, params.config


def recipe(settings: TrainConfig, steps: int) -> Recipe:
    """What the settings say of each step, for so many of them."""
    return Recipe(
        steps=steps,
        learning_rate=settings.learning_rate or RATES[settings.method],
        schedule=settings.schedule,
        warmup=settings.warmup,
        beta2=settings.beta2,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        remat=settings.remat,
        seed=settings.seed,
    )


def _expect_same_run(settings: TrainConfig, out: Path) -> None:
    """Refuse a folder where something else was made, or with other settings."""
    saved = [out / name for name in RESULTS if (out / name).exists()]
    saved += [path for path in (out / CHECKPOINTS).glob("*") if path.name.isdecimal()]
    if not saved:
        return
    if not (out / SETTINGS).is_file():
        raise ValueError(f"{saved[0]} is there, but no {out / SETTINGS}; give another --out")
    Problems(settings.differences(strict_json.read(out / SETTINGS))).stop(
        f"{out} holds a run with other settings; give another --out, or the same ones"
    )
    plot.read_log(out / LOG)  # says what is wrong with it


def _begin(settings: TrainConfig, out: Path) -> None:
    if jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        atomic.write_text(out / SETTINGS, json.dumps(settings.to_json(), indent=1))
    multihost_utils.sync_global_devices("begun")


def _tokenizer(model: str, extra_vocab_file: str | None) -> Tokenizer:
    folder = model_folder.find(model)
    Manifest.read(folder)  # says what is wrong with another kind of folder
    tokenizer = Tokenizer.load(folder, extra_vocab_file)
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer; data cannot be encoded for it")
    return tokenizer


def _samples(
    data: tuple[str, ...],
    tokenizer: Tokenizer,
    settings: TrainConfig,
    use: Literal["learn", "measure"] = "learn",
) -> Samples:
    samples = Samples(
        data,
        tokenizer,
        length=settings.max_length,
        system=settings.system,
        loss_on=settings.loss_on,
        use=use,
    )
    for notice in samples.notices:
        say(notice)
    return samples


def _devices() -> str:
    count, processes = jax.device_count(), jax.process_count()
    devices = f"{count} {jax.devices()[0].device_kind} device{'s' if count > 1 else ''}"
    return devices + (f" of {processes} processes" if processes > 1 else "")
