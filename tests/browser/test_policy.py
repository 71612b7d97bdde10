"""What else the browser is told to refuse."""

import django
from playwright.sync_api import Page

INJECT = """() => {
  const script = document.createElement("script");
  script.textContent = "window.ran = true";
  document.head.append(script);
  return window.ran;
}"""


def test_a_script_that_gets_into_a_page_does_not_run(page: Page, complaints: list[str]) -> None:
    answer = page.goto("/admin/login/")
    assert answer
    if django.VERSION < (6,):
        # It has no such policy yet: then it is for the proxy in front to send one.
        assert "content-security-policy" not in answer.headers
        return
    directives = answer.headers["content-security-policy"].split(";")
    policy = {name: set(sources) for name, *sources in map(str.split, directives)}
    assert "default-src" in policy
    assert set.union(*policy.values()) <= {"'self'", "'none'"}
    assert page.evaluate(INJECT) is None
    assert "violates the following Content Security Policy directive" in complaints.pop()
