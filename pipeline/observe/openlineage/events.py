"""Facts of a run as OpenLineage events. Imports openlineage-python; sends nothing."""

from __future__ import annotations

import datetime
from typing import Any

from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    error_message_run,
    job_type_job,
    nominal_time_run,
    parent_run,
    processing_engine_run,
    source_code_job,
)

from pipeline.job.resolve import Job as ResolvedJob
from pipeline.observe.openlineage.datasets import input_dataset, output_dataset
from pipeline.observe.openlineage.environment import job_namespace, parent, root_parent
from pipeline.observe.openlineage.naming import by_place, input_places
from pipeline.observe.openlineage.own_facets import ModelJobFacet, RunDetailsRunFacet
from pipeline.observe.openlineage.run_facts import RunFacts
from pipeline.storage.addresses import shown

MAX_MESSAGE = 2000


def event(
    state: str, facts: RunFacts, run_id: str, problem: tuple[str, str] | None = None
) -> RunEvent:
    """One event. state: a name of OpenLineage's `RunState`. run_id: a UUID, the same for all events
    of a run. problem: the class and the words of the error that ended it."""
    producer = f"urn:corpus-embed:{facts.job.release}"
    places = input_places(facts.job.spec.input.uri)
    held = by_place(places, facts.shards or ())
    run = Run(runId=run_id, facets=_run_facets(facts, problem, producer))
    return RunEvent(
        eventTime=datetime.datetime.now(datetime.UTC).isoformat(),
        eventType=RunState[state],
        producer=producer,
        run=run,
        job=Job(
            namespace=job_namespace(),
            name=facts.job.spec.name,
            facets=_job_facets(facts.job, producer),
        ),
        inputs=[input_dataset(facts, place, held[place], producer) for place in places],
        outputs=[output_dataset(facts, places, producer)],
    )


def _run_facets(facts: RunFacts, problem: tuple[str, str] | None, producer: str) -> dict[str, Any]:
    facets: dict[str, Any] = {
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
            version=facts.job.release, name="corpus-embed", producer=producer
        ),
        "corpusEmbed_run": RunDetailsRunFacet(
            runId=facts.run_id,
            fingerprint=facts.job.fingerprint,
            release=facts.job.release,
            device=facts.job.engine.device,
            snapshot=facts.snapshot.number if facts.snapshot else None,
            embedded=facts.embedded,
            elapsedSeconds=facts.elapsed_s,
            producer=producer,
        ),
    }
    if facts.nominal_time:
        facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(
            nominalStartTime=facts.nominal_time.isoformat(), producer=producer
        )
    if parent_facet := _parent(producer):
        facets["parent"] = parent_facet
    if problem:
        kind, words = problem
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(
            message=f"{kind}: {words}"[:MAX_MESSAGE],
            programmingLanguage="Python",
            producer=producer,
        )
    return facets


def _parent(producer: str) -> parent_run.ParentRunFacet | None:
    """Raises ValueError for a variable of another form."""
    above, root = parent(), root_parent()
    if above is None:
        return None
    return parent_run.ParentRunFacet(
        run=parent_run.Run(runId=above.run_id),
        job=parent_run.Job(namespace=above.namespace, name=above.name),
        root=root
        and parent_run.Root(
            run=parent_run.RootRun(runId=root.run_id),
            job=parent_run.RootJob(namespace=root.namespace, name=root.name),
        ),
        producer=producer,
    )


def _job_facets(job: ResolvedJob, producer: str) -> dict[str, Any]:
    spec, engine = job.spec, job.engine
    return {
        "jobType": job_type_job.JobTypeJobFacet(
            processingType="BATCH", integration="CORPUS_EMBED", jobType="JOB", producer=producer
        ),
        "sourceCode": source_code_job.SourceCodeJobFacet(
            language="YAML", sourceCode=spec.to_yaml(), producer=producer
        ),
        "corpusEmbed_model": ModelJobFacet(
            name=shown(spec.model.path),
            revision=spec.model.revision,
            license=job.model_license,
            pooling=engine.pooling,
            normalize=engine.normalize,
            dtype=engine.dtype,
            maxTokens=job.max_tokens,
            prompt=job.prompt,
            longDocuments=spec.prepare.long_documents,
            producer=producer,
        ),
    }
