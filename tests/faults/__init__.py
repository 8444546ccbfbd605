import pytest

# Before it is imported: so that a failing assertion in it shows its values.
pytest.register_assert_rewrite("tests.faults.services")
