"""A text made of several fields: `input.text_template`, for instance "{title}\\n{body}"."""

from __future__ import annotations

import string
from dataclasses import dataclass


@dataclass(frozen=True)
class TextTemplate:
    """A parsed template. literals: the words around the fields, one more than there are fields.
    fields: their names."""

    literals: tuple[str, ...]
    fields: tuple[str, ...]

    @classmethod
    def parse(cls, template: str) -> TextTemplate:
        """Source of the syntax: Python's str.format, fields by name alone. Raises ValueError."""
        literals = [""]
        fields = []
        try:
            pieces = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ValueError(
                f"input.text_template: {error}; write {{{{ and }}}} for braces of the text"
            ) from None
        for literal, field, format_spec, conversion in pieces:
            literals[-1] += literal
            if field is None:
                continue
            if not field or format_spec or conversion:
                raise ValueError(
                    "input.text_template: a field is a name in braces, such as {title} or "
                    f"{{doc.title}}; '{template}' has another one"
                )
            fields.append(field)
            literals.append("")
        if not fields:
            raise ValueError(
                f"input.text_template: '{template}' names no field; write {{title}}, for instance"
            )
        return cls(tuple(literals), tuple(fields))
