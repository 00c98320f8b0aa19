"""The pods in a rendered Kubernetes manifest, whatever kind of resource they belong to."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_TEMPLATED = {"Deployment", "StatefulSet", "ReplicaSet", "DaemonSet", "Job"}
_MOUNTED = "/mnt/models"
_RUNTIMES = ("ServingRuntime", "ClusterServingRuntime")
_PARALLELISM = {
    "tensor": "--tensor-parallel-size",
    "pipeline": "--pipeline-parallel-size",
    "data": "--data-parallel-size",
    "dataLocal": "--data-parallel-size-local",
    "expert": "--enable-expert-parallel",
}


@dataclass(frozen=True)
class Pod:
    """The pods that serve as one: their spec, their containers, on how many nodes they are, and
    how often all that runs. `parallel` is what the resource itself says of the strategy,
    `variables` what Kubernetes or the resource's controller puts into the environment.
    """

    kind: str
    name: str
    spec: Mapping[str, Any]
    nodes: int = 1
    replicas: int = 1
    notes: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"the {self.kind} {self.name!r}"

    @property
    def containers(self) -> Sequence[Mapping[str, Any]]:
        found = self.spec.get("containers")
        entries = found if isinstance(found, list) else []
        return [_container(entry) for entry in entries if isinstance(entry, Mapping)]

    def selected(self, label: str) -> str | None:
        """The one value of a node's label that the pods ask for."""
        if isinstance(value := _at(self.spec, "nodeSelector", label), str):
            return value
        for term in _list(
            self.spec,
            "affinity",
            "nodeAffinity",
            "requiredDuringSchedulingIgnoredDuringExecution",
            "nodeSelectorTerms",
        ):
            for expression in _list(term, "matchExpressions"):
                values = _list(expression, "values")
                if _at(expression, "key") == label and _at(expression, "operator") == "In":
                    return str(values[0]) if len(values) == 1 else None
        return None


def pods(documents: Sequence[Any]) -> Iterator[Pod]:
    """Every resource that runs pods, in the order of the manifest."""
    resources = list(_resources(documents))
    runtimes = {
        str(_at(one, "metadata", "name")): _at(one, "spec")
        for one in resources
        if _at(one, "kind") in _RUNTIMES
    }
    for one in resources:
        kind, name = str(_at(one, "kind")), str(_at(one, "metadata", "name"))
        if kind in _TEMPLATED:
            yield Pod(kind, name, _mapping(one, "spec", "template", "spec"), 1, _count(one))
        elif kind == "Pod":
            yield Pod(kind, name, _mapping(one, "spec"))
        elif kind == "LeaderWorkerSet":
            yield _leader(one, name)
        elif kind == "InferenceService":
            yield _inference_service(one, name, runtimes)
        elif kind == "LLMInferenceService":
            yield _llm_inference_service(one, name)


