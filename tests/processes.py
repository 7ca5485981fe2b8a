"""The opening of scripts that tests run as two processes of one run, on CPUs."""

JOIN = """
import sys
import jax
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", {devices})
jax.config.update("jax_cpu_collectives_implementation", "gloo")
address = f"127.0.0.1:{{port}}"
jax.distributed.initialize(address, 2, rank, coordinator_bind_address=address,
                           initialization_timeout=60, heartbeat_timeout_seconds=10)
"""


def joining(devices: int) -> str:
    """Join a run as `rank`, with so many devices; the arguments are rank, port and folder."""
    return JOIN.format(devices=devices)


def said(errors: str) -> str:
    """What a program wrote to stderr, without how far it was, which depends on the machine."""
    return "".join(line for line in errors.splitlines(True) if not line.endswith("…\n"))
