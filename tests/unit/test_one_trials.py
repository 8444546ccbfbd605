"""Trials through ONE: a real one in local mode over a cache made here, and a stand-in for what a server does wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
from numpy.typing import NDArray

from core.discover import find_files
from core.errors import AccessRefused, TransientError, TrialsNotFound
from core.load import load_trials
from core.one_trials import load_one_trials
from core.schema import TRIALS_ATTRIBUTES
from core.simulation.formats import Quirks, write_session
from core.training_status import load_trials as documented_load_trials

# A cache made of files alone names no default revision; the last one, which ONE then takes, is the right one.
pytestmark = [
    pytest.mark.filterwarnings("ignore:No default revision for dataset"),
    pytest.mark.filterwarnings("ignore:Multiple revisions"),  # a table that was revised, beside a file that was not
    pytest.mark.filterwarnings("ignore:The (copy|inplace) keyword"),  # ONE-api 3.6 under pandas 3.1
]

DATE = "2025-03-03"


def some_trials(n_trials: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(n_trials)
    is_left = rng.random(n_trials) < 0.5
    contrast = rng.choice([1.0, 0.25, 0.0], n_trials)
    onset = np.arange(n_trials) * 5.0 + 1.0
    return {
        "choice": rng.choice([1, -1, 0], n_trials),
        "contrastLeft": np.where(is_left, contrast, np.nan),
        "contrastRight": np.where(is_left, np.nan, contrast),
        "feedbackType": rng.choice([1, -1], n_trials),
        "probabilityLeft": rng.choice([0.2, 0.8], n_trials),
        "response_times": onset + 0.7,
        "stimOn_times": onset,
    }


def write(root: Path, lab: str, subject: str, *, tasks: int = 1, **options: Any) -> Path:
    path = root / lab / "Subjects" / subject / DATE / "001"
    protocols = [("_iblrig_tasks_biasedChoiceWorld", some_trials(20 + nth)) for nth in range(tasks)]
    wanted = {"rig": "v8", "delay": 0, "ephys": False, **options}
    write_session(session_dir=path, tasks=protocols, start=datetime(2025, 3, 3, 9), **wanted)
    return path


# ---- a real ONE, in local mode


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sessions of two labs; not to be changed."""
    pytest.importorskip("one.api", reason="needs ONE-api")
    root = tmp_path_factory.mktemp("one")
    write(root, "alab", "A_001")
    write(root, "alab", "A_002", tasks=2, layout="npy")
    write(root, "alab", "A_003", quirks=Quirks(revisions=("2025-03-05", "2025-03-06"), leftover_npy=True))
    write(root, "blab", "B_001")
    write(root, "blab", "TWIN")
    return root


@pytest.fixture
def local_one(cache: Path, tmp_path: Path) -> tuple[Any, Path]:
    """A ONE over a copy of the cache, and the folder."""
    api, alf_cache = pytest.importorskip("one.api"), pytest.importorskip("one.alf.cache")
    root = tmp_path / "cache"
    shutil.copytree(cache, root)
    alf_cache.make_parquet_db(root, hash_ids=True)
    one = api.One(cache_dir=root, mode="local")
    assert one.mode == "local"
    return one, root


def session(root: Path, subject: str, lab: str = "alab") -> Path:
    return root / lab / "Subjects" / subject / DATE / "001"


@pytest.mark.parametrize("subject", ["A_001", "A_002", "A_003"])
def test_the_trials_are_those_of_the_folder(local_one: tuple[Any, Path], subject: str) -> None:
    one, root = local_one
    elsewhere = Path("/another/machine", *session(root, subject).parts[-5:])
    found, wanted = load_one_trials(elsewhere, one), load_trials(find_files(session(root, subject)))
    for name in TRIALS_ATTRIBUTES:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        assert getattr(found, name).dtype == np.float64


def test_one_of_two_collections(local_one: tuple[Any, Path]) -> None:
    one, root = local_one
    path = session(root, "A_002")
    assert len(load_one_trials(path, one)) == 20 + 21
    assert len(load_one_trials(path, one, ["alf/task_01"])) == 21
    with pytest.raises(TrialsNotFound, match="ONE has no trials of alf/task_02 "):
        load_one_trials(path, one, ["alf/task_01", "alf/task_02"])


def test_a_session_that_one_does_not_know(local_one: tuple[Any, Path]) -> None:
    one, root = local_one
    with pytest.raises(TrialsNotFound, match="ONE does not know the session"):
        load_one_trials(session(root, "A_009"), one)
    with pytest.raises(TrialsNotFound, match="no ONE was given"):
        load_one_trials(session(root, "A_001"), None)


def test_a_file_that_is_gone_makes_no_partial_trials(local_one: tuple[Any, Path]) -> None:
    one, root = local_one
    (session(root, "A_002") / "alf" / "task_00" / "_ibl_trials.choice.npy").unlink()
    with pytest.raises(TrialsNotFound, match="alf/task_00 in ONE: trials without choice"):
        load_one_trials(session(root, "A_002"), one)
    shutil.rmtree(session(root, "A_001") / "alf")
    with pytest.raises(TrialsNotFound, match="ONE cannot load the trials of alf/task_00: ALFObjectNotFound"):
        load_one_trials(session(root, "A_001"), one)


def test_a_mouse_of_another_lab_with_the_same_name(local_one: tuple[Any, Path]) -> None:
    one, root = local_one
    with pytest.raises(TrialsNotFound, match="of this subject, date and number in blab, not in alab"):
        load_one_trials(session(root, "B_001"), one)
    # On a lab's own server, what stands above "Subjects" is no lab.
    assert len(load_one_trials(Path("/data/Subjects/B_001", DATE, "001"), one)) == 20


