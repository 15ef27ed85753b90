"""PersonalLLM as an OpenEnv environment; everything is in ``personalllm_env``."""
