"""Settings of `swift web-ui`."""

from __future__ import annotations

import ipaddress
from typing import ClassVar, Literal

from pydantic import Field
from swift_core.config.command import CommandConfig
from swift_core.config.fields import Section, option
from swift_core.errors import Problem


class PageSection(Section):
    """Web page options."""

    server_name: str = option("127.0.0.1", "address to listen on; anything but this machine's own needs --auth", basic=True)
    server_port: int = option(7860, "port to listen on", basic=True, ge=1, le=65535)
    lang: Literal["en", "zh"] = option("en", "language of the page", basic=True)
    workspace: str = option("swift_workspace", "folder of the job list, the runs and their logs", basic=True)
    auth: str | None = option(None, "USER:PASSWORD that visitors must give", basic=True, secret=True)
    inbrowser: bool = option(False, "open the page in the browser of this machine")


class WebUiConfig(CommandConfig):
    """Settings of `swift web-ui`: `WebUiConfig(server_port=7861, lang="zh")`."""

    command: ClassVar[str] = "web-ui"

    page: PageSection = Field(default_factory=PageSection)

    def check(self) -> list[Problem]:
        """Return what would open the page to others, and credentials that cannot be used."""
        problems: list[Problem] = []
        auth = self.page.auth
        if auth is not None and not all(auth.partition(":")):
            problems.append(Problem("--auth", "is not of the form USER:PASSWORD", "--auth me:a-long-password"))
        if auth is None and not is_loopback(self.page.server_name):
            what = f"{self.page.server_name} can be reached by others, who could start programs here"
            problems.append(Problem("--server_name", what, "add --auth USER:PASSWORD, or listen on 127.0.0.1 and use an SSH tunnel"))
        return problems


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
