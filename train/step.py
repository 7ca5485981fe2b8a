"""One step of training: a batch in, a better state out. The only jitted training functions."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax import memory
from qwen_jax.data.examples import IGNORED
from qwen_jax.nn.lora import with_dropout
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.quant import QuantLinear
from qwen_jax.nn.quant_matmul import COMPILER_OPTIONS
from qwen_jax.nn.sharding import RULES, mesh_of, spec
from qwen_jax.nn.tree import named_layers, named_leaves
from train.loss_scale import LossScale
from train.nn import Remat
from train.nn.loss import chunks, cross_entropy
from train.nn.network import hidden
from train.nn.on_cpu import outer_for

Leaves = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """The arrays of one step, int32 [A B T]: A times B rows of T tokens make one update."""

    tokens: Array
    targets: Array  # the token that follows, or IGNORED
    positions: Array  # from 0 in every sample
    segments: Array  # 1, 2, ... the samples of a row, 0 padding


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What training changes. `trained` holds float32 masters by the name of their leaf."""

    trained: Leaves
    optimizer: Any
    step: Array  # int32, updates asked for
    skipped: Array  # int32, of them those that were not made, in a row
    loss_scale: LossScale | None  # of float16 alone


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Metrics:
    """Of one step, float32 scalars."""

    loss: Array  # mean over the targets
    targets: Array  # their number
    tokens: Array  # those that are not padding
    gradient_norm: Array  # before clipping
    learning_rate: Array
    skipped: Array  # steps in a row, this one the last, whose gradient was not finite
    loss_scale: Array | None  # of this step, in float16


