"""Makes the instance that a policy asks for: a server that runs already, or an engine to be started, and remembers
what the next one should share with it: port, key and log."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local.discover import at_address, at_usual_ports
from deepseek_resilient.local.engines import gpus, plan
from deepseek_resilient.local.instance import Instance, check, free_port
from deepseek_resilient.local.logs import new_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deepseek_resilient.config.local import LocalPolicy


class Maker:
    """For one `LocalServer`; used by its supervisor only.

    Args:
        policy: what is asked for.
        find: from the name in the policy (None: none is named) to a path or a name on the hub; None = names are these.
        logs: the folder for logs.
        on_exit: called when a child that was made here has ended.
    """

    def __init__(
        self, policy: LocalPolicy, *, find: Callable[[str | None], str] | None, logs: Path | None,
        on_exit: Callable[[Instance], None],
    ) -> None:  # fmt: skip
        self._policy = policy
        self._find = find
        self._logs = logs
        self._on_exit = on_exit
        self._port = policy.port
        self._key = secrets.token_urlsafe(32)
        self.log: Path | None = None

    def make(self, model: str | None) -> Instance:
        """An instance that is not brought up yet. Raises LocalModelError, which says what to do."""
        policy = self._policy
        if policy.address is not None:
            return Instance.found(at_address(policy.address, policy.key), policy.key, model)
        if policy.discover:
            for server in at_usual_ports(policy.key):
                if model is None or model in server.models:
                    return Instance.found(server, policy.key, model)
        self.log = self.log or new_log(self._logs)
        self._port = free_port(policy.host, self._port, fixed=policy.port != 0)
        return self._planned(model, self._port, self.log)

    def make_beside(self, model: str | None, old: Instance) -> Instance:
        """One that can run while the old one does: with a port and a log of its own. Raises LocalModelError."""
        if old.child is None:
            return self.make(model)
        return self._planned(model, free_port(self._policy.host, 0, fixed=False), new_log(self._logs))

    def why_not_beside(self, model: str | None, old: Instance) -> str:
        """Why the new model cannot be loaded while the old one is; "" where it can.

        Raises:
            LocalModelError: the new one cannot be loaded at all.
        """
        if old.child is None:
            return ""
        wanted = plan(self._policy, self._named(model))
        if wanted.engine == "vllm" and gpus(os.environ) > 0:
            return "vLLM takes the whole memory of the GPU"
        if self._policy.port != 0:
            return f"both would need port {self._policy.port}"
        try:
            check(self._policy, wanted)
        except LocalModelError as error:
            if error.why != "too_large":
                raise
            check(self._policy, wanted, freed=self._freed_by(old))
            return "there is no memory for both"
        return ""

    def _freed_by(self, old: Instance) -> int:
        """Bytes that come free with it: in memory what it holds there, on a GPU what it was planned to take."""
        planned = 0 if old.plan is None else old.plan.size + old.plan.context_bytes
        return max(planned, 0 if old.child is None else old.child.resident())

    def adopt(self, instance: Instance) -> None:
        """The next start is to share its port and log."""
        if instance.child is not None:
            self._port, self.log = instance.port, instance.child.log

    def _planned(self, model: str | None, port: int, log: Path) -> Instance:
        wanted = plan(self._policy, self._named(model))
        return Instance.planned(self._policy, wanted, port=port, key=self._key, log=log, on_exit=self._on_exit)

    def _named(self, model: str | None) -> str:
        if self._find is not None:
            return self._find(model)
        if model is None:
            raise LocalModelError(
                "no local model is named: set LocalPolicy.model to a GGUF file, a folder or a name on the hub",
                why="no_model",
            )
        return model
