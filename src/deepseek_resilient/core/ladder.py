"""The ladder: what becomes of a call under load, before it is refused.

`steps` says which steps concern a call, `simplify` applies those that change what is asked:

| step          | its word         | what it does                        | leaves alone                               |
| ------------- | ---------------- | ----------------------------------- | ------------------------------------------ |
| CheaperModel  | model            | another `model`                     | FIM; where a tool exchange is under way    |
| LowerEffort   | reasoning_effort | the effort becomes `to`             | an effort as low as that                   |
| ThinkingOff   | thinking         | thinking off, and the effort away   | calls with tools; a prefix to be continued |
| ShorterAnswer | max_tokens       | higher limits of tokens become this | calls with tools; JSON answers             |

What a call does not state is added only for DeepSeek's own models, whose defaults are known: they think, with effort
"high" and up to 384K tokens (in FIM and in Anthropic's format no limit is added). Reasoning is counted with the answer,
so that a limit meant for answers could leave no room for one: while a call thinks, `thinking_limit` goes instead.

Why tools are left alone: a turn with tool calls that was made without thinking lacks the `reasoning_content` that a
later, thinking turn must pass back (400); a tool call or JSON text that is cut is none; an exchange of one model is not
another's to go on with. A lower effort breaks none of these. FIM is documented for one model only.

The fields by dialect and the ranks of the efforts: https://api-docs.deepseek.com/guides/thinking_mode, August 2026.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from deepseek_resilient.config.quality import CheaperModel, LowerEffort, ShorterAnswer, ThinkingOff
from deepseek_resilient.wire import Dialect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deepseek_resilient.config.quality import LadderPolicy, Priority, Step

_RANKS = {"minimal": 1, "low": 1, "medium": 2, "high": 2, "xhigh": 2, "max": 3, "ultra": 3}
_DEFAULT_RANK = 2
_EFFORT = {
    Dialect.CHAT: ("", "reasoning_effort"),
    Dialect.RESPONSES: ("reasoning", "effort"),
    Dialect.MESSAGES: ("output_config", "effort"),
}
_LIMITS = {
    Dialect.CHAT: ("max_tokens", "max_completion_tokens"),
    Dialect.FIM: ("max_tokens",),
    Dialect.RESPONSES: ("max_output_tokens",),
    Dialect.MESSAGES: ("max_tokens",),
}
_MAY_ADD_LIMIT = (Dialect.CHAT, Dialect.RESPONSES)
_JSON = ("json_object", "json_schema")


class Simplified(NamedTuple):
    """What is asked instead, and what was changed: "model", "reasoning_effort", "thinking", "max_tokens"."""

    fields: dict[str, Any]
    changed: tuple[str, ...]


def steps(policy: LadderPolicy, level: int, priority: Priority) -> tuple[Step, ...]:
    """The steps that concern a call of that priority at that level, in order."""
    if not level:
        return ()
    return tuple(rung.step for rung in policy.rungs if level >= rung.level and priority in rung.priorities)


def simplify(
    dialect: Dialect, fields: Mapping[str, Any], level: int, priority: Priority, policy: LadderPolicy
) -> Simplified | None:
    """A copy of the request's JSON `fields` as the ladder has it; None when nothing changes. `fields` stays as it is.

    What is malformed is left alone: the server has a better word for it.
    """
    todo = steps(policy, level, priority)
    if not todo or not dialect.is_inference:
        return None
    draft = _Draft(dialect, fields)
    changed: dict[str, None] = {}
    for step in todo:
        if isinstance(step, CheaperModel):
            word = "model" if draft.change_model(step.mapping) else ""
        elif isinstance(step, LowerEffort):
            word = "reasoning_effort" if draft.lower_effort(step.to) else ""
        elif isinstance(step, ThinkingOff):
            word = "thinking" if draft.stop_thinking() else ""
        elif isinstance(step, ShorterAnswer):
            word = "max_tokens" if draft.shorten(step.limit, step.thinking_limit) else ""
        else:
            continue
        if word:
            changed[word] = None
    return Simplified(draft.fields, tuple(changed)) if changed else None


def describe(policy: LadderPolicy) -> str:
    """The ladder as text, one line per rung."""
    return "\n".join(map(str, policy.rungs)) or "nothing is simplified at any level"


class _Draft:
    """The new fields in the making. Each method says whether it changed something."""

    __slots__ = ("_begun", "_dialect", "_tools", "fields")

    def __init__(self, dialect: Dialect, fields: Mapping[str, Any]) -> None:
        self.fields = dict(fields)
        self._dialect = dialect
        self._begun = _exchange_begun(fields)
        self._tools = self._begun or bool(fields.get("tools") or fields.get("functions"))

    def change_model(self, mapping: Mapping[str, str]) -> bool:
        model = self.fields.get("model")
        if self._begun or self._dialect is Dialect.FIM or not isinstance(model, str):
            return False
        cheaper = mapping.get(model, model)
        self.fields["model"] = cheaper
        return cheaper != model

    def lower_effort(self, to: str) -> bool:
        effort = self._effort()
        if not self._thinks(effort):
            return False
        if effort is None:
            rank = _DEFAULT_RANK if self._is_own_model() else 0
        else:
            rank = _RANKS.get(effort, 0) if isinstance(effort, str) else 0
        return rank > _RANKS[to] and self._set_effort(to)

    def stop_thinking(self) -> bool:
        fields = self.fields
        if self._tools or not self._thinks(self._effort()) or _ends_in_prefix(fields):
            return False
        if self._dialect is Dialect.RESPONSES:
            return self._is_own_model() and self._set_effort("none")
        if not self._is_own_model() and "thinking" not in fields:
            return False
        fields["thinking"] = {"type": "disabled"}
        self._drop_effort()
        return True

    def shorten(self, limit: int, thinking_limit: int | None) -> bool:
        fields = self.fields
        if self._tools or _wants_json(fields):
            return False
        most: int | None = limit
        if self._thinks(self._effort()):
            most = thinking_limit
        if most is None or _reasoning_budget(fields) >= most:
            return False
        stated = False
        changed = False
        names = _LIMITS[self._dialect]
        for name in names:
            value = fields.get(name)
            stated = stated or value is not None
            if isinstance(value, int) and not isinstance(value, bool) and value > most:
                fields[name] = most
                changed = True
        if not stated and self._dialect in _MAY_ADD_LIMIT and self._is_own_model():
            fields[names[0]] = most
            changed = True
        return changed

    def _is_own_model(self) -> bool:
        """Whether it is a model of DeepSeek's own API; "deepseek-ai/..." are names of other hosts."""
        model = self.fields.get("model")
        return isinstance(model, str) and model.startswith("deepseek-") and "/" not in model

    def _thinks(self, effort: object) -> bool:
        if self._dialect is Dialect.FIM or effort == "none":
            return False
        if self._dialect is not Dialect.RESPONSES:
            thinking = self.fields.get("thinking")
            if isinstance(thinking, dict):
                return thinking.get("type") != "disabled"
        return effort is not None or self._is_own_model()

    def _effort(self) -> object:
        if self._dialect is Dialect.FIM:
            return None
        holder, name = _EFFORT[self._dialect]
        place = self.fields.get(holder) if holder else self.fields
        return place.get(name) if isinstance(place, dict) else None

    def _set_effort(self, effort: str) -> bool:
        holder, name = _EFFORT[self._dialect]
        if not holder:
            self.fields[name] = effort
            return True
        place = self.fields.get(holder)
        if place is not None and not isinstance(place, dict):
            return False
        self.fields[holder] = {**(place or {}), name: effort}
        return True

    def _drop_effort(self) -> None:
        holder, name = _EFFORT[self._dialect]
        if not holder:
            self.fields.pop(name, None)
        elif isinstance(self.fields.get(holder), dict):
            rest = {key: value for key, value in self.fields[holder].items() if key != name}
            if rest:
                self.fields[holder] = rest
            else:
                del self.fields[holder]


