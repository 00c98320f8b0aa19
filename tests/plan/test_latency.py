"""The latency prediction: its arithmetic by hand, its limits, its facts, and what it is worth."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.plan.accuracy import SERIES, ours, predicted, series, tpot_errors
from benchmarks.plan.choice import choices
from benchmarks.plan.deployments import LLAMA, QWEN
from pytest_llmdeploy.facts import Gpu, gpus
from pytest_llmdeploy.plan.latency import Analytical, Load, Prediction, Version, Work
from pytest_llmdeploy.plan.second_opinion import SecondOpinion, SecondOpinionError

H100 = gpus()["H100-SXM-80GB"]
PREDICTOR = Analytical.shipped()
LOAD = Load(
    input_tokens=1024,
    output_tokens=128,
    concurrency=8,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
)
INSTALLED = find_spec("aiconfigurator_core") is not None
MEASURED = pytest.mark.skipif(not INSTALLED, reason="aiconfigurator-core has the measurements")


def llama(tensor: int = 8, pipeline: int = 1, **changes: Any) -> Work:
    """Llama-3-70B in bf16, which a KV pool of 1,000,000 tokens is left for."""
    parts = tensor * pipeline
    work = Work(
        tensor=tensor,
        pipeline=pipeline,
        data=1,
        expert=False,
        layers=LLAMA.layers,
        stage_layers=-(-LLAMA.layers // pipeline),
        hidden=LLAMA.hidden,
        weights_bytes=round(2 * (LLAMA.linear + LLAMA.head) / parts),
        expert_bytes=0,
        experts=0,
        total_experts=0,
        experts_per_token=0,
        flops_per_token=2 * LLAMA.linear / parts,
        attention_flops=4 * LLAMA.heads * LLAMA.head_size * LLAMA.layers / parts,
        kv_bytes_per_token=4 * LLAMA.layers * LLAMA.head_size * max(1, 8 // tensor) // pipeline,
        compute="bf16",
        kv_tokens=1_000_000,
        nodes=1,
    )
    return replace(work, **changes)


def mixture(data: int, experts: int, **changes: Any) -> Work:
    """A mixture of 128 experts, 8 for each token, `experts` of them on the rank."""
    return llama(
        1,
        data=data,
        expert=True,
        expert_bytes=1_000_000_000,
        experts=experts,
        total_experts=128,
        experts_per_token=8,
        **changes,
    )


WORKS = st.builds(llama, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4])) | st.builds(
    mixture, st.sampled_from([1, 2, 4, 8]), st.sampled_from([16, 32, 128])
)
LOADS = st.builds(
    Load,
    input_tokens=st.integers(1, 20_000),
    output_tokens=st.integers(1, 4_000),
    concurrency=st.integers(1, 300),
    max_num_seqs=st.integers(1, 1024),
    max_num_batched_tokens=st.integers(1024, 16384),
)
GPUS = st.sampled_from(list(gpus().values()))


def predict(work: Work, load: Load = LOAD, gpu: Gpu = H100) -> Prediction:
    return PREDICTOR.predict(work, gpu, load)


class TestByHand:
    """Figures so round that the formula can be followed on paper."""

    RAW: Mapping[str, Any] = {
        "gpus": {
            "round": {
                "capability": 9,
                "products": {"bf16": {"us": 1, "read": 0.5, "compute": 0.5}},
                "attention": {"bf16": {"us": 2, "read": 0.5, "compute": 0.25}},
                "collective": {"us": 3, "rate": 0.5},
            }
        },
        "engine": {
            "overlap": 1,
            "products": 4,
            "layer_us": 5,
            "norms_us": 2,
            "skew_us": 7,
            "mixed_us": 1000,
            "host_us": 100,
            "sequence_us": 10,
            "stage_us": 50,
            "network": {"us": 30, "rate": 0.5},
            "network_bytes_per_s": 1e9,
        },
        "range": {
            "gpus": ["round"],
            "compute": ["bf16"],
            "tensor": [1, 8],
            "layers": [1, 100],
            "concurrency": [1, 100],
            "input_tokens": [1, 10_000],
            "output_tokens": [1, 10_000],
        },
        "band": {"inside": 0.1, "outside": 0.2, "unseen": 0.3, "ttft": 0.05},
    }
    GPU = replace(H100, name="round", hbm_bytes_per_s=1e12, bf16_flops=1e15, link_bytes_per_s=1e11)
    WORK = llama(
        2,
        layers=10,
        stage_layers=10,
        hidden=1000,
        weights_bytes=10**9,
        flops_per_token=10**9,
        attention_flops=10**5,
        kv_bytes_per_token=50_000,
        kv_tokens=None,
    )
    LOAD = Load(
        input_tokens=1000,
        output_tokens=101,
        concurrency=11,
        max_num_seqs=100,
        max_num_batched_tokens=1011,
    )

    def test_a_load(self) -> None:
        """The two strategies' sums, term by term.

        Fixed, in us: 10 layers x (4 + 2 + 5 - 2) + 20 sums x (3 + 7) = 290. Weights: 2 ms. A token:
        2 us of products, and 20 x 2 x 1/2 x 2000 bytes over 50 GB/s, 0.8 us. A sequence: 1050.5
        tokens of 0.1 us, and 10 us of the host beside 100 us a step. A prompt fits into one step.
        """
        got = Analytical.of(self.RAW).predict(self.WORK, self.GPU, self.LOAD)
        eleven = 0.29 + 2 + 11 * 0.0028 + 11 * 0.10505 + 0.1 + 11 * 0.01
        # 1000 tokens of 2.8 us, 500,000 pairs of 0.4 ns, no CUDA graph
        prompt = 2.8 + 0.2 + 1
        ten = eleven - 0.0028 - 0.10505 - 0.01
        assert got.tpot_ms.value == pytest.approx(eleven + 10 / 100 * prompt)
        assert got.ttft_ms.value == pytest.approx(ten / 2 + ten + prompt)
        assert (got.tpot_ms.low, got.tpot_ms.high) == pytest.approx(
            (0.9 * got.tpot_ms.value, 1.1 * got.tpot_ms.value)
        )
        assert got.ttft_ms.high == pytest.approx(1.15 * got.ttft_ms.value)
        assert (got.concurrency, got.saturated, got.outside) == (11, False, ())

    def test_what_a_version_of_vllm_does(self) -> None:
        """Without fused sums two norms a layer come on top; a hidden host costs nothing."""
        fused = Analytical.of(self.RAW)
        apart = Analytical.of(self.RAW, Version(fused=False))
        hidden = Analytical.of(self.RAW, Version(overlapped=True))
        first, second, third = (
            one.predict(self.WORK, self.GPU, self.LOAD).tpot_ms.value
            for one in (fused, apart, hidden)
        )
        assert second - first == pytest.approx(10 * 0.002)
        assert first - third == pytest.approx(0.1 + 11 * 0.01)

    def test_stages_pass_microbatches_on(self) -> None:
        """Two stages: each has half of the sequences, and a token passes both, handed over twice.

        A hand-over: 50 us, and two times 2000 bytes for each token, half of them on each rank.
        """
        work = replace(self.WORK, pipeline=2, layers=20)
        load = replace(self.LOAD, concurrency=10, input_tokens=1, output_tokens=10_000_000)
        got = Analytical.of(self.RAW).predict(work, self.GPU, load)
        stage = 0.29 + 0.05 + 2 + 5 * (0.0028 + 0.00004) + 5 * (5_000_001 * 0.0001) + 0.1 + 5 * 0.01
        assert got.tpot_ms.value == pytest.approx(2 * stage, rel=1e-5)

    def test_experts_are_read_once_touched(self) -> None:
        """A lone token touches k of E experts; on a rank with an eighth, an eighth of k."""
        lone = replace(self.LOAD, concurrency=1, input_tokens=1, output_tokens=2)
        dense, moe = (
            Analytical.of(self.RAW).predict(work, self.GPU, lone).tpot_ms.value
            for work in (
                self.WORK,
                replace(
                    self.WORK,
                    expert_bytes=10**9,
                    experts=16,
                    total_experts=128,
                    experts_per_token=8,
                ),
            )
        )
        assert moe - dense == pytest.approx(16 * 8 / 128 * 2)

    def test_other_nodes_are_reached_by_the_network(self) -> None:
        """A group over two nodes sums over the network, at its rate and latency."""
        one, two = (
            Analytical.of(self.RAW).predict(replace(self.WORK, nodes=n), self.GPU, self.LOAD)
            for n in (1, 2)
        )
        slower = 20 * 0.027 + 11 * (0.08 - 0.0008)
        prompts = 10 / 100 * 1000 * (0.08 - 0.0008)
        assert two.tpot_ms.value - one.tpot_ms.value == pytest.approx(slower + prompts)
        assert two.outside == ("nodes",)
        assert two.tpot_ms.high == pytest.approx(1.3 * two.tpot_ms.value)


class TestLimits:
    """What must hold whatever the parameters are."""

    @given(WORKS, LOADS, GPUS)
    def test_every_answer_is_in_order(self, work: Work, load: Load, gpu: Gpu) -> None:
        """Bands hold their value, positive and finite; no more runs than was asked or fits."""
        got = predict(work, load, gpu)
        for estimate in (got.ttft_ms, got.tpot_ms, got.capacity):
            assert 0 < estimate.low <= estimate.value <= estimate.high < float("inf")
        assert 1 <= got.concurrency <= min(load.concurrency or 1, load.max_num_seqs)
        assert got.saturated == (got.concurrency < (load.concurrency or 1))

    @given(WORKS, LOADS, GPUS, st.integers(0, 200))
    def test_more_sequences_are_not_faster(
        self, work: Work, load: Load, gpu: Gpu, more: int
    ) -> None:
        """TPOT grows with the concurrency (if prompts stay whole: chunks share their weights)."""
        load = replace(load, max_num_batched_tokens=100_000)
        busier = replace(load, concurrency=(load.concurrency or 1) + more)
        assert predict(work, busier, gpu).tpot_ms.value >= predict(work, load, gpu).tpot_ms.value

    @given(WORKS, LOADS, GPUS, st.integers(0, 10_000))
    def test_longer_prompts_are_not_faster(
        self, work: Work, load: Load, gpu: Gpu, more: int
    ) -> None:
        """TTFT and TPOT grow with the prompts, as long as as many run and prompts stay whole."""
        work, load = replace(work, kv_tokens=None), replace(load, max_num_batched_tokens=100_000)
        longer = replace(load, input_tokens=load.input_tokens + more)
        one, other = predict(work, load, gpu), predict(work, longer, gpu)
        assert other.tpot_ms.value >= one.tpot_ms.value * (1 - 1e-9)
        assert other.ttft_ms.value >= one.ttft_ms.value * (1 - 1e-9)

    @given(WORKS, LOADS, st.sampled_from(["weights_bytes", "kv_bytes_per_token"]))
    def test_less_to_read_is_not_slower(self, work: Work, load: Load, name: str) -> None:
        """Half of the weights, or of the cache, takes no longer."""
        less = replace(work, **{name: getattr(work, name) // 2})
        assert predict(less, load).tpot_ms.value <= predict(work, load).tpot_ms.value

    @given(LOADS, st.sampled_from([1, 2, 4]))
    def test_more_tensor_parallelism_reads_faster(self, load: Load, tensor: int) -> None:
        """The reads and products of a step never grow with TP; what grows are the sums alone."""
        alone, together = (
            PREDICTOR.predict(
                llama(n), replace(H100, link_bytes_per_s=1e30, bf16_flops=1e30), load
            ).tpot_ms.value
            for n in (tensor, 2 * tensor)
        )
        collective, engine = PREDICTOR.kernels[H100.name].collective, PREDICTOR.engine
        sums = 0 if tensor > 1 else 2 * LLAMA.layers * (collective.us + engine.skew_us) / 1e3
        prompts = (load.concurrency or 1) * load.input_tokens  # a step with each token at most
        assert together <= alone + sums * (1 + prompts) + 1e-6

    @given(LOADS, st.floats(0.001, 100))
    @example(
        replace(
            LOAD, input_tokens=217, output_tokens=10, max_num_seqs=124, max_num_batched_tokens=1024
        ),
        89.0,
    )
    @example(
        replace(
            LOAD, input_tokens=1566, output_tokens=7, max_num_seqs=181, max_num_batched_tokens=8192
        ),
        16.2,
    )
    def test_a_rate_is_kept_up_with_or_not(self, load: Load, rate: float) -> None:
        """An open loop is saturated from the capacity on; below, as many run as Little says."""
        got = predict(llama(), replace(load, concurrency=None, rate=rate))
        assert got.saturated == (rate >= got.capacity.value)
        if not got.saturated and got.concurrency < load.max_num_seqs - 1:
            spent = got.ttft_ms.value + (load.output_tokens - 1) * got.tpot_ms.value
            assert got.concurrency == pytest.approx(rate * spent / 1e3, rel=0.01, abs=0.02)

    def test_a_small_pool_limits_what_runs(self) -> None:
        """Ten sequences of 1024 + 128/2 tokens fit into 10,880; the eleventh waits."""
        small = llama(kv_tokens=10_880)
        ten, eleven = (predict(small, replace(LOAD, concurrency=n)) for n in (10, 11))
        assert (ten.concurrency, ten.saturated) == (10, False)
        assert (eleven.concurrency, eleven.saturated) == (10, True)
        assert eleven.tpot_ms == ten.tpot_ms

    def test_experts_of_a_busy_batch_are_all_read(self) -> None:
        """A big batch reads every expert of the rank: twice as many take longer."""
        busy = replace(LOAD, concurrency=256, output_tokens=10_000, input_tokens=1)
        idle = {"kv_tokens": None, "flops_per_token": 0.0}
        half, whole = (predict(mixture(1, n, **idle), busy).tpot_ms.value for n in (32, 64))
        read = PREDICTOR.kernels[H100.name].products["bf16"].read
        assert whole - half == pytest.approx(32e12 / (H100.hbm_bytes_per_s * read), rel=1e-3)

    def test_copies_with_common_experts_wait_for_each_other(self) -> None:
        """A prompt of any copy prolongs the steps of all."""
        alone, four = (predict(mixture(n, 32)).tpot_ms.value for n in (1, 4))
        assert four > alone

    def test_precision(self) -> None:
        """fp8 halves what is read; a GPU that can't multiply in fp8 unpacks it to bf16."""
        whole, half = llama(), llama(compute="fp8", weights_bytes=8_700_000_000)
        assert predict(half).tpot_ms.value < predict(whole).tpot_ms.value
        a100 = gpus()["A100-SXM-80GB"]
        unpacked = replace(half, compute="bf16")
        assert predict(half, gpu=a100).tpot_ms.value == predict(unpacked, gpu=a100).tpot_ms.value

    def test_an_unknown_gpu_is_taken_for_its_generation(self) -> None:
        """An inline device has the shares of the first GPU of its generation, and says so."""
        got = predict(llama(), gpu=replace(H100, name="mine"))
        assert got.tpot_ms.value == predict(llama()).tpot_ms.value
        assert "gpu" in got.outside


