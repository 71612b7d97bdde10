"""Who needs a proof takes it along, and can tell later whether anybody altered it."""

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.admin_client import admin_url as path
from tests.browser.staff import find_row, log_in_as_superuser
from tests.promises import clean_up_project
from tests.real_bucket import Bucket
from tests.run_command import run_command


def test_certificate_is_read_taken_along_and_held_to_what_it_said(
    page: Page, bucket: Bucket, tmp_path: Path
) -> None:
    key = bucket.upload("proj_1")
    cleanup = clean_up_project("proj_1")
    log_in_as_superuser(page)
    page.goto(path("cleanup", "change", cleanup.pk))
    page.get_by_role("link", name="Deletion certificate").click()
    expect(page.get_by_role("heading", name="Deletion certificate", exact=True)).to_be_visible()
    expect(find_row(page, key)).to_contain_text("deleted")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as JSON").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    out, err, code = run_command("verify_certificate", str(file))
    assert code == 0, out + err
    file.write_text(file.read_text().replace("scenes/s1", "scenes/s2", 1))
    out, err, code = run_command("verify_certificate", str(file))
    assert code == 1, out + err
    assert "Changed: The digest does not match the content" in out
