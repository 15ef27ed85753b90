"""What ``vf-eval personalllm`` finds: the taskset, and a harness that asks once."""

from personalllm_env.adapters.verifiers import PersonalLLMTaskset
from personalllm_env.adapters.verifiers_harness import OneCallHarness

__all__ = ["OneCallHarness", "PersonalLLMTaskset"]
