"""The families of models whose shape is known, by model_type."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_llmdeploy.plan.families import deepseek, dense, experts, gemma, gpt_oss, llama4, vision
from pytest_llmdeploy.plan.families.family import Family, Multimodal

FAMILIES: Mapping[str, Family] = {
    **dense.FAMILIES,
    **gemma.FAMILIES,
    **experts.FAMILIES,
    **gpt_oss.FAMILIES,
    **llama4.FAMILIES,
    **deepseek.FAMILIES,
}
MULTIMODAL: Mapping[str, Multimodal] = vision.MULTIMODAL
