"""What was compiled, when nothing should have been any more."""

import logging

import jax

log = logging.getLogger("serve.runner")
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """How many programs this process compiled, and a word in the log for those that came late."""

    def __init__(self) -> None:
        self.count = 0
        self.settled = False  # everything is compiled, as far as anybody knows
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **details: str | int) -> None:
        self.count += event == _COMPILED
        if self.settled and event == _COMPILED:
            log.warning("compiled %s in %.2f s after the warm-up", details, duration_secs)
