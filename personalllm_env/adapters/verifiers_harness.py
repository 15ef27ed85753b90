"""A harness for verifiers that asks a model once, without a program of its own.

verifiers' own ``null`` harness runs a script per rollout, whose libraries ``uv`` installs from
the package index, and takes seconds to start. Where one text is written, one call will do.
"""

# ruff: noqa: E402 - what is missing is said before anything needs it
from __future__ import annotations

from personalllm_env.extras import require

require("verifiers.v1", "verifiers")

import verifiers.v1 as vf


class OneCallHarness(vf.Harness[vf.HarnessConfig]):  # type: ignore[misc]
    """Sends the prompt to the model and ends with its answer; in this process, no tools.

    verifiers takes it by default for the taskset in whose module it is; its runtime is not
    used, so ``--env.agent.runtime.type subprocess`` costs nothing.
    """

    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Asks once through verifiers' own endpoint, which keeps the record."""
        from aiohttp import (
            ClientError,
            ClientSession,
        )  # verifiers' own; openai's is slow to make

        system, prompt = self.resolve_text_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt or ""})
        headers = {"Authorization": f"Bearer {secret}"}
        body = {"model": ctx.model, "messages": messages}
        try:
            async with (
                ClientSession(headers=headers) as session,
                session.post(f"{endpoint}/chat/completions", json=body) as answer,
            ):
                found = await answer.text()
                failed = answer.status != 200
        except ClientError as error:
            found, failed = f"{type(error).__name__}: {error}", True
        return vf.ProgramResult(int(failed), "" if failed else found, found if failed else "")
