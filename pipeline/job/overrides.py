"""Settings typed on the command line: `--set section.key=value` replaces one value of a job spec.

The plain fields of a spec and one override, whose value is YAML, come in; the fields are changed in
place. Whether the key exists and the value fits is checked afterwards, with the whole spec.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import SpecError
from pipeline.storage.closed_yaml import YamlMistake, load_yaml


def apply_override(fields: dict[str, Any], override: str) -> str:
    """Set one key of a spec's plain fields in place; returns its dotted name. Raises SpecError for
    an override that cannot be read."""
    dotted, equals, value = override.partition("=")
    *sections, key = dotted.strip().split(".")
    if not equals or not key:
        raise SpecError(
            f"--set {dotted}: write it as section.key=value, "
            "for instance runtime.max_batch_tokens=8192"
        )
    for section in sections:
        fields = fields.setdefault(section, {})
        if not isinstance(fields, dict):
            raise SpecError(f"--set {dotted}: '{section}' is not a section")
    try:
        fields[key] = load_yaml(value)
    except YamlMistake as error:
        raise SpecError(f"--set {dotted}: the value {error}") from None
    return dotted.strip()
