"""The jobs page: every job of the workspace, and log, curves and stop button of the one that is chosen."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from typing import Any

import gradio as gr

from swift_ui.chart import curve, read_log, series
from swift_ui.i18n import Texts
from swift_ui.jobs import ACTIVE, Job, JobManager, tail

CURVES = ("loss", "learning_rate", "grad_norm", "tokens_per_second")
SECONDS_BETWEEN_LOOKS = 1.5


class JobsPage:
    """Builds the page inside the current Blocks.

    Args:
        manager: knows the jobs.
        text: texts in the page's language.
    """

    def __init__(self, manager: JobManager, text: Texts) -> None:
        self.manager = manager
        self.text = text
        self.table = gr.HTML(elem_id="jobs")
        with gr.Row(equal_height=True):
            self.chosen = gr.Dropdown([], value=None, label=text("choose_job"), elem_id="chosen", scale=3)
            self.stop = gr.Button(text("stop"), variant="stop", elem_id="stop", interactive=False, scale=1)
        self.curves = gr.HTML(elem_id="curves")
        self.log = gr.Textbox(label=text("log"), lines=16, max_lines=16, interactive=False, elem_id="log", autoscroll=True)
        self.timer = gr.Timer(SECONDS_BETWEEN_LOOKS)
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.timer.tick(self._look, self.chosen, self._outputs, **quiet)
        self.chosen.input(self._look, self.chosen, self._outputs, **quiet)
        self.stop.click(self._stop, self.chosen, self._outputs, **quiet)

    @property
    def _outputs(self) -> list[Any]:
        return [self.table, self.chosen, self.stop, self.curves, self.log]

    def opened(self) -> tuple[Any, list[Any]]:
        """Return the function and outputs that show the newest job when the page is opened."""
        return (lambda: self._look(None)), self._outputs

    def follow(self, started: gr.State) -> None:
        """Show a job as soon as another page starts it."""
        started.change(self._look, started, self._outputs, show_progress="hidden", api_visibility="private")

    def _look(self, number: int | None) -> tuple[Any, ...]:
        jobs = self.manager.all()
        job = next((item for item in jobs if item.id == number), jobs[0] if jobs else None)
        choices = [(f"{item.id}  {item.name}", item.id) for item in jobs]
        return (
            job_table(jobs, job, self.text),
            gr.update(choices=choices, value=job.id if job else None),
            gr.update(interactive=job is not None and job.status == "running"),
            job_curves(job, self.text) if job else "",
            tail(job.log_file) if job else "",
        )

    def _stop(self, number: int | None) -> tuple[Any, ...]:
        if number is not None:
            job = self.manager.stop(number)
            gr.Info(self.text("stop_sent" if job.status == "stopping" else "stop_idle", number=number))
        return self._look(number)


def job_table(jobs: Sequence[Job], chosen: Job | None, text: Texts) -> str:
    """Return the list of jobs as HTML; without jobs, what to do first."""
    if not jobs:
        return f'<div class="jobs-empty">{html.escape(text("jobs_empty"))}</div>'
    heads = [text(f"col_{name}") for name in ("id", "name", "command", "status", "started", "time", "exit")]
    rows: list[str] = []
    for job in jobs:
        end = job.ended or time.time()
        cells = [
            str(job.id),
            html.escape(job.name),
            html.escape(f"swift {job.command}"),
            f'<span class="status {job.status}">{html.escape(text(f"status_{job.status}"))}</span>',
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created)),
            _duration(end - job.created),
            "" if job.exit_code is None else str(job.exit_code),
        ]
        mark = ' class="chosen"' if chosen is not None and job.id == chosen.id else ""
        rows.append(f'<tr{mark} data-job="{job.id}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    return f'<div class="jobs-scroll"><table class="jobs"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def job_curves(job: Job, text: Texts) -> str:
    """Return the curves of a job's run as HTML, with the folder they come from."""
    rows = read_log(job.run_folder / "logging.jsonl")
    drawn = "".join(curve(text(f"curve_{key}"), series(rows, key), empty=text("curve_empty")) for key in CURVES)
    shown = html.escape(str(job.run_folder if job.status not in ACTIVE or job.run_folder.exists() else job.folder))
    return f'<div class="curves">{drawn}</div><div class="folder">{html.escape(text("folder"))}: <code>{shown}</code></div>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
