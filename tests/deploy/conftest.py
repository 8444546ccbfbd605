from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.compose import EXAMPLE, Deployment, dotenv

REDIS_PASSWORD = "redis-password-1b7e"
FLOWER_PASSWORD = "flower-password-90ac"
S3_SECRET = "s3-secret-44d2"
SECRETS = (REDIS_PASSWORD, FLOWER_PASSWORD, S3_SECRET)


def filled(mice: Path, **more: str) -> dict[str, str]:
    """What .env.example becomes in who tries it out: what must be set is set, the rest stands as it is."""
    return {
        **dotenv(EXAMPLE),
        "SESSION_TREE": str(mice),
        "TRAINING_STATUS_STORE": "s3://training/tables",
        "TRAINING_STATUS_S3_ENDPOINT": "http://s3:8333",
        "AWS_ACCESS_KEY_ID": "try-out",
        "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "REDIS_PASSWORD": REDIS_PASSWORD,
        "TRAINING_STATUS_FLOWER_PASSWORD": FLOWER_PASSWORD,
        **more,
    }


@pytest.fixture(scope="module")
def deployment(mice: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Every service of the compose file, running."""
    with Deployment(tmp_path_factory.mktemp("compose"), filled(mice), profiles=("try",)) as made:
        made.start("worker", "beat", "flower")
        yield made
