"""Stands in for the device of a GPU node that has none: an engine asked for on "cuda" computes on
the CPU.

Python imports `sitecustomize` at its start wherever this folder is on PYTHONPATH: in raylets
started by the cluster tests and so in their workers. Everything else about a GPU job, above all
where its actors are placed, is as in production. Every call of an engine takes FAKE_GPU_SECONDS
more and leaves a line in a file of its process under FAKE_GPU_CALLS.
"""

import dataclasses
import importlib.abc
import importlib.machinery
import json
import os
import sys
import threading
import time
from pathlib import Path

MODULE = "pipeline.embed.loading"

device = threading.Lock()
"""Parts may overlap, computations may not."""


class OnCpu(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        self.found = importlib.machinery.PathFinder.find_spec(name, path)
        return importlib.machinery.ModuleSpec(name, self, origin=self.found.origin)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        # The nodes of a test share one machine and one session folder, and each of them unpacks the
        # job's working directory anew into the same place: the folder a worker stands in may be
        # gone, which torch's import minds.
        os.chdir("/")
        self.found.loader.exec_module(module)
        load = module.load_engine
        module.load_engine = lambda model, options, *rest, **choices: noted(
            load(model, dataclasses.replace(options, device="cpu"), *rest, **choices)
        )


def noted(engine):
    import ray

    embed, folder = engine.embed, Path(os.environ["FAKE_GPU_CALLS"])
    node = ray.get_runtime_context().get_node_id()

    def call(*args, **options):
        with device:
            begin = time.time()
            vectors = embed(*args, **options)
            time.sleep(float(os.environ.get("FAKE_GPU_SECONDS", "0")))
        with (folder / f"calls-{os.getpid()}").open("a") as file:
            file.write(
                json.dumps(
                    {"node": node, "process": os.getpid(), "begin": begin, "end": time.time()}
                )
                + "\n"
            )
        return vectors

    engine.embed = call
    return engine


if "FAKE_GPU_CALLS" in os.environ:
    sys.meta_path.insert(0, OnCpu())
