"""The train page: a form made from the config schema, the config file and command it stands for, and the start button."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr
from swift_core.config.command import CommandConfig
from swift_core.errors import LaunchError, Problem

from swift_ui.form import MANAGED, RUNS_CODE, FormField, as_command, as_yaml, form_fields, masked, read_form, split_secrets
from swift_ui.i18n import Texts
from swift_ui.jobs import JobManager

# What a person decides first; the other basic settings follow in the order of the schema.
FIRST = ("model", "dataset", "tuner_type", "num_train_epochs", "learning_rate", "max_length")


class TrainPage:
    """Builds the page inside the current Blocks.

    Args:
        kind: config of the command that the page starts.
        manager: starts the jobs.
        text: texts in the page's language.

    Attributes:
        started: number of the job started last from this page; other pages may listen to its changes.
    """

    def __init__(self, kind: type[CommandConfig], manager: JobManager, text: Texts) -> None:
        self.kind = kind
        self.manager = manager
        self.text = text
        self.fields = form_fields(kind)
        self.inputs: dict[str, Any] = {}
        self.started = gr.State(None)
        gr.Markdown(text("train_intro"))
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                self._form()
            with gr.Column(scale=2, min_width=320, elem_classes="beside"):
                self.name = gr.Textbox(label=text("job_name"), info=text("job_name_hint"), elem_id="job_name", max_lines=1)
                self.start = gr.Button(text("start"), variant="primary", elem_id="start")
                self.problems = gr.HTML(elem_id="problems")
                code: dict[str, Any] = {"interactive": False, "lines": 3, "max_lines": 24, "wrap_lines": True}
                self.yaml = gr.Code(label=text("preview_yaml"), language="yaml", elem_id="preview_yaml", **code)
                self.command = gr.Code(label=text("preview_command"), language="shell", elem_id="preview_command", **code)
        self._connect()

    def _form(self) -> None:
        basic = sorted(
            (field for field in self.fields if field.basic),
            key=lambda field: FIRST.index(field.name) if field.name in FIRST else len(FIRST),
        )
        with gr.Group(), gr.Row():
            for field in basic:
                self.inputs[field.name] = _widget(field, self.text)
        gr.Markdown(f"### {self.text('advanced')}")
        groups: dict[str, list[FormField]] = {}
        for field in self.fields:
            if not field.basic:
                groups.setdefault(field.group, []).append(field)
        for heading, fields in groups.items():
            with gr.Accordion(self.text.group(heading), open=False), gr.Row():
                for field in fields:
                    self.inputs[field.name] = _widget(field, self.text)
        gr.Markdown(self.text("left_out", names=", ".join(f"`--{name}`" for name in (*RUNS_CODE, *MANAGED))), elem_classes="quiet")

    def _connect(self) -> None:
        inputs = [self.inputs[field.name] for field in self.fields]
        outputs = [self.problems, self.yaml, self.command]
        events = [getattr(widget, "input" if isinstance(widget, gr.Textbox) else "change") for widget in inputs]
        gr.on(events, self._preview, inputs, outputs, show_progress="hidden", trigger_mode="always_last", api_visibility="private")
        tuner_fields = [field for field in self.fields if field.owners]
        self.inputs["tuner_type"].change(
            lambda tuner: [gr.update(visible=tuner in field.owners) for field in tuner_fields],
            self.inputs["tuner_type"],
            [self.inputs[field.name] for field in tuner_fields],
            show_progress="hidden",
            api_visibility="private",
        )
        self.start.click(self._start, [self.name, *inputs], [self.started, *outputs], api_visibility="private")

    def opened(self) -> tuple[Any, list[Any]]:
        """Return the function and outputs that fill the previews when the page is opened."""
        return (lambda: self._preview(*[field.default for field in self.fields])), [self.problems, self.yaml, self.command]

    def _preview(self, *entered: Any) -> tuple[str, str, str]:
        reading = read_form(self.kind, self.fields, self._by_name(entered))
        shown = masked(self.fields, reading.values)
        return problem_list(reading.problems, self.text), as_yaml(shown), as_command(self.kind.command, shown)

    def _start(self, name: str, *entered: Any) -> tuple[Any, ...]:
        reading = read_form(self.kind, self.fields, self._by_name(entered))
        if reading.problems:
            gr.Warning(self.text("refused"))
            return (gr.skip(), *self._preview(*entered))
        public, secrets = split_secrets(self.fields, reading.values)
        try:
            job = self.manager.start(self.kind.command, public, name=name.strip(), secrets=secrets)
        except LaunchError as error:
            raise gr.Error(str(error)) from error
        gr.Info(self.text("started", number=job.id))
        return (job.id, *self._preview(*entered))

    def _by_name(self, entered: Sequence[Any]) -> dict[str, Any]:
        return {field.name: value for field, value in zip(self.fields, entered, strict=True)}


def problem_list(problems: Sequence[Problem], text: Texts) -> str:
    """Return the problems as HTML, or the word that all is well."""
    if not problems:
        return f'<div class="ready">{html.escape(text("ready"))}</div>'
    items = "".join(
        f"<li><code>{html.escape(problem.where)}</code> {html.escape(problem.what)}"
        + (f"<small>{html.escape(text('fix'))}: {html.escape(problem.fix)}</small>" if problem.fix else "")
        + "</li>"
        for problem in problems
    )
    return f'<div class="problems"><b>{html.escape(text("problems"))}</b><ul>{items}</ul></div>'


def _widget(field: FormField, text: Texts) -> Any:
    info = f"`{field.flag}` {field.help}"
    common: dict[str, Any] = {"label": text.field(field.name), "info": info, "elem_id": f"field_{field.name}", "min_width": 260}
    if field.widget == "checkbox":
        return gr.Checkbox(value=field.default, **common)
    if field.widget == "choices":
        return gr.Dropdown(list(field.choices), value=field.default, multiselect=True, **common)
    if field.widget == "choice":
        named = [(choice or text("not_set"), choice) for choice in field.choices]
        return gr.Dropdown(named, value=field.default, **common)
    if field.widget == "secret":
        return gr.Textbox(value="", type="password", placeholder=text("secret_hint"), **common)
    hints = {"list": text("one_a_line"), "json": '{"key": value}'}
    placeholder = hints.get(field.widget, text("not_set") if field.default == "" else text("default", value=field.default))
    lines = 2 if field.widget == "list" else 1
    return gr.Textbox(value=field.default, placeholder=placeholder, lines=lines, max_lines=6 if field.widget != "text" else 1, **common)
