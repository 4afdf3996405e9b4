"""Where the command is run makes no difference to what it does: foreign modules in the working
folder, a home that cannot be written, another locale, a long name of the temporary folder.

Oracle: the rows of the output.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.output import dataset
from tests import ROOT
from tests.support.outputs import DOCUMENTS, make_spec, write_shard

pytestmark = [pytest.mark.ray]

# what pip installs as `corpus-embed`: its folder, and not the working folder, is on sys.path
SCRIPT = f"""import sys
sys.path.insert(1, {str(ROOT)!r})
from pipeline.cli.main import main
main()
"""


def test_foreign_modules_an_unwritable_home_and_odd_folders_and_locales_change_nothing(
    tmp_path: Path, bert_mean_dir: Path
) -> None:
    write_shard(tmp_path / "in/a.jsonl", DOCUMENTS)
    spec = make_spec(str(tmp_path / "in"), str(tmp_path / "out"), bert_mean_dir)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/corpus-embed").write_text(SCRIPT)
    folder = tmp_path / "working folder"
    folder.mkdir()
    for name in ("pipeline", "types", "json", "email", "ray", "numpy"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name}.py was imported')\n")
    temporary = tmp_path / f"temporary folder {'x' * 60}"
    temporary.mkdir()
    hidden = ("RAY_ADDRESS", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "bin/corpus-embed"), "run", str(tmp_path / "job.yaml")],
        cwd=folder,
        env={
            **environment,
            "HOME": "/proc/1/nohome",  # can be made by nobody
            "TMPDIR": str(temporary),  # the names of sockets below it would be too long
            "LC_ALL": "tr_TR.UTF-8",
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = dataset.open_dataset(str(tmp_path / "out")).to_table()
    assert sorted(table["doc_id"].to_pylist()) == sorted(str(doc["id"]) for doc in DOCUMENTS)
