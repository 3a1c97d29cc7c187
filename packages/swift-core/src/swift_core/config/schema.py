"""A command's settings as one flat JSON Schema: what editors, forms and other programs read."""

from __future__ import annotations

from typing import Any, cast

from swift_core.config.command import CommandConfig, tuner_flags, tuner_options_class
from swift_core.config.fields import Section
from swift_core.config.load import all_settings


def json_schema(kind: type[CommandConfig]) -> dict[str, Any]:
    """Return the JSON Schema of a command's config file, tuner options included."""
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for section, info in kind.model_fields.items():
        model = cast(type[Section], info.annotation)
        schema = model.model_json_schema()
        definitions.update(schema.get("$defs", {}))
        for name, entry in schema.get("properties", {}).items():
            setting = kind.settings().get(name)
            if setting is not None and setting.section == section:
                properties[name] = {**entry, "default": setting.default, "group": setting.group}
    if "tuner" in kind.model_fields:
        for name, owners in tuner_flags().items():
            model = tuner_options_class(owners[0].owner)
            if model is not None and name not in properties:
                entry = model.model_json_schema()["properties"][name]
                properties[name] = {**entry, "group": owners[0].group, "tuners": [setting.owner for setting in owners]}
    ordered = {name: properties[name] for name in all_settings(kind) if name in properties}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"swift {kind.command}",
        "description": (kind.__doc__ or "").strip().splitlines()[0],
        "type": "object",
        "properties": ordered,
        "additionalProperties": False,
        **({"$defs": definitions} if definitions else {}),
    }
