"""YAML that somebody else may have written, read as plain data within bounds.

Text comes in; dicts, lists, strings, numbers, booleans and None come out. Nothing in the text names
a type, a key stands once in its mapping, and size, depth and number of values are bounded before
anything is built, with every alias counted as what it stands for: a "billion laughs" costs nothing.
A date is text, as no setting is a date. Job specs, overrides, stored specs and runtime environments
are read here and nowhere else.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_BYTES = 16 << 20
MAX_VALUES = 250_000
MAX_DEPTH = 32
CHARACTERS_PER_VALUE = 100
"""A longer text counts as several values, so that an alias cannot repeat it without end."""
MAX_DIGITS = 18
"""Digits of an integer: each fits into 64 bits."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STARTS = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_ENDS = (yaml.MappingEndEvent, yaml.SequenceEndEvent)
_TYPES = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool")}
_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_TYPES |= {"tag:yaml.org,2002:null", _MERGE}
_TAKEN_AS_TEXT = {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}


class YamlMistake(ValueError):
    """Why a text is not read. The message stands after the name of its source and a colon."""


def load_yaml(data: str | bytes) -> Any:
    """The plain data of one YAML document; None when it is empty. Raises YamlMistake."""
    if len(data) > MAX_BYTES:
        raise YamlMistake(f"has {len(data)} bytes; at most {MAX_BYTES} are read")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        _check_shape(text)
        loader = _LOADER(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check_nodes(root)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except UnicodeError as error:
        raise YamlMistake(f"is not UTF-8: {error}") from None
    except yaml.YAMLError as error:
        raise YamlMistake(f"cannot be read as YAML: {_explained(error)}") from None


def _check_shape(text: str) -> None:
    """Raises YamlMistake for what is too large, or nested too deeply for the recursive functions
    that follow."""
    depth = 0
    for n_events, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        if n_events > 2 * MAX_VALUES:
            raise YamlMistake(f"has more than {MAX_VALUES} values")
        depth += isinstance(event, _STARTS) - isinstance(event, _ENDS)
        if depth > MAX_DEPTH:
            raise _mistake(event, f"more than {MAX_DEPTH} lists and mappings stand in each other")


def _check_nodes(root: yaml.Node) -> None:
    """Raises YamlMistake for a type, a key or a number of values that no plain data has. An alias
    counts as all that it stands for."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size_of(node: yaml.Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise _mistake(node, "a value holds itself")
        open_nodes.add(id(node))
        size = 1 + sum(map(size_of, _children(node)))
        if isinstance(node, yaml.ScalarNode):
            size += len(node.value) // CHARACTERS_PER_VALUE
        if size > MAX_VALUES:
            raise _mistake(node, f"more than {MAX_VALUES} values, aliases counted")
        open_nodes.discard(id(node))
        sizes[id(node)] = size
        return size

    size_of(root)


def _children(node: yaml.Node) -> list[yaml.Node]:
    """The nodes in a node, after a check of its own type, number and keys."""
    if node.tag in _TAKEN_AS_TEXT:
        node.tag = _TEXT
    if node.tag not in _TYPES:
        raise _mistake(node, f"the tag {node.tag} names a type; write plain values")
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        return [inner for pair in node.value for inner in pair]
    _check_scalar(node)
    return []


def _check_keys(node: yaml.MappingNode) -> None:
    keys: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _mistake(key, "a list or a mapping cannot be a key")
        if key.tag not in (_TEXT, _MERGE, *_TAKEN_AS_TEXT):
            raise _mistake(key, f"key '{key.value}' is not taken for text; write it in quotes")
        if key.value in keys:
            raise _mistake(key, f"key '{key.value}' stands there twice")
        keys.add(key.value)


def _check_scalar(node: yaml.Node) -> None:
    """Raises YamlMistake for a number or a word that its type cannot be made of."""
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MAX_DIGITS:
        raise _mistake(node, f"a number of {len(node.value)} characters; write it in quotes")
    if node.tag in (_TEXT, _MERGE):
        return
    try:
        _LOADER("").construct_object(node)
    except (ValueError, KeyError, AttributeError, IndexError):
        kind = node.tag.rpartition(":")[2]
        raise _mistake(node, f"'{node.value[:40]}' is no {kind}") from None


def _mistake(place: yaml.Node | yaml.Event, problem: str) -> YamlMistake:
    line = f"line {place.start_mark.line + 1}: " if place.start_mark else ""
    return YamlMistake(line + problem)


def _explained(error: yaml.YAMLError) -> str:
    """The problem and its place, without the lines around it, which can hold a secret."""
    mark = getattr(error, "problem_mark", None)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.reason}, at character {error.position}"
    return f"{getattr(error, 'problem', None) or type(error).__name__}{place}"
