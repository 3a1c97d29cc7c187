"""Routes that load adapters while the server runs, from one folder alone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from fastapi import FastAPI, Request
from pydantic import Field
from swift_core.errors import EngineError, SwiftError
from swift_core.protocols import AdapterEngine

from swift_infer.server.bodies import as_model, read_json
from swift_infer.server.errors import ApiError
from swift_infer.server.wire import WireModel

_NAME = r"^[A-Za-z0-9][\w.\-:]{0,127}$"


class LoadRequest(WireModel):
    """Body of POST /v1/load_lora_adapter."""

    lora_name: str = Field(pattern=_NAME)
    lora_path: str = Field(min_length=1, max_length=4096)


class UnloadRequest(WireModel):
    """Body of POST /v1/unload_lora_adapter."""

    lora_name: str = Field(pattern=_NAME)


def add_adapter_routes(app: FastAPI, engine: AdapterEngine, root: str) -> None:
    """Add the routes to an application.

    Args:
        app: gets them.
        engine: loads adapters.
        root: folder that holds all adapters which may be loaded.
    """

    @app.post("/v1/load_lora_adapter")
    async def load(request: Request) -> dict[str, str]:
        body = as_model(LoadRequest, await read_json(request))
        folder = inside(root, body.lora_path)
        try:
            await asyncio.to_thread(engine.add_adapter, body.lora_name, folder)
        except SwiftError as error:
            # Paths of this machine are nobody else's business.
            what = (
                error.message.replace(str(folder), body.lora_path)
                if isinstance(error, EngineError)
                else "it holds no adapter for this model"
            )
            raise ApiError(400, f"the adapter cannot be loaded: {what}", param="lora_path") from error
        return {"status": "loaded", "lora_name": body.lora_name}

    @app.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> dict[str, str]:
        body = as_model(UnloadRequest, await read_json(request))
        if body.lora_name not in engine.adapters:
            raise ApiError(404, f"no adapter {body.lora_name!r} is loaded", code="model_not_found", param="lora_name")
        await asyncio.to_thread(engine.remove_adapter, body.lora_name)
        return {"status": "unloaded", "lora_name": body.lora_name}


def inside(root: str, given: str) -> Path:
    """Return a folder below the root, links followed.

    Raises:
        ApiError: when it lies elsewhere.
    """
    try:
        base = os.path.realpath(Path(root).expanduser(), strict=True)
        folder = os.path.realpath(Path(base) / given)
        lies_inside = os.path.commonpath([base, folder]) == base and folder != base and Path(folder).is_dir()
    except (OSError, ValueError):  # a link in circles, a NUL
        lies_inside, folder = False, ""
    if not lies_inside:
        raise ApiError(403, "there is no such folder below --adapter_root", code="path_not_allowed", param="lora_path")
    return Path(folder)
