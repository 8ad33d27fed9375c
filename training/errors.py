"""This room's leaves of the error tree (root: adapters/errors.py).

ServiceError
├── InvalidRequest
│   ├── DataRejected      400 invalid_file: the data cannot be trained on; the message names the first rows
│   │   └── TooFewExamples  400 invalid_n_examples
│   ├── RecipeInvalid     400 invalid_recipe: a setting that does not exist or cannot be; `param` names it
│   └── NotServable       400 not_servable: it could be trained, and no engine here could serve the result
├── NotFound ── JobNotFound, FileMissing
├── Unavailable ── GatewayAway 503: the gateway that a worker needs does not answer now
├── FeedbackFull      429 insufficient_quota: as much feedback of one key as is kept
└── TrainingFailed        500 training_failed: the trainer ended badly; `problem` says how, and what may help
"""

from __future__ import annotations

from adapters.errors import InvalidRequest, NotFound, ServiceError, Unavailable
from training.types import Problem


class DataRejected(InvalidRequest):
    code = "invalid_file"


class TooFewExamples(DataRejected):
    code = "invalid_n_examples"


class RecipeInvalid(InvalidRequest):
    code = "invalid_recipe"


class NotServable(InvalidRequest):
    code = "not_servable"


class JobNotFound(NotFound):
    code = "job_not_found"


class FileMissing(NotFound):
    code = "file_not_found"


class GatewayAway(Unavailable):
    code = "gateway_away"


class FeedbackFull(ServiceError):
    status, type, code = 429, "requests", "insufficient_quota"


class TrainingFailed(ServiceError):
    code = "training_failed"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message, param=problem.param)
        self.problem = problem
