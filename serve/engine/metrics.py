"""What /metrics tells Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.engine.dashboards import Dashboards

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)

_LAGS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """One server's numbers, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = lambda name, text, *labels: Counter(
            f"qwen_{name}", text, labels, registry=self.registry
        )
        histogram = lambda name, text, buckets=_SECONDS: Histogram(
            f"qwen_{name}_seconds", text, buckets=buckets, registry=self.registry
        )
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts accepted")
        self.generated_tokens = counter("generated_tokens", "Tokens written")
        self.finished = counter("requests_finished", "Requests that ended", "reason")
        self.rejected = counter("requests_rejected", "Requests refused", "status")
        self.failures = counter("engine_failures", "Errors of the device or the schedule")
        self.first_token = histogram("time_to_first_token", "From request to first token")
        self.per_token = histogram("time_per_output_token", "Between tokens, mean of a request")
        self.whole = histogram("request_duration", "From request to last token")
        self.loop_lag = histogram("event_loop_lag", "By which the event loop is late", _LAGS)

        self.dashboards: Dashboards | None = None  # once there is a model

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        found = [generate_latest(self.registry)]
        if self.dashboards is not None:
            found.append(generate_latest(self.dashboards))
        return b"".join(found)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when somebody looks."""
        Gauge(f"qwen_{name}", text, registry=self.registry).set_function(read)