def test_two_mice_of_one_name(local_one: tuple[Any, Path]) -> None:
    alf_cache = pytest.importorskip("one.alf.cache")
    one, root = local_one
    write(root, "alab", "TWIN")
    alf_cache.make_parquet_db(root, hash_ids=True)
    one.load_cache(root)
    with pytest.raises(TrialsNotFound, match="ONE cannot find the session: AssertionError"):
        load_one_trials(session(root, "TWIN"), one)


def test_through_the_documented_function(local_one: tuple[Any, Path]) -> None:
    one, root = local_one
    elsewhere = Path("/another/machine", *session(root, "A_001").parts[-5:])
    trials = documented_load_trials(str(elsewhere), one)
    assert trials is not None
    np.testing.assert_array_equal(trials["choice"], some_trials(20)["choice"])
    assert documented_load_trials(elsewhere, one, force=False) is None


# ---- a stand-in, for what cannot be had of a real one without a server


class StandIn:
    """Has one session, and answers each of the three calls as it is told."""

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self.asked: list[str] = []
        self._answers = answers

    def _answer(self, name: str, usual: Any) -> Any:
        self.asked.append(name)
        return self._answers[name]() if name in self._answers else usual

    def path2eid(self, path: Path) -> Any:
        return self._answer("path2eid", "an-eid")

    def list_datasets(self, eid: str) -> Any:
        assert eid == "an-eid"
        datasets = ["alf/#2025-03-04#/_ibl_trials.goCueTrigger_times.npy", "alf/_ibl_trials.table.pqt"]
        return self._answer("list_datasets", np.array(datasets))

    def load_object(self, eid: str, name: str, collection: str, **_: Any) -> Any:
        assert (eid, name, collection) == ("an-eid", "trials", "alf")
        return self._answer("load_object", some_trials(5))


def raising(error: Exception) -> Callable[..., Any]:
    def answer() -> None:
        raise error

    return answer


def without(name: str) -> Callable[..., Any]:
    return lambda: {key: values for key, values in some_trials(5).items() if key != name}


PATH = Path("/data/alab/Subjects/A_001", DATE, "001")
CALLS = ("path2eid", "list_datasets", "load_object")


def test_three_calls_load_a_session() -> None:
    one = StandIn()
    assert len(load_one_trials(PATH, one)) == 5
    assert one.asked == list(CALLS)


@pytest.mark.parametrize("missing", TRIALS_ATTRIBUTES)
def test_a_partial_object_is_not_accepted(missing: str) -> None:
    with pytest.raises(TrialsNotFound, match=f"alf in ONE: trials without {missing}"):
        load_one_trials(PATH, StandIn(load_object=without(missing)))


def test_arrays_of_unequal_length_are_not_accepted() -> None:
    with pytest.raises(TrialsNotFound, match="unequal length"):
        load_one_trials(PATH, StandIn(load_object=lambda: {**some_trials(5), "choice": np.ones(4)}))


def test_nothing_is_asked_of_a_session_without_trials() -> None:
    one = StandIn(list_datasets=lambda: np.array(["alf/_ibl_trials.table.pqt"]))
    with pytest.raises(TrialsNotFound, match="ONE has no trials of the session"):
        load_one_trials(PATH, one)
    assert one.asked == ["path2eid", "list_datasets"]
    one = StandIn(path2eid=lambda: None)
    with pytest.raises(TrialsNotFound, match="does not know"):
        load_one_trials(PATH, one)
    assert one.asked == ["path2eid"]


class RequestsError(OSError):
    """As `requests` raises it, with the status in the response."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} from the server\nand a page of HTML")
        self.response = SimpleNamespace(status_code=status)


def urllib_error(status: int) -> HTTPError:
    return HTTPError("http://data", status, "said the server", None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("fault", "told_as"),
    [
        (ConnectionError("no route"), TransientError),
        (TimeoutError("slow"), TransientError),
        (RequestsError(503), TransientError),
        (urllib_error(500), TransientError),
        (RequestsError(400), AccessRefused),
        (RequestsError(403), AccessRefused),
        (RequestsError(404), TrialsNotFound),
        (urllib_error(404), TrialsNotFound),
        (FileNotFoundError("gone"), TrialsNotFound),
        (KeyError("id"), TrialsNotFound),
        (AssertionError(), TrialsNotFound),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)[:30]),
)
def test_faults_are_told_apart_in_one_line(call: str, fault: Exception, told_as: type[Exception]) -> None:
    with pytest.raises(told_as, match=f"^ONE cannot .*: {type(fault).__name__}") as error:
        load_one_trials(PATH, StandIn(**{call: raising(fault)}))
    assert type(error.value) is told_as
    assert "\n" not in str(error.value)


def test_what_ends_a_task_is_not_taken_for_a_fault() -> None:
    class TimeLimit(Exception):
        pass

    with pytest.raises(TimeLimit):
        load_one_trials(PATH, StandIn(load_object=raising(TimeLimit())))


def test_a_server_that_is_down_is_named_when_all_is_exhausted() -> None:
    one = StandIn(path2eid=raising(ConnectionError("no route")))
    with pytest.raises(TrialsNotFound, match="ONE: ONE cannot find the session: ConnectionError: no route; raw files"):
        documented_load_trials(PATH, one)
