"""What a URI of the input names: one object, everything below a folder, or what a pattern matches.

An exact name is that object or folder, also when it holds `* ? [ ]`; only a name that nothing has
is a pattern. Cost: one request for the exact name, one listing of a folder, and for a pattern the
folders that it can match in.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import http
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fsspec.utils import glob_translate

from pipeline.errors import CorpusEmbedError, InputError, SpecError
from pipeline.storage.addresses import shown
from pipeline.storage.filesystems import reason, refusal
from pipeline.storage.problems import is_about_credentials, status_of
from pipeline.storage.retry import retried

Info = dict[str, Any]
"""What an fsspec file system says about an object."""

_OWN_PATTERNS = ("http", "https", "hf")
"""Protocols whose file systems match patterns by rules of their own: `?` starts the query of a web
address, and names on the Hub have several spellings."""


@dataclass(frozen=True)
class Listing:
    """What one URI names.

    root: the folder that was listed, "" for an exact name. files: an exact file, or those of the
    folder or of the pattern, by full name. others: what the folder or pattern has beside files: for
    a pattern folders, too. folders: every folder that was met. names: everything that was met.
    literal: the text that every name starts with because the URI does, so that a hidden name in it
    was asked for.
    """

    root: str = ""
    files: Mapping[str, Info] = field(default_factory=dict)
    others: Mapping[str, Info] = field(default_factory=dict)
    folders: Sequence[str] = ()
    names: Iterable[str] = ()
    literal: str = ""
    is_pattern: bool = False

    @property
    def is_exact(self) -> bool:
        return not self.root

    def is_hidden(self, name: str) -> bool:
        steps = name.removeprefix(self.literal).split("/")
        return any(step.startswith(("_", ".")) for step in steps)


def listed(fs: Any, path: str, uri: str, endpoint: str = "") -> Listing:
    """What a URI names, asked again after transient failures. endpoint: the server, for messages.
    Raises SpecError or InputError, StorageError when the store keeps failing."""
    try:
        return retried(
            functools.partial(_listing, fs, path, uri.endswith("/")), f"list {shown(uri)}", endpoint
        )
    except FileNotFoundError as error:
        raise SpecError(_missing(str(fs.unstrip_protocol(path)), uri, error)) from error
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise refused(uri, error) from error
        raise SpecError(
            f"{shown(uri)}: cannot be listed: {reason(error)}. Check input.uri."
        ) from error
    except CorpusEmbedError:
        raise
    except Exception as error:  # of a client library, which each have their own reasons
        if is_about_credentials(error):
            raise refused(uri, error) from error
        if hasattr(error, "status"):
            raise SpecError(_missing(str(fs.unstrip_protocol(path)), uri, error)) from error
        raise InputError(
            f"{shown(uri)}: cannot be listed: {reason(error)}. Check input.storage_options."
        ) from error


def _listing(fs: Any, path: str, is_folder: bool) -> Listing:
    """What `path` names. is_folder: whether it was written with a slash at its end.

    Raises FileNotFoundError for an exact name of nothing; PermissionError and whatever else the
    store answers.
    """
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    info: Info = {}
    refusal: OSError | None = None
    try:
        info = fs.info(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        refusal = error  # a role can be allowed to list a folder and not to ask for its name
    if info.get("type") == "other":
        raise FileNotFoundError("this is neither a file nor a folder, such as a pipe")
    if info.get("type") == "file" and not _can_be_a_folder(info, path, is_folder):
        return Listing(files={path: info})
    if not info and has_magic(path, protocol):
        return _matches(fs, path, protocol)
    if refusal is not None and protocol in ("http", "https"):
        raise refusal
    below = fs.find(path, withdirs=True, detail=True)
    below.pop(path, None)
    folders = _folders(below)
    if len(below) > len(folders):
        objects = {name: below[name] for name in below.keys() - set(folders)}
        files, others = _resolved(fs, objects)
        return Listing(path, files, others, folders, list(objects), f"{path}/")
    if info.get("type") == "file":
        return Listing(files={path: info})
    if refusal is not None:
        raise refusal
    return Listing(path, folders=folders)


def has_magic(path: str, protocol: str) -> bool:
    return re.search(r"[*\[]" if protocol in ("http", "https") else r"[*?\[]", path) is not None


def _can_be_a_folder(info: Info, path: str, is_folder: bool) -> bool:
    """Whether something may lie below a name that is a file, too: of a marker without bytes, of a
    page of links, and on a store of a prefix that is written with a slash."""
    if "ino" in info:
        return False
    host, _, name = path.partition("://")[2].rpartition("/")
    is_page = info.get("mimetype") == "text/html" and ("." not in name or not host)
    return is_folder or info.get("size") == 0 or is_page


def _matches(fs: Any, path: str, protocol: str) -> Listing:
    pattern, literal = _with_literal_folders(fs, path, protocol)
    root = literal[: literal.rindex("/") + 1] if "/" in literal else ""
    if protocol in _OWN_PATTERNS:
        matches = below = fs.glob(path, detail=True)
    else:
        depth = None if "**" in path else path[len(root) :].count("/") + 1
        below = fs.find(root, maxdepth=depth, withdirs=True, detail=True)
        is_match = re.compile(glob_translate(pattern)).match
        matches = {name: info for name, info in below.items() if is_match(name.rstrip("/"))}
    files, others = _resolved(fs, matches)
    return Listing(root, files, others, _folders(below), list(below), literal, is_pattern=True)


def _with_literal_folders(fs: Any, path: str, protocol: str) -> tuple[str, str]:
    """(`path` as a pattern in which the folders that exist under their exact names are escaped, the
    text before its first wildcard)"""
    steps = path.split("/")
    for number, step in enumerate(steps):
        if not has_magic(step, protocol):
            continue
        is_last = number == len(steps) - 1
        folder = "/".join(steps[: number + 1])
        if is_last or protocol in _OWN_PATTERNS or step in ("*", "**") or not fs.isdir(folder):
            literal = "/".join([*steps[:number], re.split(r"[*?\[]", step)[0]])
            return "/".join([*map(glob.escape, steps[:number]), *steps[number:]]), literal
    return "/".join(map(glob.escape, steps)), path


def _folders(objects: Mapping[str, Info]) -> list[str]:
    return [name for name, info in objects.items() if info["type"] == "directory"]


def _resolved(fs: Any, objects: Mapping[str, Info]) -> tuple[dict[str, Info], dict[str, Info]]:
    """(files, what is none) among listed objects. A local listing describes a link itself; here a
    link stands for the file that it leads to. A page of links gives no lengths."""
    files = {}
    others = {}
    for name, info in objects.items():
        has_no_size = info["type"] == "file" and info.get("size") is None
        if info.get("islink") or has_no_size:
            with contextlib.suppress(OSError):  # a dead link, or one that leads to itself
                info = fs.info(name)
        if info["type"] == "file":
            files[name] = info
        else:
            others[name] = info
    return files, others


def _missing(place: str, uri: str, error: Exception) -> str:
    """Why an exact name cannot be listed. place: its full URI."""
    answer = str(error).rstrip(".")
    if server_answer(error):
        answer = str(server_answer(error))
    elif not answer or answer.strip("/") in place or "No such file" in answer:
        answer = "nothing has this name"
    return (
        f"{shown(place)}: no input found there (it cannot be listed: {answer}). "
        f"Check input.uri{list_advice(uri)}."
    )


def server_answer(error: Exception) -> str | None:
    """What a web server said instead of giving an object, in words; None where it has none or did
    not answer."""
    status = status_of(error)
    if status in (None, 404):
        return None
    phrases = [known.phrase for known in http.HTTPStatus if known == status]
    return " ".join([f"the server answers {status}", *phrases])


def list_advice(uri: str) -> str:
    """For several names in one string."""
    return "; several names are written as a list: [a, b]" if "," in uri else ""


def refused(uri: str, error: BaseException) -> InputError:
    return InputError(f"{shown(uri)}: access was refused: {reason(error)}. {refusal(error)}.")