@dataclass(frozen=True)
class Recipe:
    """The numbers of an optimisation; the defaults are the original's."""

    steps: int
    learning_rate: float
    schedule: str = "cosine"
    warmup: float = 0.01  # of the steps
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # of matrices; norms and biases are left alone
    clip: float = 1.0  # the largest norm of a step's gradient
    remat: Remat = "full"
    seed: int = 42

    def rate(self, updates: Array) -> Array:
        """Linear from 0, then what the schedule says, as transformers' get_scheduler counts."""
        rise = -(-self.warmup * self.steps // 1)
        part = jnp.clip((updates - rise) / max(1.0, self.steps - rise), 0, 1)
        then = {
            "cosine": 0.5 * (1 + jnp.cos(jnp.pi * part)),
            "linear": 1 - part,
            "constant": jnp.ones_like(part),
        }[self.schedule]
        return self.learning_rate * jnp.where(updates < rise, updates / max(1.0, rise), then)

    def optimizer(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.adamw(
                self.rate, self.beta1, self.beta2, self.epsilon, weight_decay=self.weight_decay,
                mask=lambda trained: {name: _decays(name) for name in trained},
            ),
        )  # fmt: skip


def _decays(name: str) -> bool:
    return not name.endswith((".bias", ".scale"))


def _updates(optimizer: Any) -> Array:
    """How many it has made: a step that was skipped moves no schedule."""
    of_schedule = lambda path, _: any("Schedule" in getattr(key, "tuple_name", "") for key in path)
    return optax.tree.get(optimizer, "count", filtering=of_schedule)


def _count(batch: Batch) -> Array:
    """Its targets, float32."""
    return jnp.sum(batch.targets != IGNORED).astype(jnp.float32)


def batch_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """Where the arrays of a batch go: rows over the devices, None for the only device."""
    return None if mesh is None else NamedSharding(mesh, P(None, RULES["slot"]))


class Trainer:
    """A network divided into what is trained and what is not, and the step that both go through.

    params: with stacked blocks; ShapeDtypeStructs to compile for devices that are not there.
    trained: names of leaves; the others keep their dtype and get no gradient.
    dtype: of the computation.
    """

    def __init__(self, params: Qwen, trained: Iterable[str], recipe: Recipe, dtype: Any):
        leaves, wanted = named_leaves(params), set(trained)
        self.recipe, self.mesh, self.dtype = recipe, mesh_of(params), dtype
        self.names, self.tree = tuple(leaves), jax.tree.structure(params)
        self.frozen = {name: x for name, x in leaves.items() if name not in wanted}
        self._trained = {name: x for name, x in leaves.items() if name in wanted}
        self.optimizer = recipe.optimizer()
        self.shardings = None if self.mesh is None else self._shardings(self.mesh)
        out = None if self.shardings is None else (self.shardings, None)
        options = COMPILER_OPTIONS if named_layers(params, QuantLinear) else None
        self._step = jax.jit(
            self._update, donate_argnums=0, out_shardings=out, compiler_options=options
        )
        self._compiled = False
        self._score = jax.jit(self._losses, compiler_options=options)

    def start(self) -> TrainState:
        """Masters as the network has them, whose arrays are used up; an optimizer at rest."""
        make = jax.jit(self._start, out_shardings=self.shardings)
        state = jax.block_until_ready(make(self._trained))
        self.forget()
        return state

    def forget(self) -> None:
        """Free what the network had where it is trained: a state takes its place."""
        for array in self._trained.values():
            array.delete()

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The old state is used up. Returns at once: reading a metric waits for the device."""
        if not self._compiled:  # before the step's own memory is taken, not while it is
            self._step.lower(state, self.frozen, batch).compile()
            memory.trim()
            self._compiled = True
        return self._step(state, self.frozen, batch)

    def score(self, state: TrainState, batch: Batch) -> tuple[Array, Array]:
        """The sum of a batch's losses without dropout, and the number of its targets."""
        return self._score(state.trained, self.frozen, batch)

    def params(self, trained: Leaves, frozen: Leaves | None = None) -> Qwen:
        """The network with these leaves in it, its blocks stacked."""
        leaves = (self.frozen if frozen is None else frozen) | trained
        return jax.tree.unflatten(self.tree, [leaves[name] for name in self.names])

    def abstract(self, rows: tuple[int, int, int]) -> tuple[TrainState, Leaves, Batch]:
        """The arguments of a step on batches [A B T] as shapes with shardings, for a compiler."""
        state = jax.eval_shape(self._start, self._trained)
        if self.shardings is not None:
            put = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            state = jax.tree.map(put, state, self.shardings)
        one: Any = jax.ShapeDtypeStruct(rows, jnp.int32, sharding=batch_sharding(self.mesh))
        return state, self.frozen, Batch(one, one, one, one)

    def lower(self, rows: tuple[int, int, int]) -> jax.stages.Lowered:
        return self._step.lower(*self.abstract(rows))

    def _start(self, trained: Leaves) -> TrainState:
        masters = {name: x.astype(jnp.float32) for name, x in trained.items()}
        zero = jnp.zeros((), jnp.int32)
        scale = LossScale.start() if self.dtype == jnp.float16 else None
        return TrainState(masters, self.optimizer.init(masters), zero, zero, scale)

    def _shardings(self, mesh: Mesh) -> TrainState:
        """Optimizer moments lie where their masters do, counters everywhere."""
        where = {name: x.sharding for name, x in self._trained.items()}
        whole: Any = NamedSharding(mesh, P())
        state = jax.eval_shape(self._start, self._trained)
        moments = optax.tree.map_params(
            self.optimizer, lambda _, sharding: sharding, state.optimizer, where,
            transform_non_params=lambda _: whole,
        )  # fmt: skip
        scale = jax.tree.map(lambda _: whole, state.loss_scale)
        return TrainState(where, moments, whole, whole, scale)

    def _losses(self, trained: Leaves, frozen: Leaves, batch: Batch) -> tuple[Array, Array]:
        add = lambda sum, rows: (sum + self._loss(trained, frozen, rows), None)
        return jax.lax.scan(add, jnp.zeros(()), batch)[0], _count(batch)

    def _update(
        self, state: TrainState, frozen: Leaves, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), state.step)
        numbers = jnp.arange(batch.tokens[..., 0].size).reshape(batch.tokens.shape[:2])
        zeros = jax.tree.map(jnp.zeros_like, state.trained), jnp.zeros(())
        targets = _count(batch)
        scale = 1.0 if state.loss_scale is None else state.loss_scale.value

        def accumulate(sums: Any, given: tuple[Batch, Array]) -> tuple[Any, None]:
            rows, numbers = given
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
            find = jax.value_and_grad(self._loss)
            loss, gradient = find(
                state.trained, frozen, rows, scale / jnp.maximum(targets, 1), keys
            )
            return jax.tree.map(jnp.add, sums, (gradient, loss)), None

        sums, _ = jax.lax.scan(accumulate, zeros, (batch, numbers))
        gradient, loss = jax.tree.map(lambda scaled: scaled / scale, sums)
        norm = optax.tree.norm(gradient)
        sound = jnp.isfinite(norm) & jnp.isfinite(loss)
        changes, optimizer = self.optimizer.update(gradient, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, changes)
        trained, optimizer = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old),
            (trained, optimizer),
            (state.trained, state.optimizer),
        )
        skipped = jnp.where(sound, 0, state.skipped + 1)
        metrics = Metrics(
            loss=loss,
            targets=targets,
            tokens=jnp.sum(batch.segments > 0).astype(jnp.float32),
            gradient_norm=norm,
            learning_rate=self.recipe.rate(_updates(state.optimizer)),
            skipped=skipped,
            loss_scale=None if state.loss_scale is None else state.loss_scale.value,
        )
        after = None if state.loss_scale is None else state.loss_scale.after(sound)
        return TrainState(trained, optimizer, state.step + 1, skipped, after), metrics

    def _loss(
        self,
        trained: Leaves,
        frozen: Leaves,
        rows: Batch,
        scale: Array | float = 1.0,
        keys: Array | None = None,
    ) -> Array:
        """Summed over rows [B T], times a scale; keys [B] draw each row's dropout."""
        trained = {name: x.astype(self.dtype) for name, x in trained.items()}
        params = self.params(trained, frozen)
        if keys is not None:
            params = with_dropout(params, keys)
        x = hidden(params, rows.tokens, rows.positions, rows.segments, self.recipe.remat, self.mesh)
        head = self._whole(params.embed if params.head is None else params.head.kernel)
        devices = 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        pieces = chunks(len(x) // devices, x.shape[1])
        outer = outer_for(self.dtype, self.mesh)
        return cross_entropy(head, x, rows.targets, scale, pieces, outer)

    def _whole(self, head: Array) -> Array:
        """All of its width on every device, once: the loss's loop would ask for it again."""
        if self.mesh is None:
            return head
        partition = spec(self.mesh, ("vocab", None), head.shape)
        return jax.lax.with_sharding_constraint(head, NamedSharding(self.mesh, partition))
