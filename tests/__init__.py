import pytest

pytest.register_assert_rewrite("tests.promises", "tests.stateful")