def _resources(documents: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    for document in documents:
        if _at(document, "kind") == "List":
            yield from _resources(_list(document, "items"))
        elif isinstance(document, Mapping):
            yield document


def _leader(resource: Mapping[str, Any], name: str) -> Pod:
    template = _mapping(resource, "spec", "leaderWorkerTemplate")
    spec = _mapping(template, "leaderTemplate", "spec") or _mapping(
        template, "workerTemplate", "spec"
    )
    nodes = _number(template.get("size"), 1)
    # Set by the controller, in every container.
    variables = {"LWS_GROUP_SIZE": str(nodes), "LWS_WORKER_INDEX": "0"}
    return Pod("LeaderWorkerSet", name, spec, nodes, _count(resource), variables=variables)


def _inference_service(resource: Mapping[str, Any], name: str, runtimes: Mapping[str, Any]) -> Pod:
    predictor = _mapping(resource, "spec", "predictor")
    replicas = _number(predictor.get("minReplicas"), 1)
    worker = _mapping(predictor, "workerSpec")
    nodes = _number(worker.get("pipelineParallelSize"), 1)
    kind = "InferenceService"
    if "model" not in predictor:
        return Pod(kind, name, predictor, nodes, replicas)
    model = _mapping(predictor, "model")
    runtime = _mapping(runtimes.get(str(model.get("runtime"))))
    base: Mapping[str, Any] = next(iter(_list(runtime, "containers")), {})
    words: Sequence[str] = [str(word).replace("{{.Name}}", name) for word in _list(base, "args")]
    own = [_kserve_word(str(word)) for word in _list(model, "args")]
    words, notes = _identified(model.get("storageUri"), [*words, *own])
    container = {
        **base,
        "image": model.get("image") or base.get("image") or "vllm",
        "args": words,
        "env": [*_list(base, "env"), *_list(model, "env")],
        "resources": model.get("resources") or base.get("resources"),
    }
    spec = {**runtime, **predictor, "containers": [container]}
    return Pod(kind, name, spec, nodes, replicas, notes)


def _kserve_word(word: str) -> str:
    """KServe's own runtime has other names for two of vLLM's flags."""
    for theirs, ours in (("--model_id", "--model"), ("--model_name", "--served-model-name")):
        if word == theirs or word.startswith(f"{theirs}="):
            return ours + word[len(theirs) :]
    return word


def _identified(uri: Any, words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Arguments that name the model, and a note where it is not known by that: the controller puts
    what is at `uri` into a folder of the container.
    """
    text = shlex.join(words).replace(f"--model {_MOUNTED}", "").replace(f"--model={_MOUNTED}", "")
    others = shlex.split(text)
    if any(word.partition("=")[0] == "--model" for word in others):
        return others, ()
    if isinstance(uri, str) and uri.startswith("hf://"):
        return [f"--model={uri.removeprefix('hf://').partition(':')[0]}", *others], ()
    note = f"adjust model.id: {uri or 'the manifest'} does not say which model it is"
    return [f"--model={_MOUNTED}", *others], [note]


def _llm_inference_service(resource: Mapping[str, Any], name: str) -> Pod:
    spec = _mapping(resource, "spec")
    template = _mapping(spec, "template")
    containers = [one for one in _list(template, "containers") if isinstance(one, Mapping)]
    main = next((one for one in containers if one.get("name") == "main"), {})
    words: Sequence[str] = [str(word) for word in _list(main, "args")]
    words, notes = _identified(_at(spec, "model", "uri"), words)
    served = _at(spec, "model", "name")
    extra = [
        word
        for entry in _list(main, "env")
        if _at(entry, "name") == "VLLM_ADDITIONAL_ARGS"
        for word in str(_at(entry, "value") or "").split()
    ]
    env = [one for one in _list(main, "env") if _at(one, "name") != "VLLM_ADDITIONAL_ARGS"]
    names = [f"--served-model-name={served}"] if served else []
    sizes = [
        word
        for key, option in _PARALLELISM.items()
        if (size := _at(spec, "parallelism", key)) not in (None, False)
        for word in ([option] if size is True else [f"{option}={size}"])
        if not any(given.partition("=")[0] == option for given in words)
    ]
    container = {**main, "image": "vllm", "args": [*words, *names, *sizes, *extra], "env": env}
    local = _number(_at(spec, "parallelism", "dataLocal"), 0)
    nodes = -(-_number(_at(spec, "parallelism", "data"), 1) // local) if local > 0 else 1
    if "prefill" in spec:
        notes = [*notes, "left out prefill: a spec is one server, this one is that of the decode"]
    return Pod(
        "LLMInferenceService",
        name,
        {**template, "containers": [container]},
        nodes,
        _count(resource),
        notes,
    )


def _container(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """A container whose lists are lists, whatever the manifest says there."""
    kept = {key: entry.get(key) for key in ("image", "envFrom")}
    lists = {key: _list(entry, key) for key in ("command", "args", "env")}
    resources = {key: _mapping(entry, "resources", key) for key in ("limits", "requests")}
    return {**kept, **lists, "resources": resources}


def _at(value: Any, *path: str) -> Any:
    """What is below `value` at these keys; None where there is nothing."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _mapping(value: Any, *path: str) -> Mapping[str, Any]:
    found = _at(value, *path)
    return found if isinstance(found, Mapping) else {}


def _list(value: Any, *path: str) -> list[Any]:
    found = _at(value, *path)
    return found if isinstance(found, list) else []


def _count(resource: Mapping[str, Any]) -> int:
    return _number(_at(resource, "spec", "replicas"), 1)


def _number(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
