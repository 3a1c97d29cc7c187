"""The web page, assembled: pages in tabs, and how they are served."""

from __future__ import annotations

import sys
from pathlib import Path

import gradio as gr
from gradio.themes import Base, Soft
from swift_core.config.training import SftConfig
from swift_core.errors import LaunchError

from swift_ui.config import WebUiConfig
from swift_ui.i18n import Texts
from swift_ui.jobs import JobManager
from swift_ui.pages.jobs import JobsPage
from swift_ui.pages.train import TrainPage

STYLE = Path(__file__).with_name("style.css")


def build(manager: JobManager, lang: str) -> gr.Blocks:
    """Return the page in one language."""
    text = Texts(lang)
    with gr.Blocks(title=text("title"), analytics_enabled=False) as page:
        gr.Markdown(f"# {text('title')}\n{text('subtitle')}")
        with gr.Tabs(selected="train") as tabs:
            with gr.Tab(text("tab_train"), id="train"):
                train = TrainPage(SftConfig, manager, text)
            with gr.Tab(text("tab_jobs"), id="jobs"):
                jobs = JobsPage(manager, text)
        jobs.follow(train.started)
        train.started.change(lambda: gr.Tabs(selected="jobs"), None, tabs, show_progress="hidden", api_visibility="private")
        for fill, outputs in (train.opened(), jobs.opened()):
            page.load(fill, None, outputs, show_progress="hidden", api_visibility="private")
    return page


def serve(config: WebUiConfig, *, block: bool = True) -> str:
    """Serve the page and return its address.

    Args:
        config: checked settings.
        block: stay until the server is interrupted.

    Raises:
        LaunchError: when the port is taken or the address is not one of this machine.
    """
    page = config.page
    manager = JobManager(Path(page.workspace))
    user, _, password = (page.auth or "").partition(":")
    blocks = build(manager, page.lang)
    try:
        _, url, _ = blocks.launch(
            server_name=page.server_name,
            server_port=page.server_port,
            auth=(user, password) if page.auth else None,
            inbrowser=page.inbrowser,
            theme=_theme(),
            css_paths=STYLE,
            allowed_paths=[],
            show_error=False,
            footer_links=[],
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        what = f"cannot listen on {page.server_name}:{page.server_port}: the port is taken or the address is not of this machine"
        raise LaunchError(what, fix="choose another --server_port or --server_name") from error
    sys.stdout.write(f"swift web-ui: {url}\nworkspace: {manager.workspace}\n")
    sys.stdout.flush()
    if block:
        blocks.block_thread()
    return url


def _theme() -> Base:
    # System fonts: the page loads nothing from other hosts.
    theme = Soft(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return theme.set(
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_padding="0",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="*body_text_color_subdued",
        block_label_text_color_dark="*body_text_color_subdued",
    )