class TestFacts:
    """What facts/latency.json says."""

    def test_shares_are_shares(self) -> None:
        """Nothing is faster than its peak, and every GPU of the catalogue has its own entry."""
        assert set(PREDICTOR.kernels) == set(gpus())
        for kernels in PREDICTOR.kernels.values():
            for product in kernels.products.values():
                assert 0 < product.read <= 1
                assert 0 < product.compute <= 1
                assert product.us >= 0
            for attention in kernels.attention.values():
                assert 0 < attention.read <= 1
                assert 0 < attention.compute <= 1
                assert attention.us >= 0
            assert 0 < kernels.collective.rate <= 1

    def test_the_range_is_what_was_fitted(self) -> None:
        """Inside it the band is the narrow one; each respect outside is named."""
        work = llama(
            layers=QWEN.layers, stage_layers=QWEN.layers, hidden=QWEN.hidden, weights_bytes=10**10
        )
        inside = predict(work)
        assert inside.outside == ()
        assert inside.tpot_ms.high == pytest.approx(
            (1 + PREDICTOR.band["inside"]) * inside.tpot_ms.value
        )
        far = replace(LOAD, input_tokens=8192, output_tokens=32, concurrency=1)
        got = predict(llama(1, 2, compute="fp8"), far, gpus()["L40S-48GB"])
        assert set(got.outside) == {
            "tensor",
            "layers",
            "concurrency",
            "input_tokens",
            "output_tokens",
            "gpu",
            "compute",
            "pipeline",
        }

    def test_the_bands_widen(self) -> None:
        """From fitted to unfitted to unseen; none of them is wider than the value."""
        band = PREDICTOR.band
        assert 0 < band["inside"] <= band["outside"] <= band["unseen"] < 1 - band["ttft"]

    def test_llama_on_eight_h100(self) -> None:
        """A published point: 11.2 to 12.6 ms/token for 1 to 8 sequences (LambdaLabsML)."""
        for running in (1, 8):
            load = replace(LOAD, input_tokens=170, output_tokens=256, concurrency=running)
            tpot = predict(llama(), load).tpot_ms
            assert tpot.low <= 11.2 <= tpot.high
            assert tpot.low <= 12.6 <= tpot.high


