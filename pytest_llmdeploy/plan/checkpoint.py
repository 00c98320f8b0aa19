"""What checkpoints declare of their quantization, and what vLLM makes of those without."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytest_llmdeploy.plan.families.config import Config, ShapeUnknownError
from pytest_llmdeploy.plan.quantization import Names, Packing, Quantization
from pytest_llmdeploy.spec import nearest


def packing_of(config: Mapping[str, Any], asked: str | None) -> Packing | None:
    """What a config.json declares, or vLLM is asked to do with what it loads; None: nothing.

    Raises:
        ShapeUnknownError: for a method that is not known, or one that the checkpoint is not of.
    """
    raw = _declared(config)
    if raw is None:
        return None if asked is None else _online(asked)
    declared = Config(raw, path="quantization_config.")
    method = _method(declared)
    if method not in _METHODS:
        known = nearest(method, _METHODS)
        raise ShapeUnknownError(f"the quantization method {method!r} is not known: {known}")
    names = {method, *_ALSO.get(method, ())}
    if asked is not None and asked not in names:
        msg = f"model.quantization is {asked!r}, but the checkpoint is quantized with {method!r}"
        raise ShapeUnknownError(msg)
    return _METHODS[method](declared)


def _declared(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The quantization_config of the model, or of its text_config."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        raw = place.get("quantization_config") or place.get("compression_config")
        if raw and not isinstance(raw, Mapping):
            raise ShapeUnknownError("config.json: quantization_config is not a mapping")
        if raw:
            return dict(raw)
    return None


def _method(declared: Config) -> str:
    """Checkpoints of modelopt need not say so: they name their producer."""
    algorithm = declared.get("quant_algo") or declared.section("quantization").get("quant_algo")
    if algorithm and not declared.get("quant_method"):
        return "modelopt"
    return str(declared.get("quant_method")).lower().replace("_", "-")


def _strings(config: Config, *keys: str) -> Sequence[str]:
    """The first list of strings that is there and not empty."""
    for key in keys:
        items = config.items(key)
        if not all(isinstance(item, str) for item in items):
            raise config.senseless(key)
        if items:
            return items
    return ()


def _expression(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        msg = f"config.json: quantization_config has the pattern {text!r}: {error}"
        raise ShapeUnknownError(msg) from None


def _fp8(config: Config) -> Packing:
    """One scale for each tensor, or for each block; activations are scaled per token."""
    block = config.items("weight_block_size")
    if block and not (len(block) == 2 and all(type(n) is int and n > 0 for n in block)):  # noqa: PLR2004 - rows and columns
        raise config.senseless("weight_block_size")
    ignored = _strings(config, "ignored_layers", "modules_to_not_convert")
    quantization = replace(_FP8, block=(block[0], block[1]) if block else None)
    return Packing(quantization=quantization, ignored=Names(whole=frozenset(ignored)))


def _awq(config: Config) -> Packing:
    """On Hopper, zeros are kept in 16 bits, multiplied with the scales (Machete)."""
    zeros = 16 if config.flag("zero_point", default=True) else 0
    return Packing(
        quantization=replace(_grouped(config, "awq", "w_bit", "q_group_size"), zero_bits=zeros),
        ignored=Names(
            parts=tuple(_strings(config, "modules_to_not_convert")), expressions=_UNLISTED
        ),
        head=config.flag("lm_head"),
    )


def _gptq(config: Config) -> Packing:
    """Zeros are kept as they are loaded. Which modules are packed, a checkpoint says only in its
    tensors: encoders and routers never were.
    """
    quantization = _grouped(config, "gptq", "bits", "group_size")
    rules = config.section("dynamic").keys()
    if any(not str(rule).startswith("-:") for rule in rules):
        raise ShapeUnknownError("GPTQ with more than one bit width is not known")
    skipped = tuple(_expression(str(rule).removeprefix("-:")) for rule in rules)
    listed = config.items("modules_in_block_to_quantize")
    flat = [name for item in listed for name in (item if isinstance(item, list) else [item])]
    if not all(isinstance(name, str) for name in flat):
        raise config.senseless("modules_in_block_to_quantize")
    return Packing(
        quantization=replace(quantization, zero_bits=int(quantization.bits)),
        ignored=Names(expressions=(*skipped, *_UNLISTED)),
        targets=Names(parts=tuple(flat)) if flat else None,
        head=config.flag("lm_head"),
    )


def _grouped(config: Config, method: str, bits: str, group: str) -> Quantization:
    """Whole numbers with a 16-bit scale for each group of columns, or -1 for each row."""
    width = config.count(bits if config.get(bits) is not None else "bits")
    name = group if config.get(group) is not None else "group_size"
    size = 0 if config.get(name) == -1 else config.count(name)
    if width not in _WIDTHS:
        raise config.senseless("bits")
    return Quantization(method=method, bits=width, group=size, scale_bytes=2)


def _mxfp4(_config: Config) -> Packing:
    """Only experts are packed (quantization/mxfp4.py)."""
    return Packing(quantization=_MXFP4, targets=Names(parts=(".experts",)))


def _modelopt(config: Config) -> Packing:
    """FP8 or NVFP4; what is excluded is named wholly, in part or with wildcards."""
    declared = config.section("quantization") if config.get("quantization") else config
    algorithm = str(declared.get("quant_algo")).upper()
    if algorithm not in _MODELOPT:
        known = nearest(algorithm, _MODELOPT)
        raise ShapeUnknownError(f"the modelopt quant_algo {algorithm!r} is not known: {known}")
    excluded = tuple(_strings(declared, "exclude_modules", "ignore"))
    parts = (*excluded, "vision_tower", "vision_model")
    wild = tuple(name for name in excluded if set(name) & set("*?["))
    ignored = Names(parts=parts, wild=wild)
    quantization = _MODELOPT[algorithm]
    if algorithm == "NVFP4":
        quantization = replace(quantization, group=declared.count("group_size", 16))
    return Packing(quantization=quantization, ignored=ignored, head="lm_head" not in ignored)


def _compressed(config: Config) -> Packing:
    """Groups of modules by name or class; here all groups must be packed in one way."""
    groups = config.section("config_groups")
    found = {key: groups.section(key) for key in groups.keys()}  # noqa: SIM118 - no mapping
    kinds = {_weights(group.section("weights")) for group in found.values()}
    if len(kinds) != 1:
        raise ShapeUnknownError("compressed-tensors with several or no config_groups is not known")
    targets = [target for group in found.values() for target in _strings(group, "targets")]
    every = not targets or "Linear" in targets
    ignored = _listed(_strings(config, "ignore"))
    return Packing(
        quantization=kinds.pop(),
        ignored=ignored,
        targets=None if every else _listed(targets),
        head=not every and "lm_head" in _listed(targets) and "lm_head" not in ignored,
    )


def _listed(names: Iterable[str]) -> Names:
    """Names, and behind "re:" regular expressions."""
    names = list(names)
    return Names(
        whole=frozenset(name for name in names if not name.startswith("re:")),
        expressions=tuple(_expression(name[3:]) for name in names if name.startswith("re:")),
    )


def _weights(weights: Config) -> Quantization:
    """The weights of a config group: integers or floats, by tensor, channel, group or block."""
    bits, strategy = weights.count("num_bits"), str(weights.get("strategy"))
    floats = str(weights.get("type")) == "float"
    if bits not in _WIDTHS or strategy not in _STRATEGIES:
        raise weights.senseless("num_bits" if bits not in _WIDTHS else "strategy")
    group = weights.count("group_size") if strategy in _GROUPED else None
    if strategy == "channel":
        group = 0
    if floats and bits == 4:  # noqa: PLR2004 - fp4
        known = {16: _NVFP4, 32: _MXFP4}
        if group not in known:
            raise weights.senseless("group_size")
        return replace(known[group], method="compressed-tensors")
    zeros = 0 if weights.flag("symmetric", default=True) else 16
    block = (128, 128) if strategy == "block" else None
    whole = bits == 8  # noqa: PLR2004 - fp8, or integers with activations of 8 bits
    return Quantization(
        method="compressed-tensors",
        bits=bits,
        group=group,
        block=block,
        compute="fp8" if whole and group in {None, 0} else "bf16",
        scale_bytes=2 if group else 4,
        zero_bits=zeros,
    )


def _online(asked: str) -> Packing:
    """What vLLM makes of an unquantized checkpoint while it loads it."""
    if asked not in _ONLINE:
        known = nearest(asked, _ONLINE)
        msg = f"model.quantization {asked!r}: the checkpoint is not quantized, and vLLM can't do it"
        raise ShapeUnknownError(f"{msg} while loading: {known}")
    quantization, experts_only = _ONLINE[asked]
    targets = Names(parts=(".experts",)) if experts_only else None
    return Packing(quantization=quantization, targets=targets)


_WIDTHS = {4, 8}
_GROUPED = {"group", "tensor_group"}
_STRATEGIES = {"tensor", "channel", "block", *_GROUPED}
# Names of encoders and routers, which AWQ and GPTQ leave alone and do not list.
_UNLISTED = (re.compile(r".*(vision|multi_modal_projector|\.gate$|\.router$)"),)

_FP8 = Quantization(method="fp8", bits=8, compute="fp8")
_NVFP4 = Quantization(method="modelopt", bits=4, group=16, compute="fp4", scale_bytes=1, tiled=True)
# Triton kernels on Hopper: a rank's part of an expert is padded to 64 (fused_moe/oracle/mxfp4.py).
_MXFP4 = Quantization(method="mxfp4", bits=4, group=32, scale_bytes=1, multiple=64, tiled=True)
_MODELOPT = {
    "FP8": replace(_FP8, method="modelopt"),
    "FP8_PER_CHANNEL_PER_TOKEN": replace(_FP8, method="modelopt", group=0),
    "FP8_PB_WO": replace(_FP8, method="modelopt", block=(128, 128)),
    "NVFP4": _NVFP4,
}
_METHODS: Mapping[str, Callable[[Config], Packing]] = {
    "fp8": _fp8,
    "awq": _awq,
    "gptq": _gptq,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed,
}
# What else vLLM accepts as the name of a checkpoint's method.
_ALSO = {
    "awq": ("auto_awq", "awq_marlin"),
    "gptq": ("auto_gptq", "gptq_marlin"),
    "mxfp4": ("gpt_oss_mxfp4",),
    "modelopt": ("modelopt_fp4",),
}
# By the name of --quantization: how, and whether only experts (config/quantization.py).
_ONLINE: Mapping[str, tuple[Quantization, bool]] = {
    "fp8": (_FP8, False),
    "fp8_per_tensor": (_FP8, False),
    "fp8_per_channel": (replace(_FP8, group=0), False),
    "fp8_per_block": (replace(_FP8, block=(128, 128)), False),
    "mxfp8": (replace(_FP8, method="mxfp8", group=32, scale_bytes=1), False),
    "mxfp4": (_MXFP4, False),
    "int8_per_channel_weight_only": (
        Quantization(method="int8_per_channel_weight_only", bits=8, group=0),
        True,
    ),
    "nvfp4_per_token": (replace(_NVFP4, method="nvfp4_per_token"), True),
}
