"""The text of /metrics, in the names, labels and buckets of vLLM."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

from .engine import Engine
from .settings import Settings

Labels = dict[str, str]
Sample = tuple[Labels, float]

#: What one token takes in the KV cache of the tiny model.
KV_BYTES_PER_TOKEN = 2048

COUNTERS = {
    "num_preemptions": "Cumulative number of preemption from the engine.",
    "prompt_tokens": "Number of prefill tokens processed.",
    "generation_tokens": "Number of generation tokens processed.",
    "prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
}
FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")


def render(engines: Sequence[Engine], settings: Settings, started: float) -> str:
    """Return the whole page; `started` is when the server came up, in Unix seconds."""
    labelled = [({"engine": str(e.index), "model_name": settings.model}, e) for e in engines]
    lines = _family(
        "process_start_time_seconds", "gauge", "Start time of the process.", [({}, started)]
    )
    lines += _gauges(labelled, settings)
    for name, text in COUNTERS.items():
        samples = [(labels, engine.totals[name]) for labels, engine in labelled]
        lines += _counter(f"vllm:{name}", text, samples, started)
    finished = [
        (labels | {"finished_reason": reason}, engine.finished[reason])
        for labels, engine in labelled
        for reason in FINISHED_REASONS
    ]
    lines += _counter(
        "vllm:request_success", "Count of successfully processed requests.", finished, started
    )
    lines += _ttft(labelled)
    lines += _cache_config(engines, settings)
    return "\n".join(lines) + "\n"


def _gauges(labelled: Sequence[tuple[Labels, Engine]], settings: Settings) -> list[str]:
    def gauge(name: str, text: str, values: Iterable[float]) -> list[str]:
        samples = [(labels, value) for (labels, _), value in zip(labelled, values, strict=True)]
        return _family(f"vllm:{name}", "gauge", text, samples)

    engines = [engine for _, engine in labelled]
    return [
        *gauge(
            "num_requests_running",
            "Number of requests in model execution batches.",
            (len(engine.cached) for engine in engines),
        ),
        *gauge(
            "num_requests_waiting",
            "Number of requests waiting to be processed.",
            (engine.waiting for engine in engines),
        ),
        *gauge(
            "kv_cache_usage_perc",
            "KV-cache usage. 1 means 100 percent usage.",
            (engine.kv_usage(settings) for engine in engines),
        ),
    ]


def _ttft(labelled: Sequence[tuple[Labels, Engine]]) -> list[str]:
    name = "vllm:time_to_first_token_seconds"
    lines = _head(name, "histogram", "Histogram of time to first token in seconds.")
    for labels, engine in labelled:
        bounds = [*map(str, engine.ttft.bounds), "+Inf"]
        totals = list(accumulate(engine.ttft.counts))
        lines += [
            _line(f"{name}_bucket", labels | {"le": bound}, total)
            for bound, total in zip(bounds, totals, strict=True)
        ]
        lines += [
            _line(f"{name}_count", labels, totals[-1]),
            _line(f"{name}_sum", labels, engine.ttft.sum),
        ]
    return lines


def _cache_config(engines: Sequence[Engine], settings: Settings) -> list[str]:
    tokens = settings.num_gpu_blocks * settings.block_size
    labels = {
        "block_size": str(settings.block_size),
        # vLLM sums the blocks over the data-parallel engines, but not the tokens.
        "num_gpu_blocks": str(settings.num_gpu_blocks * len(engines)),
        "kv_cache_size_tokens": str(tokens),
        "kv_cache_max_concurrency": str(tokens / settings.max_model_len),
        "kv_cache_memory_bytes": str(tokens * KV_BYTES_PER_TOKEN),
        "gpu_memory_utilization": "0.92",
        "cache_dtype": "auto",
        "enable_prefix_caching": "True",
        **settings.cache_config,
    }
    samples: list[Sample] = [(labels | {"engine": str(e.index)}, 1.0) for e in engines]
    text = "Information of the LLMEngine CacheConfig"
    return _family("vllm:cache_config_info", "gauge", text, samples)


def _counter(name: str, text: str, samples: Sequence[Sample], started: float) -> list[str]:
    created: list[Sample] = [(labels, started) for labels, _ in samples]
    return [
        *_family(f"{name}_total", "counter", text, samples),
        *_family(f"{name}_created", "gauge", text, created),
    ]


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> list[str]:
    return _head(name, kind, text) + [_line(name, labels, value) for labels, value in samples]


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _line(name: str, labels: Labels, value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{pairs}}} {float(value)}" if pairs else f"{name} {float(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
