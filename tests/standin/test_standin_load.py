"""Under load the stand-in keeps its pace, queues for real, and counts as vLLM counts."""

import pytest

from . import Standin
from .client import EXACT, STREAM, arrivals, eventually, families, load, opened, sample
from .settings import COMPLETIONS

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


class TestPace:
    """The latencies that were set are the latencies that a client sees."""

    def test_ttft_and_tpot(self, standin: Standin) -> None:
        """The first token is not early, and the others follow at their own pace."""
        standin.configure(ttft_ms=100, tpot_ms=10)
        times = arrivals(standin)
        assert times[0] >= 0.09
        assert 0.28 <= times[-1] < 4
        assert len(times) == 20

    def test_slow_requests(self, standin: Standin) -> None:
        """A share of 1 makes every request slow."""
        standin.configure(ttft_slow=[[1, 150]])
        assert arrivals(standin)[0] >= 0.15


class TestQueue:
    """Seats are limited, and the rest waits in line."""

    def test_running_and_waiting(self, standin: Standin) -> None:
        """With two seats and six clients two run and four wait, until all are served."""
        standin.configure(max_num_seqs=2, tpot_ms=20)
        with load(standin, 6) as replies:
            eventually(lambda: (sample(standin, RUNNING), sample(standin, WAITING)) == (2, 4))
            assert sample(standin, "vllm:kv_cache_usage_perc") == 2 / 4096
        assert [len(reply.events()) for reply in replies] == [22] * 6
        assert (sample(standin, RUNNING), sample(standin, WAITING)) == (0, 0)

    def test_a_seat_is_waited_for(self, standin: Standin) -> None:
        """The time in the queue is part of the server's time to first token."""
        standin.configure(max_num_seqs=1, ttft_ms=100, tpot_ms=0)
        with load(standin, 3):
            pass
        histogram = families(standin)["vllm:time_to_first_token_seconds"]
        total = next(s.value for s in histogram.samples if s.name.endswith("_sum"))
        # 100 + 200 + 300 ms, less what timers round; without a queue it would be half of it.
        assert 0.5 <= total < 6

    @pytest.mark.parametrize(("routing", "shares"), [("round_robin", [4, 4]), ("first", [8, 0])])
    def test_engines(self, standin: Standin, routing: str, shares: list[int]) -> None:
        """Requests are dealt to the engines in turn, or all to one."""
        standin.configure(engines=2, routing=routing)
        with load(standin, 8):
            pass
        served = [
            sample(standin, "vllm:request_success_total", engine=engine) for engine in ("0", "1")
        ]
        assert served == shares
        assert [r["engine"] for r in standin.requests()].count(1) == shares[1]

    def test_every_engine_has_its_own_seats(self, standin: Standin) -> None:
        """Two engines with one seat each run two requests."""
        standin.configure(engines=2, max_num_seqs=1, tpot_ms=20)
        with load(standin, 4):
            eventually(lambda: sample(standin, RUNNING, engine="1") == 1)
            eventually(lambda: sample(standin, WAITING, engine="0") == 1)

    def test_settings_do_not_free_seats(self, standin: Standin) -> None:
        """Turning another knob under load leaves the seats taken."""
        standin.configure(max_num_seqs=1, tpot_ms=200)
        with opened(standin, STREAM) as first:
            assert first.getresponse().status == 200
            standin.configure(seed=1)
            with opened(standin, STREAM):
                eventually(lambda: sample(standin, WAITING) == 1)

    @pytest.mark.parametrize("seats", [1, 2])
    def test_who_leaves_is_counted(self, standin: Standin, seats: int) -> None:
        """A client that hangs up, running or waiting, frees its place as an abort."""
        standin.configure(max_num_seqs=seats, tpot_ms=200)
        with opened(standin, STREAM), opened(standin, STREAM):
            eventually(lambda: sample(standin, RUNNING) + sample(standin, WAITING) == 2)
            assert sample(standin, RUNNING) == seats
        aborted = {"finished_reason": "abort"}
        eventually(lambda: sample(standin, "vllm:request_success_total", **aborted) == 2)
        assert (sample(standin, RUNNING), sample(standin, WAITING)) == (0, 0)


class TestMetrics:
    """The page that Prometheus reads."""

    def test_counters_add_up(self, standin: Standin) -> None:
        """Tokens, cache hits, preemptions and finishes are those of the requests served."""
        standin.configure(prefix_hit_fraction=0.5, preemptions_per_request=0.5)
        with load(standin, 4, prompt=[1] * 100):
            pass
        standin.call("POST", COMPLETIONS, EXACT | {"ignore_eos": False})
        expected = {
            "prompt_tokens": 403,
            "generation_tokens": 4 * 20 + 16,
            "prefix_cache_queries": 403,
            "prefix_cache_hits": 4 * 50 + 2,
            "num_preemptions": 2,
            "request_success": 5,
        }
        found = {name: sample(standin, f"vllm:{name}_total") for name in expected}
        assert found == expected
        stopped = {"finished_reason": "stop", "engine": "0", "model_name": "tiny-llama"}
        assert sample(standin, "vllm:request_success_total", **stopped) == 1

    def test_kinds(self, standin: Standin) -> None:
        """The standard parser understands the page and finds the kinds that vLLM declares."""
        kinds = {name: family.type for name, family in families(standin).items()}
        expected = {
            "process_start_time_seconds": "gauge",
            "vllm:kv_cache_usage_perc": "gauge",
            "vllm:cache_config_info": "gauge",
            "vllm:num_preemptions": "counter",
            "vllm:request_success": "counter",
            "vllm:time_to_first_token_seconds": "histogram",
        }
        assert expected.items() <= kinds.items()

    def test_cache_config(self, standin: Standin) -> None:
        """Over data-parallel engines vLLM sums the blocks, not the tokens."""
        standin.configure(engines=2, block_size=16, cache_config={"cache_dtype": "fp8"})
        first, second = families(standin)["vllm:cache_config_info"].samples
        assert (first.labels["engine"], second.labels["engine"]) == ("0", "1")
        assert "model_name" not in first.labels
        told = {
            "block_size": "16",
            "num_gpu_blocks": "8192",
            "kv_cache_size_tokens": "65536",
            "kv_cache_max_concurrency": "128.0",
            "kv_cache_memory_bytes": "134217728",
            "gpu_memory_utilization": "0.92",
            "cache_dtype": "fp8",
        }
        assert told.items() <= first.labels.items()

    def test_labels_are_escaped(self, standin: Standin) -> None:
        """A quote in the model's name does not break the page."""
        standin.configure(model='a"b\\c')
        assert len(families(standin)) > 10
        assert sample(standin, RUNNING, model_name='a"b\\c', engine="0") == 0
