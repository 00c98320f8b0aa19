"""Whether the server is the one that was meant, configured as declared."""

from packaging.specifiers import SpecifierSet

from pytest_llmdeploy.checks.decorator import check
from pytest_llmdeploy.checks.expect import Expect
from pytest_llmdeploy.evidence import judged
from pytest_llmdeploy.plan import Plan
from pytest_llmdeploy.serving import Server
from pytest_llmdeploy.spec import Spec


@check("Model served", hint="check --deploy-url, model.id and serve.served_model_name")
def model_served(server: Server, spec: Spec, expect: Expect) -> None:
    """/v1/models lists the model that the spec names."""
    wanted, found = spec.served_model, str(server.model.get("id", "no model"))
    expect.judge(judged(found == wanted, wanted, found, evidence={"source": "/v1/models"}))


@check("Engine version", require="engine.version", hint="change the image, or engine.version")
def engine_version(server: Server, required: str, expect: Expect) -> None:
    """The engine's version is within the declared range."""
    good = SpecifierSet(required).contains(server.version, prereleases=True)
    expect.judge(judged(good, f"vLLM {required}", server.version, evidence={"source": "/version"}))


@check("Server limits", hint="the running server was started with other flags than the spec's")
def server_limits(server: Server, spec: Spec, plan: Plan, expect: Expect) -> None:
    """Every limit that the server shows is the declared one."""
    declared, shown = _declared(spec, plan), _shown(server)
    seen = {name: value for name, value in declared.items() if name in shown}
    wrong = {name: shown[name] for name, value in seen.items() if shown[name] != value}
    unseen = sorted(set(declared) - set(shown))
    matches = ", ".join(f"{name} {shown[name]}" for name in seen)
    differs = ", ".join(f"{name} is {value}, not {seen[name]}" for name, value in wrong.items())
    expect.judge(
        judged(
            not wrong if seen else None,
            ", ".join(f"{name} {value}" for name, value in declared.items()),
            differs or matches or "the server shows none of them",
            evidence={
                "source": "/v1/models, vllm:cache_config_info, system_fingerprint",
                "declared": declared,
                "shown": shown,
                "cannot_be_seen": unseen,
            },
        )
    )


def _declared(spec: Spec, plan: Plan) -> dict[str, str]:
    limits = {
        "max_model_len": plan.max_model_len,
        "tp": spec.parallel.tensor,
        "pp": spec.parallel.pipeline,
        "dp": spec.parallel.data,
        "block_size": spec.serve.block_size,
        "kv_cache_memory_bytes": spec.serve.kv_cache_memory_bytes,
        "gpu_memory_utilization": (
            float(spec.serve.gpu_memory_utilization)
            if "gpu_memory_utilization" in spec.serve.model_fields_set
            else None
        ),
    }
    return {name: str(_plain(value)) for name, value in limits.items() if value is not None}


def _shown(server: Server) -> dict[str, str]:
    facts, sizes = server.cache, dict(server.parallel_facts())
    if sizes.get("dp") == 1 and len(server.replicas) == server.spec.parallel.data:
        # Copies that know nothing of each other.
        sizes["dp"] = len(server.replicas)
    shown = {name: str(size) for name, size in sizes.items()}
    if server.max_model_len is not None:
        shown["max_model_len"] = str(server.max_model_len)
    for name in ("block_size", "kv_cache_memory_bytes", "gpu_memory_utilization"):
        if facts.get(name, "None") != "None":
            shown[name] = facts[name]
    return shown


def _plain(value: float) -> float:
    """A number that prints as a number, whatever unit it is."""
    return int(value) if isinstance(value, int) else float(value)
