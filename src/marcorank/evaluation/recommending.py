"""What was chosen, as text and as code to paste."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from marcorank._text import table
from marcorank.evaluation.choosing import KEEPS, MARGIN, recommended_setting
from marcorank.evaluation.sweep import Setting
from marcorank.evaluation.wording import percent, signed, value
from marcorank.reranker import Reranker, changed_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marcorank.evaluation.records import Choice, Choices

_WIDTH = 100
_CODE_WIDTH = 88
_IMPORT = "from marcorank import Reranker"
_SHOWN = ("blend", "skim_keep")
_HEADER = ("option", "chosen on", "setting", "measured on", "off", "with it", "difference", "95 % interval")


def criterion(choices: Choices) -> str:
    """Return how the choice was made."""
    return (
        f"Each half of the queries chose, and the other half measured it in {choices.measure}. Off: the model reads "
        f"{choices.top_k} candidates, and its scores alone decide. blend is recommended if its 95 % interval on "
        f"queries that did not choose it is above 0; top_k and skim_keep, which save time, if theirs is above "
        f"-{MARGIN}."
    )


def advice(choices: Choices) -> list[str]:
    """Return what is recommended, and why: to leave reranking off, if the first stage suffices, and each option."""
    found = []
    if choices.first_stage_suffices:
        recommended, off, first_stage = _values(choices)
        with_all = "" if _recommends_nothing(choices) else f" and {recommended} with the options below"
        found.append(
            f"reranking: leave it off; {choices.measure} of all queries is {first_stage} for these candidates in "
            f"first-stage order, {off} in the order of the model's scores{with_all}"
        )
    found += [_verdict(choice, choices) for choice in choices.options]
    if choices.skim is not None and all(choice.option != "skim_keep" for choice in choices.options):
        found.append(
            f"skim_keep: not tried; {choices.top_k} candidates are no more than the smallest number to keep, {KEEPS[0]}"
        )
    return found


def _verdict(choice: Choice, choices: Choices) -> str:
    if choice.recommended is None:
        return f"{choice.option}: leave it off; {choice.reason}"
    if choices.first_stage_suffices:
        return f"{choice.option}: {choice.recommended:g} if you rerank all the same; {choice.reason}"
    return f"{choice.option}: {choice.recommended:g} is recommended; {choice.reason}"


def threshold_note(choices: Choices) -> str | None:
    """Return what a threshold does on queries that did not choose it."""
    found = choices.threshold
    if found is None:
        return None
    return (
        f"score_threshold: chosen on one half to keep {percent(found.aim)} of the relevant candidates, it kept "
        f"{percent(found.recall)} of them on the other, in {found.kept_per_query:.3g} results per query"
    )


def together_note(choices: Choices) -> str | None:
    """Return what all that is recommended gives, beside reading all and beside not reranking; None without any."""
    if _recommends_nothing(choices) or choices.first_stage_suffices:
        return None
    recommended, off, first_stage = _values(choices)
    return (
        f"all that is recommended together: {choices.measure} {recommended} on all queries, not held out; off {off}; "
        f"these candidates in first-stage order {first_stage}"
    )


def _recommends_nothing(choices: Choices) -> bool:
    return all(choice.recommended is None for choice in choices.options)


def _values(choices: Choices) -> tuple[str, str, str]:
    """Return the values on all queries of what is recommended, of everything off, and of the first-stage order."""
    by_setting = {Setting(point.top_k, point.skim_keep, point.blend): value(point.value) for point in choices.sweep}
    off = Setting(choices.top_k)
    recommended = recommended_setting(choices.options, choices.top_k)
    return by_setting[recommended], by_setting[off], by_setting[off.having("blend", 1.0)]


def choice_lines(choices: Choices) -> list[str]:
    """Return the lines for a terminal."""
    if choices.note is not None:
        return [f"settings: {choices.note}"]
    rows = []
    for choice in choices.options:
        if choice.is_off:
            continue
        for number, half in enumerate(choice.halves, 1):
            chosen = "off" if half.chosen is None else f"{half.chosen:g}"
            difference = signed(half.value - half.off)
            measured = (value(half.off), value(half.value), difference, "")
            rows.append((choice.option, f"half {number}", chosen, f"half {3 - number}", *measured))
        low, high = map(signed, choice.held_out.interval)
        rows.append(("", "", "", "both", "", "", signed(choice.held_out.difference), f"{low} to {high}"))
    lines = ["", *textwrap.wrap(f"Settings. {criterion(choices)}", _WIDTH)]
    if rows:
        lines += table(_HEADER, rows, left=["option", "chosen on", "measured on"])
    notes = [
        *advice(choices),
        threshold_note(choices),
        *map(partial(_tried, choices), _SHOWN),
        together_note(choices),
    ]
    for note in notes:
        if note is not None:
            lines += textwrap.wrap(note, _WIDTH, subsequent_indent="  ")
    for code in choices.code.values():
        lines += ["", *(f"    {line}".rstrip() for line in code.splitlines())]
    return lines


def _tried(choices: Choices, option: str) -> str | None:
    """Return the value of each setting of an option, with the others off."""
    off = Setting(choices.top_k)
    points = [
        f"{getattr(point, option):g} {value(point.value)}"
        for point in choices.sweep
        if (point.top_k, point.skim_keep, point.blend) == off.having(option, getattr(point, option)) != off
    ]
    ends = " (1 is the first-stage order)" if option == "blend" else ""
    return f"{choices.measure} of all queries, not held out, by {option}: {', '.join(points)}{ends}" if points else None


def with_code(choices: Choices, reranker: Reranker, skim: object, *, has_scores: bool) -> Choices:
    """Add code with all that is recommended; nothing if that is nothing, or if the first stage suffices.

    Args:
        choices: What was chosen.
        reranker: The reranker that was evaluated.
        skim: The skimming model, as it was given.
        has_scores: Whether the first stage gave scores.
    """
    if _recommends_nothing(choices) or choices.first_stage_suffices:
        return choices
    setting = recommended_setting(choices.options, choices.top_k)
    given = {name: one for name, one in changed_settings(reranker).items() if name != "model" and _is_plain(one)}
    settings = {name: repr(one) for name, one in given.items()}
    if setting.skim_keep is not None:
        settings |= {"skim": _model(skim, "skim_scorer"), "skim_keep": f"{setting.skim_keep}"}
    if setting.blend:
        settings["blend"] = f"{setting.blend:g}"
    model, top_k = _model(reranker.model, "scorer"), setting.top_k
    core = _call("reranker = Reranker", [model, *_keywords(settings)])
    rank = ["query", f"passages[:{top_k}]", "top_n=3"]
    if has_scores and (setting.blend or setting.skim_keep is not None):
        rank.append(f"retrieval_scores=scores[:{top_k}]")
    is_object = not isinstance(reranker.model, str)

    def adapter(module: str, names: str, field: str, call: str, *arguments: str) -> str:
        # An adapter cannot name a model that is an object; it takes a reranker of one.
        inner = _call("MarcoRerank", ["reranker=reranker"] if is_object else _keywords({field: model, **settings}))
        imports = [*([_IMPORT] if is_object else []), f"from marcorank.{module} import {names}", ""]
        made = [core] if is_object else []
        return "\n".join([*imports, *made, _call(call, [one.format(inner) for one in arguments])])

    return replace(
        choices,
        code={
            "core": "\n".join([_IMPORT, "", core, _call("ranking = reranker.rank", rank)]),
            "langchain": adapter(
                *("langchain", "MarcoRerank, RerankRetriever", "model_name", "retriever = RerankRetriever"),
                f'base_retriever=store.as_retriever(search_kwargs={{{{"k": {top_k}}}}})',
                "reranker={}",
            ),
            "llama_index": adapter(
                *("llama_index", "MarcoRerank", "model", "engine = index.as_query_engine"),
                f"similarity_top_k={top_k}",
                "node_postprocessors=[{}]",
            ),
        },
    )


def _is_plain(setting: object) -> bool:
    """Return whether the repr of a setting is code that makes it."""
    if isinstance(setting, Mapping):
        return all(map(_is_plain, setting.values()))
    return setting is None or isinstance(setting, (str, bool, int, float))


def _model(model: Any, placeholder: str) -> str:
    """Return the code of a model; a name stands for an object that only the user can make."""
    if isinstance(model, Reranker):
        changed = {name: one for name, one in changed_settings(model).items() if name != "model"}
        if changed and isinstance(model.model, str) and _is_plain(changed):
            return repr({"model": model.model, **changed})
        return _model(model.model, placeholder)
    if isinstance(model, str):
        return f'"{model}"' if model.isprintable() and not {'"', "\\"} & set(model) else repr(model)
    return repr(str(model)) if hasattr(model, "__fspath__") else placeholder


def _keywords(settings: Mapping[str, str]) -> list[str]:
    return [f"{name}={code}" for name, code in settings.items()]


def _call(function: str, arguments: Sequence[str]) -> str:
    """Return a call in one line, or with one argument a line if that is too long."""
    line = f"{function}({', '.join(arguments)})"
    if len(line) <= _CODE_WIDTH and "\n" not in line:
        return line
    inner = textwrap.indent(",\n".join(arguments), "    ")
    return f"{function}(\n{inner},\n)"
