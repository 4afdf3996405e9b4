"""An error in a worker arrives as it was raised: its class and its sentence, without Ray's trace.

Oracle: what the worker raised.
"""

from __future__ import annotations

import os

import pytest
import ray

from pipeline.driver.cluster.own_errors import own_error
from pipeline.errors import (
    CorpusEmbedError,
    InputError,
    ModelError,
    ShardDamaged,
    StorageError,
    WorkerError,
)

pytestmark = [pytest.mark.usefixtures("ray_local")]

SENTENCE = "s3://lake/a.parquet: column 'content' not found; columns are body, url. Set it."


def error_of(raised: Exception) -> BaseException:
    """What `run` makes of an exception in a task."""

    def task() -> None:
        raise raised

    with pytest.raises(Exception) as caught:
        ray.get(ray.remote(task).remote())
    return own_error(caught.value)


@pytest.mark.parametrize("kind", [InputError, StorageError, ModelError])
def test_an_error_of_a_task_has_its_own_class_and_its_own_sentence(
    kind: type[CorpusEmbedError],
) -> None:
    error = error_of(kind(SENTENCE))
    assert (type(error), str(error)) == (kind, SENTENCE)


def test_what_an_error_carries_arrives_with_it() -> None:
    error = error_of(ShardDamaged(SENTENCE, 17))
    assert isinstance(error, ShardDamaged)
    assert (type(error), str(error), error.position) == (ShardDamaged, SENTENCE, 17)


def test_an_error_of_a_library_has_its_own_class_too() -> None:
    error = error_of(KeyError("size"))
    assert (type(error), str(error)) == (KeyError, "'size'")


def test_an_error_that_is_the_cause_of_another_one_is_preferred() -> None:
    cause = InputError(SENTENCE)
    outer = RuntimeError("the executor ended")
    outer.__cause__ = cause
    assert own_error(outer) is cause


def test_an_error_in_the_constructor_of_an_actor_is_read_from_its_text() -> None:
    class Stage:
        def __init__(self) -> None:
            raise ModelError(SENTENCE)

        def work(self) -> None:
            return

    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.get(ray.remote(Stage).remote().work.remote())
    error = own_error(caught.value)
    assert (type(error), str(error)) == (ModelError, SENTENCE)


def test_what_only_ray_says_is_a_worker_error_of_one_line() -> None:
    class Stage:
        def work(self) -> None:
            os._exit(3)

    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.get(ray.remote(Stage).remote().work.remote())
    error = own_error(caught.value)
    assert type(error) is WorkerError
    assert str(error).startswith("Ray ended the run: ActorDiedError: The actor died")
    assert len(str(error).splitlines()) == 1
