"""Fields on the workers of a Dask cluster (extra ``hematokit[distributed]``).

Workers write a field's files themselves and send back a few numbers, so the scheduler moves no pixels. They have to
see the same files under the same paths, and to have hematokit and the plugins installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from hematokit.errors import FieldError
from hematokit.results.fields import FieldOutcome, FieldTask

__all__ = ["run_on_cluster"]

_IN_FLIGHT_PER_THREAD = 3
"""Tasks given out ahead: enough to keep workers busy, few enough that stopping is quick."""


def run_on_cluster(
    work: Callable[[FieldTask], FieldOutcome], tasks: Sequence[FieldTask], address: str
) -> Iterator[FieldOutcome]:
    """Process fields on a Dask cluster.

    Parameters
    ----------
    work : callable
        Works on one field; sent to the workers, so it can be pickled.
    tasks : sequence of FieldTask
    address : str
        The scheduler's, ``"tcp://HOST:8786"``.

    Yields
    ------
    FieldOutcome
        As they are done, in no order. The fields of a worker that is killed go to another; a field that has killed
        several is a failed one.

    Raises
    ------
    FieldError
        If dask.distributed is not installed, or the scheduler cannot be reached or has no workers.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise FieldError(
            "--scheduler needs dask.distributed; install it with pip install 'hematokit[distributed]'"
        ) from error
    if not tasks:
        return
    try:
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise FieldError(
            f"cannot reach a Dask scheduler at {address} ({said[:200]}); start one with 'dask scheduler' and workers "
            "with 'dask worker', or leave --scheduler out"
        ) from error
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise FieldError(f"the Dask scheduler at {address} has no workers; start some with 'dask worker {address}'")
        waiting = iter(tasks)
        given = {}
        running = as_completed(loop=client.loop)

        def give_out(count: int) -> None:
            for _, task in zip(range(count), waiting, strict=False):
                future = client.submit(work, task, pure=False)
                given[future.key] = task
                running.add(future)

        try:
            give_out(threads * _IN_FLIGHT_PER_THREAD)
            for future in running:
                task = given.pop(future.key)
                try:
                    outcome = future.result()
                except KilledWorker:
                    outcome = FieldOutcome(
                        task.field_id,
                        task.source,
                        "failed",
                        "workers died while they worked on this field, of too little memory perhaps; give it alone",
                        smear_id=task.smear_id,
                        patient_id=task.patient_id,
                    )
                give_out(1)
                yield outcome
        finally:
            client.cancel(list(running.futures), force=True)
