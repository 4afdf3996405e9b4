"""Submit the refresh to a Ray cluster every night from Airflow 3, and follow it. Copy this file
into the DAGs folder and edit JOB.

The nominal time is the end of the data interval. `corpus-embed submit` derives the submission id
from it, so a task that is retried or cleared follows or repeats the refresh of its own night. The
Airflow worker needs this package, and RAY_API_SERVER_ADDRESS and RAY_AUTH_TOKEN in its environment,
from a secret backend.
"""

import datetime

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

JOB = "/opt/corpus-embed/jobs/sup-simcse-ja-large.yaml"

with DAG(
    "corpus_embed",
    schedule="0 2 * * *",
    start_date=datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": datetime.timedelta(minutes=10)},
    tags=["embeddings"],
) as dag:
    refresh = BashOperator(
        task_id="refresh",
        bash_command=f"corpus-embed submit {JOB} --nominal-time '{{{{ data_interval_end | ts }}}}'",
        append_env=True,
        skip_on_exit_code=6,  # another refresh of the same output holds the lease
        execution_timeout=datetime.timedelta(days=1),
    )
