"""The local Cloudflare API takes what wrangler and the SDK send, and answers as the real one."""

import json
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from cloudflare import Cloudflare

from devtools.cloudflare_api import CloudflareApi
from tests.real_bucket import BUCKETS, Bucket

# What it asks is no database.
pytestmark = pytest.mark.only_on("sqlite")

HERE, NEXT_DOOR = BUCKETS[:2]
STRANGE = [
    "a b",
    "h#f",
    "q?x",
    "%41",
    "a/../b",
    "é\N{COMBINING ACUTE ACCENT}",
    "nul\0",
    "new\nline",
]


@pytest.fixture
def objects(cloudflare_api: CloudflareApi, bucket: Bucket) -> Iterator[Bucket]:
    yield bucket
    Bucket(bucket.r2, NEXT_DOOR).wipe()


def ask(
    api: CloudflareApi, method: str, path: str, body: bytes = b"", *, token: str = "", **more: str
) -> tuple[int, Any]:
    """Status and content of the answer; `path` is sent as it is."""
    parts = urlsplit(api.url)
    connection = HTTPConnection(parts.netloc)
    headers = {"Authorization": f"Bearer {token or api.token}"}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    connection.request(method, parts.path + path, body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    is_json = response.headers["Content-Type"] == "application/json"
    return response.status, json.loads(content) if is_json else content


def at(api: CloudflareApi, *names: str) -> str:
    """The path of a bucket, of its objects, of one of them."""
    return f"/accounts/{api.account_id}/r2/buckets" + "".join("/" + quote(n) for n in names)


def code(answer: tuple[int, Any]) -> tuple[int, int]:
    status, content = answer
    assert (content["success"], content["result"]) == (False, None)
    return status, content["errors"][0]["code"]


def wrangler(program: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )


def test_wrangler_deletes_the_object_that_was_meant(
    objects: Bucket, cloudflare_api: CloudflareApi, wrangler_program: Path, tmp_path: Path
) -> None:
    objects.put("h", "h#f")
    done = wrangler(
        wrangler_program, tmp_path, "r2", "object", "delete", f"{HERE}/h%23f", "--remote"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Resource location: remote" in done.stdout
    assert objects.keys() == {"h"}
    target = f"/client/v4{at(cloudflare_api, HERE, 'objects')}/h%23f"
    assert list(cloudflare_api.requests) == [("DELETE", target, 200)]


def test_a_hostile_key_makes_wrangler_empty_the_bucket(
    objects: Bucket, cloudflare_api: CloudflareApi, wrangler_program: Path, tmp_path: Path
) -> None:
    objects.put("one", "two")
    key = f"{HERE}/../objects?prefix="
    wrangler(wrangler_program, tmp_path, "r2", "object", "delete", key, "--remote")
    assert objects.keys() == set()
    assert len(cloudflare_api.list_bulk_deletes()) == 1


def test_wrangler_knows_who_it_is_and_the_buckets(
    cloudflare_api: CloudflareApi, wrangler_program: Path, tmp_path: Path
) -> None:
    who = wrangler(wrangler_program, tmp_path, "whoami", "--json")
    assert json.loads(who.stdout)["accounts"][0]["id"] == cloudflare_api.account_id
    listed = wrangler(wrangler_program, tmp_path, "r2", "bucket", "list")
    assert [line.split()[-1] for line in listed.stdout.splitlines() if "name:" in line] == BUCKETS


@pytest.mark.parametrize("key", STRANGE)
def test_the_path_is_decoded_once(objects: Bucket, cloudflare_api: CloudflareApi, key: str) -> None:
    where = at(cloudflare_api, HERE, "objects", key)
    assert ask(cloudflare_api, "PUT", where, b"content")[0] == 200
    assert objects.keys() == {key}
    assert ask(cloudflare_api, "GET", where) == (200, b"content")
    status, content = ask(cloudflare_api, "DELETE", where)
    assert (status, content["result"]) == (200, {"key": key})
    assert objects.keys() == set()


def test_the_sdk_lists_all_pages(objects: Bucket, cloudflare_api: CloudflareApi) -> None:
    keys = sorted({*STRANGE, "p/1", "p/2"}, key=str.encode)
    objects.put(*keys)
    sdk = Cloudflare(api_token=cloudflare_api.token, base_url=cloudflare_api.url)
    listing = sdk.r2.buckets.objects.list(HERE, account_id=cloudflare_api.account_id, per_page=3)
    assert {entry.key for entry in listing} == {*keys, ".storage_audit/installation.json"}
    assert len(cloudflare_api.requests) == 4
    sdk.close()


def test_a_listing_is_cut_as_it_was_asked_for(
    objects: Bucket, cloudflare_api: CloudflareApi
) -> None:
    objects.put("p/1", "p/2", "p/d/3", "z")
    where = at(cloudflare_api, HERE, "objects")

    def listed(query: str) -> list[str]:
        return [each["key"] for each in ask(cloudflare_api, "GET", where + query)[1]["result"]]

    assert listed("?prefix=p/") == ["p/1", "p/2", "p/d/3"]
    assert listed("?prefix=p/&start_after=p/1") == ["p/2", "p/d/3"]
    assert listed("?prefix=p/&delimiter=/") == ["p/1", "p/2"]
    info = ask(cloudflare_api, "GET", f"{where}?per_page=2")[1]["result_info"]
    assert info["is_truncated"] and listed(f"?per_page=3&cursor={quote(info['cursor'])}") == [
        "p/2",
        "p/d/3",
        "z",
    ]
    assert code(ask(cloudflare_api, "GET", f"{where}?per_page=1001")) == (400, 10021)


def test_a_list_of_buckets_is_cut_too(
    cloudflare_api: CloudflareApi,
    wrangler_program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And wrangler shows the first page: https://github.com/cloudflare/workers-sdk/issues/15103"""
    names = [f"bucket-{number:02}" for number in range(21)]
    monkeypatch.setattr(cloudflare_api.r2, "buckets", names)

    def listed(query: str = "") -> tuple[list[str], str]:
        answer = ask(cloudflare_api, "GET", at(cloudflare_api) + query)[1]
        return [each["name"] for each in answer["result"]["buckets"]], answer["result_info"][
            "cursor"
        ]

    first, cursor = listed()
    assert (first, listed(f"?cursor={cursor}")) == (names[:20], (names[20:], ""))
    assert listed("?per_page=21") == (names, "")
    assert code(ask(cloudflare_api, "GET", f"{at(cloudflare_api)}?per_page=0")) == (400, 10021)
    said = wrangler(wrangler_program, tmp_path, "r2", "bucket", "list").stdout
    assert [line.split()[-1] for line in said.splitlines() if "name:" in line] == first


def test_what_is_not_there_is_told_apart(objects: Bucket, cloudflare_api: CloudflareApi) -> None:
    def asked(*names: str) -> tuple[int, int]:
        return code(ask(cloudflare_api, "DELETE", at(cloudflare_api, *names)))

    assert asked(HERE, "objects", "nothing") == (404, 10007)
    assert asked("nowhere", "objects", "nothing") == (404, 10006)
    assert asked(HERE, "objects", "k" * 1025) == (400, 10020)
    assert asked(HERE, "objects") == (404, 7003)
    elsewhere = ask(cloudflare_api, "GET", at(cloudflare_api, HERE), cf_r2_jurisdiction="eu")
    assert code(elsewhere) == (404, 10006)


def test_tokens_and_accounts_are_told_apart(objects: Bucket, cloudflare_api: CloudflareApi) -> None:
    api = cloudflare_api
    objects.put("kept")
    here, kept = at(api, HERE), at(api, HERE, "objects", "kept")
    assert ask(api, "GET", here, token=api.read_only_token)[0] == 200
    assert code(ask(api, "DELETE", kept, token=api.read_only_token)) == (403, 10000)
    for method, path in (("GET", here), ("DELETE", kept)):
        assert code(ask(api, method, path, token=api.token_without_r2)) == (403, 10000)
    assert ask(api, "GET", "/accounts", token=api.token_without_r2)[0] == 200
    assert code(ask(api, "DELETE", kept, token=api.expired_token)) == (401, 10000)
    assert code(ask(api, "DELETE", kept, token="t" * 40)) == (401, 10000)
    assert code(ask(api, "DELETE", kept, token="too short")) == (400, 6003)
    assert code(ask(api, "GET", f"/accounts/{'0' * 32}/r2/buckets")) == (403, 10000)
    assert code(ask(api, "GET", "/accounts/mine/r2/buckets")) == (404, 7003)
    verify = "/user/tokens/verify"
    assert ask(api, "GET", verify, token=api.expired_token)[1]["result"]["status"] == "expired"
    assert code(ask(api, "GET", verify, token="t" * 40)) == (401, 1000)
    assert objects.keys() == {"kept"}


def test_it_goes_wrong_when_it_shall(objects: Bucket, cloudflare_api: CloudflareApi) -> None:
    api = cloudflare_api
    objects.put("locked/1")
    api.locked.append("locked/")
    assert code(ask(api, "DELETE", at(api, HERE, "objects", "locked/1"))) == (403, 10069)
    api.failures += [500, 520]
    statuses = [ask(api, "GET", at(api, HERE))[0] for _ in range(3)]
    assert statuses == [500, 520, 200]
    api.request_limit = 4
    assert code(ask(api, "GET", at(api, HERE))) == (429, 971)
    assert objects.keys() == {"locked/1"}
