"""Where a run goes on from: its state every so many steps, written while the next ones are made."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from qwen_jax.files import atomic, strict_json
from qwen_jax.nn.tree import named_leaves
from qwen_jax.storage.hashed_arrays import digest_file

T = TypeVar("T")
MEASURE = "held_out_loss"
SEAL = "hashes.json"  # in a checkpoint's folder: of all its files, once they are on the disk


class Checkpoints:
    """The checkpoints of a run by their step; every process of the run makes the same calls.

    keep: the newest ones that stay. keep_best: so does the one with the least held-out loss.
    A checkpoint is a folder that gets its name when it is whole: what is killed while it writes
    loses that one alone. The hashes of its files are written behind it, and compared when it is
    read. OSError: the disk is full; the older ones are as they were.
    """

    def __init__(self, folder: Path, keep: int, keep_best: bool):
        self.folder = folder
        for step in folder.glob("*/metrics"):  # orbax would choose by them
            self._expect_whole(step.parent, "metrics")
        self._need: int | None = None  # bytes of a checkpoint, once there is one
        measured = lambda metrics: metrics[MEASURE]
        policies: list[Any] = [LatestN(keep)]
        if keep_best:
            best = BestN(
                get_metric_fn=measured, reverse=True, n=1, keep_checkpoints_without_metrics=False
            )
            policies.append(best)
        self._orbax = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                best_fn=measured if keep_best else None,  # makes orbax write the measures down
                best_mode="min",
                preservation_policy=AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
            ),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "data": ocp.JsonCheckpointHandler(),
            },
        )

    def latest(self) -> int | None:
        return self._orbax.latest_step()

    def best(self) -> int:
        """The step with the least held-out loss; a ValueError where none was measured."""
        steps = {step: self._orbax.metrics(step) for step in self._orbax.all_steps()}
        return min((m[MEASURE], step) for step, m in steps.items() if m)[1]

    def save(self, step: int, state: Any, data: dict[str, Any], held_out: float | None) -> None:
        """Returns when the devices are free again; waits for the checkpoint before this one.

        data: where the batches are, as JSON. held_out: the loss, where it was measured.
        """
        leaves = named_leaves(state)
        self._need = sum(leaf.nbytes for leaf in leaves.values())
        with self._faults():
            if jax.process_count() == 1:  # of several, others may be writing already
                self._orbax.wait_until_finished()
                self._seal()
                atomic.check_room(self.folder, self._need)  # orbax prints what its threads meet
            self._orbax.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(leaves),
                    data=ocp.args.JsonSave(data),
                ),
                metrics=None if held_out is None else {MEASURE: held_out},
                force=True,
            )

    def restore(self, step: int, like: T) -> tuple[T, dict[str, Any]]:
        """A state straight to its shards, from whatever mesh, and the place in the data.

        like: the state's tree of ShapeDtypeStructs with shardings.
        """
        self._expect_whole(self.folder / str(step))
        leaves = named_leaves(like)
        args = ocp.args.Composite(state=_restore_args(leaves), data=ocp.args.JsonRestore())
        try:
            found = self._orbax.restore(step, args=args)
        except Exception as error:  # orbax wraps what its parts do in plain ones
            reason = str(error.__cause__ or error).strip().partition("\n")[0][:300]
            raise ValueError(
                f"{self.folder / str(step)} cannot be read: {reason}; "
                "delete it to go on from the one before"
            ) from error
        arrays: Mapping[str, Any] = found["state"]
        state = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in leaves])
        return state, found["data"]

    def close(self) -> None:
        """Wait until all that was saved is on the disk."""
        try:
            with self._faults():
                self._orbax.wait_until_finished()
                self._seal()
        finally:  # its threads would keep the process from ending
            self._orbax.close()

    def _seal(self) -> None:
        """Write down the hashes of what orbax has finished since, of which it keeps none."""
        for step in self._orbax.all_steps() if jax.process_index() == 0 else ():
            folder = self.folder / str(step)
            if not (folder / SEAL).exists():
                files = sorted(file for file in folder.rglob("*") if file.is_file())
                hashes = {file.relative_to(folder).as_posix(): digest_file(file) for file in files}
                atomic.write_text(folder / SEAL, json.dumps(hashes, indent=1))

    def _expect_whole(self, folder: Path, part: str = "") -> None:
        """Raise ValueError where files are not what was written; what was killed has no seal."""
        if not (folder / SEAL).exists():
            return
        for name, hash in strict_json.read(folder / SEAL).items():
            file = folder / name
            if name.startswith(part) and not (file.is_file() and digest_file(file) == hash):
                raise ValueError(
                    f"{folder} cannot be read: {name} is not what was written; "
                    "delete the folder to go on from the one before"
                )

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            whole = "the checkpoints before this one are whole"
            advice = f"{whole}; make room and run the same command again"
            atomic.explain(error, self.folder, self._need, advice)
            reason = str(error).strip().partition("\n")[0][:300]
            raise OSError(f"{self.folder} cannot be written: {reason}; {whole}") from error


def _restore_args(leaves: Mapping[str, jax.ShapeDtypeStruct]) -> ocp.args.PyTreeRestore:
    """Arrays straight to their shardings, in the dtypes wanted."""
    how = {
        name: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=True
        )
        for name, leaf in leaves.items()
    }
    return ocp.args.PyTreeRestore(item=leaves, restore_args=how)
