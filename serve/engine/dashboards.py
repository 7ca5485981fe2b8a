"""The same numbers under the names that others look for.

vLLM's dashboards read them, and so does the Gateway API's inference extension, which sends a
request to the server whose queue and cache have room.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric

from serve.engine.request import Request

NAMES = {  # ours, and theirs with its kind
    "qwen_requests_running": ("vllm:num_requests_running", "gauge"),
    "qwen_requests_waiting": ("vllm:num_requests_waiting", "gauge"),
    "qwen_cache_usage": ("vllm:kv_cache_usage_perc", "gauge"),
    "qwen_preemptions": ("vllm:num_preemptions", "counter"),
    "qwen_read_prompt_tokens": ("vllm:prefix_cache_queries", "counter"),
    "qwen_shared_prompt_tokens": ("vllm:prefix_cache_hits", "counter"),
    "qwen_drafts": ("vllm:spec_decode_num_drafts", "counter"),
    "qwen_draft_tokens": ("vllm:spec_decode_num_draft_tokens", "counter"),
    "qwen_accepted_tokens": ("vllm:spec_decode_num_accepted_tokens", "counter"),
    "qwen_prompt_tokens": ("vllm:prompt_tokens", "counter"),
    "qwen_generated_tokens": ("vllm:generation_tokens", "counter"),
    "qwen_requests_finished": ("vllm:request_success", "counter"),
    "qwen_time_to_first_token_seconds": ("vllm:time_to_first_token_seconds", "histogram"),
    "qwen_time_per_output_token_seconds": ("vllm:time_per_output_token_seconds", "histogram"),
    "qwen_request_duration_seconds": ("vllm:e2e_request_latency_seconds", "histogram"),
}
Followed = Mapping[str, Collection[Request]]  # those of an adapter that are not answered
_LABELS = {"reason": "finished_reason"}
_REASONS = {"cancelled": "abort"}


class Dashboards:
    """A registry whose numbers are those of another."""

    def __init__(self, registry: CollectorRegistry, model: str, pages: int, page: int):
        self._registry, self._model = registry, model
        self._cache = {"block_size": str(page), "num_gpu_blocks": str(pages)}
        # the most there may be, and who follows each
        self.adapters: Callable[[], tuple[int, Followed]] = lambda: (0, {})

    def collect(self) -> Iterator[Metric]:
        for ours in self._registry.collect():
            if ours.name in NAMES:
                yield self._renamed(ours)
        labels = {"model_name": self._model, **self._cache}
        cache = GaugeMetricFamily("vllm:cache_config_info", "The cache", labels=list(labels))
        cache.add_metric(list(labels.values()), 1)
        yield cache
        most, followed = self.adapters()
        if most:
            yield _adapters(most, followed)

    def _renamed(self, ours: Metric) -> Metric:
        name, kind = NAMES[ours.name]
        made = Metric(name, ours.documentation, kind)
        for sample in ours.samples:
            suffix = sample.name.removeprefix(ours.name)
            if kind == "counter" and ours.type == "gauge":
                suffix = "_total"
            labels = {
                _LABELS.get(label, label): _REASONS.get(value, value)
                for label, value in sample.labels.items()
            }
            made.add_sample(name + suffix, {"model_name": self._model, **labels}, sample.value)
        return made


def _adapters(most: int, followed: Followed) -> Metric:
    """Which are used and waited for: a balancer sends a request where its adapter is."""
    some = lambda slotted: ",".join(
        name for name, asked in followed.items() if any((r.slot >= 0) == slotted for r in asked)
    )
    labels = {
        "max_lora": str(most),
        "running_lora_adapters": some(True),
        "waiting_lora_adapters": some(False),
    }
    made = GaugeMetricFamily("vllm:lora_requests_info", "Adapters, as of now", labels=list(labels))
    made.add_metric(list(labels.values()), time.time())
    return made
