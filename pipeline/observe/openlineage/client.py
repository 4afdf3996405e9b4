"""The client of openlineage-python, as the environment configures it, and nothing else does.

Imports the package, so it is imported only where events are asked for. The client by itself also
reads `openlineage.yml` of the working folder, which can name code to load and variables to send,
and sends the address of the git repository there, which can hold a password: neither happens here.
"""

from __future__ import annotations

import os

from openlineage.client import OpenLineageClient


class EnvironmentClient(OpenLineageClient):
    """A client that takes no file of the working folder: only OPENLINEAGE_CONFIG, or the one in
    the home of the user."""

    @staticmethod
    def _find_yaml_config_path() -> str | None:
        home = os.path.join(os.path.expanduser("~"), ".openlineage", "openlineage.yml")
        paths = (os.environ.get("OPENLINEAGE_CONFIG"), home)
        return next((path for path in paths if path and os.path.isfile(path)), None)


def client_of_environment() -> OpenLineageClient:
    """Raises ImportError without the extra, and what the client raises for a bad setting."""
    client = EnvironmentClient()
    location = client.config.facets.source_code_location
    if location.repo_url is None:
        location.disabled = True
    return client
