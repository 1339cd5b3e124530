"""The choice of a decoder's operator set, by device, dtype, CPU, features and sizes. This module does not import torch.

It is made only here: the boot makes the chosen operators (`operators.choose`), and `ember inspect` names them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec

from ember.engine.description.config import DecoderConfig
from ember.engine.description.layouts import ORDERED_INTEGERS
from ember.engine.description.native_forms import library_fault
from ember.engine.description.operator_sets import NATIVE, STATE_OPERATIONS, TORCH, TRITON, Lacking, OperatorSet
from ember_cpu.variants import cpu_flags

PLAIN = frozenset({"Linear"})  # the layout of weights in numbers


@dataclass(frozen=True, slots=True)
class Decision:
    """The operator set of a model, and the reason for it."""

    name: str  # torch, triton, native
    reason: str
    lacking: Lacking = field(default_factory=dict)  # operations of the set that torch computes
    warning: str | None = None  # why a faster set cannot be used, if the user can change that

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"

    def without(self, operation: str, fault: str) -> Decision:
        """This decision, but with one more operation that torch computes, for the reason `fault`."""
        if operation in self.lacking:
            return self
        more = {operation: fault}
        return replace(self, reason=self.reason + _but(more), lacking=self.lacking | more)


def triton_fault() -> str | None:
    """Why Triton's kernels cannot be used in this installation; None if they can."""
    missing = [name for name in ("triton", "ember_kernels") if find_spec(name) is None]
    return f"No module named '{missing[0]}'" if missing else None


def decide(
    config: DecoderConfig,
    dtype: str,
    device: str,
    weights: str = "auto",
    fault: str | None = None,
    float8_cache: bool = False,
    layouts: frozenset[str] = PLAIN,
    own_experts: bool = True,
    activations: str = "auto",
) -> Decision:
    """Choose the operator set for a model on `device` (cuda, cpu) in `dtype` (torch's name).

    `weights`: the form of its matrices on a CPU (auto: unchanged; int8, int4). `fault`: why the kernels or the library
    of that device cannot be used. `float8_cache`: whether the KV cache is in float8. `layouts`: of the
    weights, by name (`layouts`). `own_experts`: whether kernels take the experts' matrices. `activations`: those that
    a CPU multiplies quantised weights with (auto: in 8 bits; float).
    """
    if device == "cuda":
        decision = _for_gpu(config, fault, own_experts)
        decision = _with_states(decision, config, TRITON)
        return decision if decision.name == "torch" else _with_restored(decision, layouts - TRITON.layouts)
    own = NATIVE.layouts - {ORDERED_INTEGERS} if activations == "float" else NATIVE.layouts
    decision = _for_cpu(config, dtype, weights, fault, float8_cache, layouts & own - PLAIN)
    decision = _with_states(decision, config, NATIVE)
    return decision if decision.name == "torch" else _with_restored(decision, layouts - own)


def _with_states(decision: Decision, config: DecoderConfig, own: OperatorSet) -> Decision:
    """The decision with the operations on states that the model has and the set has not."""
    if decision.name == "torch":
        return decision
    for operation in STATE_OPERATIONS:
        if operation not in own.features and TORCH.features[operation] & config.features().keys():
            decision = decision.without(operation, "layers have states")
    return decision


def _with_restored(decision: Decision, layouts: frozenset[str]) -> Decision:
    """The decision with the layouts that the set does not multiply as they are stored in its reason."""
    if not layouts:
        return decision
    return replace(decision, reason=f"{decision.reason}; torch restores and multiplies {', '.join(sorted(layouts))}")


def _for_gpu(config: DecoderConfig, fault: str | None, own_experts: bool) -> Decision:
    if fault is not None:
        return Decision("torch", fault, warning=f"{fault}; the model runs on torch operators, which is slower")
    lacking = TRITON.lacking(config)
    decision = Decision("triton", f"a GPU{_but(lacking)}", lacking)
    return decision if own_experts else decision.without("experts", "their weights are quantized")


def has_native_texts(config: DecoderConfig, dtype: str, device: str) -> bool:
    """Whether the C library computes attention within texts and LayerNorm for the torch set, where it can be used."""
    return config.bidirectional and dtype == "float32" and device == "cpu"


def _for_cpu(
    config: DecoderConfig, dtype: str, weights: str, fault: str | None, float8_cache: bool, small: frozenset[str]
) -> Decision:
    """`small`: the layouts of quantised weights that the library multiplies."""
    if dtype != "bfloat16":
        if has_native_texts(config, dtype, "cpu") and library_fault() is None:
            reason = f"{dtype} on a CPU; the C library computes attention within texts and LayerNorm"
            return Decision("torch", reason)
        return Decision("torch", f"{dtype} on a CPU, where the C library computes in bfloat16")
    lacking = NATIVE.lacking(config)
    if float8_cache:
        lacking |= dict.fromkeys(("place_heads", "attend"), "a KV cache in float8")
    if "linear" in lacking:
        return Decision("torch", f"the C library for CPUs cannot multiply: {lacking['linear']}")
    if weights == "auto" and not small and "amx_bf16" in cpu_flags():
        return Decision("torch", "a CPU with AMX, where oneDNN's packed products are the fastest")
    fault = fault or library_fault()
    if fault is not None:
        warning = f"the model runs on torch operators, which is slower, without the C library: {fault}"
        return Decision("torch", f"without the C library for CPUs: {fault}", warning=warning)
    held = "bfloat16" if weights == "auto" else f"{weights} weights"
    if weights == "auto" and small:
        held = f"{', '.join(sorted(small))} as stored"
    return Decision("native", f"the C library for CPUs, {held}{_but(lacking)}", lacking)


def _but(lacking: Lacking) -> str:
    """The operations that torch computes, as a part of the reason."""
    return "".join(f"; torch computes {operation}: {fault}" for operation, fault in lacking.items())
