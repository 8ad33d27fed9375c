"""How many tokens a row is, by the base's own tokenizer.json and chat template; which text is a control token there.

Neither torch nor transformers: the libraries tokenizers and jinja2 (sandboxed). Must not know files of training data.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.row import ASSISTANT, Row, Turn, messages
from training.errors import DataRejected
from training.extras import need


class TemplateRefused(Exception):
    """The base's chat template does not take these turns; the message is its own."""


class Tokenizer:
    """One base's tokenizer and chat template. template_kwargs: what requests to this base will carry as well."""

    def __init__(
        self,
        tokenizer: Any,
        template: Any,
        variables: Mapping[str, Any],
        control: re.Pattern[str] | None,
        template_text: str,
    ) -> None:
        self._tokenizer, self._template, self._variables = tokenizer, template, dict(variables)
        self._control, self.template_text = control, template_text

    @classmethod
    def of(cls, base_folder: Path, *, template_kwargs: Mapping[str, Any] | None = None) -> Tokenizer:
        """From a base's folder. DataRejected where it has no tokenizer or no chat template."""
        file = base_folder / "tokenizer.json"
        if not file.is_file():
            raise DataRejected(f"{base_folder} has no tokenizer.json. Name the folder of the base model.", param="base")
        try:
            tokenizer = need("tokenizers").Tokenizer.from_file(str(file))
        except Exception as exc:  # the library raises nothing narrower
            raise DataRejected(f"The tokenizer of {base_folder.name} cannot be read: {exc}.", param="base") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _config(base_folder)
        text = _template_text(base_folder, config)
        variables = {name: _token(config.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        control = re.compile("|".join(re.escape(token) for token in special if token)) if any(special) else None
        return cls(tokenizer, _compiled(text), {**variables, **(template_kwargs or {})}, control, text)

    def count(self, row: Row) -> tuple[int, int]:
        """Tokens of the prompt, and of what is learned (every trained answer; the longer of two). TemplateRefused."""
        (counted,) = self.count_many((row,))
        if isinstance(counted, TemplateRefused):
            raise counted
        return counted

    def count_many(self, rows: Sequence[Row]) -> list[tuple[int, int] | TemplateRefused]:
        """`count` of many rows at once, which is faster; a refusal stands in its row's place."""
        texts: list[str] = []
        places: list[tuple[int, int] | TemplateRefused] = []
        for row in rows:
            try:
                made = self._texts(row)
            except TemplateRefused as exc:
                places.append(exc)
            else:
                places.append((len(texts), len(texts) + len(made)))
                texts += made
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lengths = [len(each) for each in encoded]
        return [
            place if isinstance(place, TemplateRefused) else _counts(row, lengths[place[0] : place[1]])
            for row, place in zip(rows, places, strict=True)
        ]

    def length(self, text: str) -> int:
        """Tokens of a text as it is."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def control_token(self, text: str) -> str | None:
        """The first control token of the base that stands in the text: it would be one, not text."""
        match = self._control.search(text) if self._control is not None else None
        return match.group() if match else None

    def render(self, turns: Sequence[Turn], tools: str | None = None, *, ask: bool = False) -> str:
        """The turns as the model sees them; ask: and what an answer begins with. TemplateRefused."""
        try:
            return str(
                self._template.render(
                    messages=messages(turns),
                    tools=json.loads(tools) if tools else None,
                    add_generation_prompt=ask,
                    **self._variables,
                )
            )
        except Exception as exc:  # a template is a program of its own: whatever it raises is its refusal
            raise TemplateRefused(str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__) from None

    def _texts(self, row: Row) -> list[str]:
        """What is to be counted: the prompt and all of it; then the other answer, or earlier ones and the last."""
        texts = [self.render(row.turns[:-1], row.tools, ask=True), self.render(row.turns, row.tools)]
        if row.rejected is not None:
            return [*texts, self.render((*row.turns[:-1], row.rejected), row.tools)]
        for place, turn in enumerate(row.turns[:-1]):
            if turn.role == ASSISTANT and turn.trained:
                texts.append(turn.content if turn.calls is None else self._called(row, place))
        return texts if len(texts) == 2 else [*texts, row.turns[-1].content]

    def _called(self, row: Row, place: int) -> str:
        """What the template makes of a turn that calls tools, its end included."""
        before = self.render(row.turns[:place], row.tools, ask=True)
        after = self.render(row.turns[: place + 1], row.tools)
        return after.removeprefix(before) if after.startswith(before) else row.turns[place].content


def _earlier(row: Row) -> list[Turn]:
    return [turn for turn in row.turns[:-1] if turn.role == ASSISTANT and turn.trained]


def _counts(row: Row, lengths: Sequence[int]) -> tuple[int, int]:
    prompt, whole, *more = lengths
    last = max(whole - prompt, 1)
    if row.rejected is not None:
        return prompt, max(last, more[0] - prompt)
    learned = last if row.turns[-1].trained else 0
    if more:
        *earlier, content = more
        end = max(last - content, 0)  # what ends an answer
        learned += sum(earlier) + end * sum(turn.calls is None for turn in _earlier(row))
    return max(whole, prompt + last) - learned, learned


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _template_text(folder: Path, config: Mapping[str, Any]) -> str:
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except OSError:
        pass
    found = config.get("chat_template")
    if isinstance(found, list):  # several by name
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise DataRejected(
            f"{folder.name} has no chat template, so it is no chat model. Name an instruct or chat base.", param="base"
        )
    return found


def _token(value: object) -> str:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _compiled(text: str) -> Any:
    """The template in jinja's sandbox, with what Transformers gives to it. DataRejected."""
    sandbox, jinja2 = need("jinja2.sandbox"), need("jinja2")
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def raise_exception(message: str) -> None:
        raise TemplateRefused(message)

    def tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, **kwargs: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **kwargs)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    # A day that stays: counts must not change from one day to the next.
    environment.globals["strftime_now"] = lambda form: datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).strftime(form)
    # `{% generation %}` marks what is trained on, for Transformers alone.
    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", text)
    try:
        return environment.from_string(plain)
    except jinja2.TemplateError as exc:
        raise DataRejected(f"The base's chat template cannot be read: {exc}.", param="base") from None
