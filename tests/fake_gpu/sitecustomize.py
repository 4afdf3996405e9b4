"""Stands in for the device of a GPU node that has none: an engine asked for on "cuda" computes on the CPU.

Python imports `sitecustomize` at its start wherever this folder is on PYTHONPATH: in raylets started by the cluster tests
and so in their workers. Everything else about a GPU job, above all where its actors are placed, is as in production.
"""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType

MODULE = "pipeline.embed.engine"


class _OnCpu(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        self.found = importlib.machinery.PathFinder.find_spec(name, path)
        return importlib.machinery.ModuleSpec(name, self, origin=self.found.origin)

    def exec_module(self, module: ModuleType) -> None:
        self.found.loader.exec_module(module)
        load = module.load_engine
        module.load_engine = lambda *args, **options: load(*args, **{**options, "device": "cpu"})


sys.meta_path.insert(0, _OnCpu())
