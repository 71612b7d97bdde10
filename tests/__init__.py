import pytest

# Modules that assert for the tests, so that a failure shows both sides.
pytest.register_assert_rewrite(
    "tests.admin_client",
    "tests.api_client",
    "tests.api_permissions",
    "tests.orphans",
    "tests.owner_models",
    "tests.promises",
    "tests.queues",
    "tests.renamings",
    "tests.scanning",
    "tests.site_pages",
    "tests.site_settings",
    "tests.stateful",
    "tests.uploads",
)
