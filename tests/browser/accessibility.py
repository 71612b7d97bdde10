"""What axe finds on a page."""

from urllib.parse import urlsplit

from django.urls import resolve
from playwright.sync_api import Page

from devtools.demo.site import ROOT

AXE = (ROOT / "devtools" / "node_modules" / "axe-core" / "axe.min.js").read_text()
# What WCAG 2.2 asks for at level AA; https://dequeuniversity.com/rules/axe/
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
OURS = ("admin:index", "admin:app_list", "admin:storage_audit", "admin:login")
AXE_SCRIPT = """async (tags) => {
  const { violations } = await axe.run({ runOnly: { type: "tag", values: tags } });
  return violations.flatMap(({ id, help, nodes }) =>
    nodes.map(({ html }) => `${id} (${help}): ${html.slice(0, 300)}`));
}"""


def violations(page: Page) -> list[str]:
    """On pages of ours: Django's own for users and django-q2's are not for us to mend."""
    if not resolve(urlsplit(page.url).path).view_name.startswith(OURS):
        return []
    page.evaluate(AXE)
    return [f"{page.url}: {text}" for text in page.evaluate(AXE_SCRIPT, RULES)]