@MEASURED
class TestMeasured:
    """Against silicon_sample.csv; benchmarks/plan prints it all."""

    @pytest.mark.parametrize(
        ("index", "error"),
        [(0, 0.03), (1, 0.06), (2, 0.08), (3, 0.12)],
        ids=[SERIES[index][0] for index in range(4)],
    )
    def test_tpot(self, index: int, error: float) -> None:
        """The mean error of TPOT, of what was fitted and of what was not."""
        errors = tpot_errors(series(index), ours)
        assert len(errors.values) >= 45
        assert errors.mean <= error

    def test_the_band_holds(self) -> None:
        """Nine of ten rows lie in the band that their own predictions name."""
        rows = [row for index in range(4) for row in series(index)]
        bands = [(predicted(row).tpot_ms, row.tpot_ms) for row in rows]
        held = sum(band.low <= seen <= band.high for band, seen in bands)
        assert held >= 0.9 * len(rows)

    def test_the_choice_of_a_strategy(self) -> None:
        """Four of five choices are the best one, and few of them break the limit."""
        made = choices([row for index in range(3) for row in series(index)], ours)
        assert len(made.cases) == 84
        assert made.same >= 0.8
        assert made.broken <= 0.05


class TestSecondOpinion:
    """Asking aiconfigurator-core."""

    @pytest.mark.skipif(INSTALLED, reason="aiconfigurator-core is installed")
    def test_not_installed(self) -> None:
        """Without the extra, the error says how to get it."""
        with pytest.raises(SecondOpinionError, match=r"pip install 'pytest-llmdeploy\[aic\]'"):
            SecondOpinion("Qwen/Qwen3-32B").predict(llama(), H100, LOAD)

    @MEASURED
    def test_it_answers(self) -> None:
        """It is asked as our own predictor is, and is not far from it."""
        opinion = SecondOpinion("meta-llama/Meta-Llama-3.1-70B")
        got = opinion.predict(llama(), H100, LOAD)
        assert got.tpot_ms.value == pytest.approx(predict(llama()).tpot_ms.value, rel=0.3)

    @MEASURED
    @pytest.mark.parametrize(
        ("work", "gpu"),
        [(llama(2, 2), H100), (llama(nodes=2), H100), (llama(), replace(H100, name="mine"))],
        ids=["stages", "nodes", "gpu"],
    )
    def test_what_it_does_not_model(self, work: Work, gpu: Gpu) -> None:
        """It refuses instead of answering something else."""
        with pytest.raises(SecondOpinionError):
            SecondOpinion("meta-llama/Meta-Llama-3.1-70B").predict(work, gpu, LOAD)
