"""Heavy work on the files of a log, as plain data: done in another process, a thread, or in line.

A job says everything that is needed to do it; what it leaves behind is in its result and in files
that nobody believes in until the log's owner publishes them. Doing one again is always right.
"""

from collections.abc import Callable
from typing import Any

from tailrace.storage.disk import Disk
from tailrace.storage.erasing import Erased, EraseJob, erase
from tailrace.storage.survey import (
    Compacted,
    CompactJob,
    Survey,
    SurveyJob,
    run_compaction,
    run_survey,
)

Job = SurveyJob | CompactJob | EraseJob
Result = Survey | Compacted | Erased
Pace = Callable[[int], None]  # told of every stretch of bytes read or written; may wait, and raise

_RUNNERS: dict[type[Any], Callable[[Disk, Any, Pace], Result]] = {
    SurveyJob: run_survey,
    CompactJob: run_compaction,
    EraseJob: erase,
}
RESULTS: dict[type[Any], type[Any]] = {
    SurveyJob: Survey,
    CompactJob: Compacted,
    EraseJob: Erased,
}
JOBS: dict[str, type[Any]] = {kind.__name__: kind for kind in _RUNNERS}


def run_job(disk: Disk, job: Job, pace: Pace) -> Result:
    """Do a job. Raises ``RewriteRefused`` for damage and ``OSError``; nothing is left then."""
    return _RUNNERS[type(job)](disk, job, pace)
