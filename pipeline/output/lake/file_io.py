"""How pyiceberg reaches the files of a table: inside the folder that the operator's command names,
and nowhere else, but for the output's data files, which can be read.

Comes in: a catalog and the table's folder. Goes out: the same catalog, whose tables are read and
written through `FolderIO`. By itself pyiceberg merges a table's properties, which lie in the
output, over those of the catalog: whoever can write the output would choose the modules that are
imported and the hosts that get the credentials, and, by the paths in the metadata, which files are
read, written and deleted. Cost: one request more a metadata file, for its size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.io import PY_IO_IMPL, FileIO, InputFile, OutputFile, load_file_io
from pyiceberg.table import Table

from pipeline.errors import OutputError
from pipeline.output.lake.table import MAX_METADATA_BYTES
from pipeline.storage.addresses import shown

_FOLDER = "corpus-embed.folder"
_DATA = "corpus-embed.data"
_CODE = re.compile(r"(.*\.)?py-.*", re.IGNORECASE)
"""Properties whose values pyiceberg imports. `io-impl` is for Java and does nothing here."""
_ACCESS = re.compile(
    r"(s3|s3tables|client|hdfs|adls|abfss?|wasbs?|gcs|gs|hf|oss|rest|header|auth|oauth2|glue|dynamodb"
    r"|hive|sql|http|proxy|signer|ssl)[.-].*|token|uri|credential|scope|warehouse|endpoint",
    re.IGNORECASE,
)
"""Properties that choose hosts, credentials and ways to them."""


class FolderIO(FileIO):
    """Files of one folder, through the FileIO that pyiceberg picks for its scheme.

    Every other location, a link that leads out of a local folder, and a file that is compressed or
    larger than MAX_METADATA_BYTES is an OutputError.
    """

    def __init__(self, properties: dict[str, Any]) -> None:
        super().__init__(properties)
        self._folder = properties[_FOLDER].rstrip("/") + "/"
        self._data = properties[_DATA].rstrip("/") + "/"
        access = {name: value for name, value in properties.items() if not _CODE.fullmatch(name)}
        self._files = load_file_io(access, self._folder)

    def new_input(self, location: str) -> InputFile:
        if _is_inside(location, self._data):
            return self._files.new_input(location)
        file = self._files.new_input(self._checked(location))
        if (n_bytes := len(file)) > MAX_METADATA_BYTES:
            raise OutputError(
                f"{shown(location)}: has {n_bytes} bytes; metadata of a table has at most "
                f"{MAX_METADATA_BYTES}. The file is damaged, or somebody replaced it."
            )
        return file

    def new_output(self, location: str) -> OutputFile:
        return self._files.new_output(self._checked(location))

    def delete(self, location: str | InputFile | OutputFile) -> None:
        path = location if isinstance(location, str) else location.location
        self._files.delete(self._checked(path))

    def _checked(self, location: str) -> str:
        if not _is_inside(location, self._folder):
            raise OutputError(
                f"the metadata of the table names {shown(location)}, which lies outside "
                f"{shown(self._folder)}. Nothing was read or written there. If the table belongs "
                "to another output, name another one (publish.iceberg.table). If its folder was "
                "chosen on purpose, name it (publish.iceberg.location, or --location). Otherwise "
                "somebody changed the metadata."
            )
        if location.endswith(".gz.metadata.json"):
            raise OutputError(
                f"{shown(location)}: is compressed metadata, which this package neither writes nor "
                "reads. Unset write.metadata.compression-codec of the table."
            )
        return location


def _is_inside(location: str, folder: str) -> bool:
    """Whether a location is below a folder, by its name and, on a local disk, by all its links."""
    if not location.startswith(folder) or ".." in location.split("/"):
        return False
    if not folder.startswith(("file:", "/")):
        return True
    real_folder = os.path.realpath(folder.removeprefix("file://"))
    return os.path.realpath(location.removeprefix("file://")).startswith(real_folder + os.sep)


def confine(catalog: Catalog, folder: str, data_folder: str) -> Catalog:
    """Make a catalog reach the files of its tables through a FolderIO of `folder`.

    Tables whose properties name code raise OutputError when they are loaded, and so do tables whose
    properties say how storage is reached: only the catalog's own properties do, and what a REST
    catalog hands out with a table.
    """
    ours = {PY_IO_IMPL: f"{__name__}.{FolderIO.__name__}", _FOLDER: folder, _DATA: data_folder}
    catalog.properties.update(ours)

    def file_io(properties: Mapping[str, Any] = {}, location: str | None = None) -> FileIO:
        _check(folder, properties, _CODE, "names code to load")
        # a REST catalog passes a table's properties and the credentials it lends, in one
        lent = properties if isinstance(catalog, RestCatalog) else {}
        return FolderIO({**catalog.properties, **lent, **ours})

    catalog._load_file_io = file_io  # type: ignore[method-assign]
    return catalog


def check_access(table: Table) -> None:
    """Raises OutputError when properties in a table's metadata say how storage is reached."""
    _check(table.location(), table.properties, _ACCESS, "says how storage is reached")


def _check(
    folder: str, properties: Mapping[str, Any], refused: re.Pattern[str], effect: str
) -> None:
    for name in properties:
        if refused.fullmatch(name):
            raise OutputError(
                f"{shown(folder)}: the table has the property '{name}', which {effect}. Only the "
                "operator's catalog can choose that, so nothing was done with the table. Remove "
                "the property with the program that set it, or publish to another table."
            )