def _exchange_begun(fields: Mapping[str, Any]) -> bool:
    """Whether the conversation holds a tool call, or a result of one, or goes on from one that the server keeps."""
    if fields.get("previous_response_id") is not None:
        return True
    return any(_tells_of_tools(item) for item in _dicts(fields.get("messages")) + _dicts(fields.get("input")))


def _tells_of_tools(item: dict[str, Any]) -> bool:
    if item.get("tool_calls") or item.get("function_call") or item.get("role") in ("tool", "function"):
        return True
    kinds = [item.get("type"), *(part.get("type") for part in _dicts(item.get("content")))]
    return any(isinstance(kind, str) and (kind.startswith("tool_") or "_call" in kind) for kind in kinds)


def _ends_in_prefix(fields: Mapping[str, Any]) -> bool:
    messages = _dicts(fields.get("messages"))
    return bool(messages) and messages[-1].get("prefix") is True


def _wants_json(fields: Mapping[str, Any]) -> bool:
    text, config = fields.get("text"), fields.get("output_config")
    formats = (
        fields.get("response_format"),
        text.get("format") if isinstance(text, dict) else None,
        config.get("format") if isinstance(config, dict) else None,
    )
    return any(isinstance(wanted, dict) and wanted.get("type") in _JSON for wanted in formats)


def _reasoning_budget(fields: Mapping[str, Any]) -> int:
    """Anthropic's `budget_tokens`, which must stay below the limit of the whole answer."""
    thinking = fields.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    return budget if isinstance(budget, int) else 0


def _dicts(items: object) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
