import pytest

# Modules that assert for the tests, so that a failure shows both sides.
pytest.register_assert_rewrite(
    "tests.admin_client",
    "tests.api_client",
    "tests.api.permissions",
    "tests.findings.orphans",
    "tests.owner_models",
    "tests.promises",
    "tests.queue.clusters",
    "tests.findings.renamings",
    "tests.scan.listing_in_memory",
    "tests.site.pages",
    "tests.site_settings",
    "tests.stateful",
    "tests.uploads",
)
