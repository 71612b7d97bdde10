"""Answers of a store in trouble, and rules that give them."""

from devtools.http_reply import Reply
from tests.faults.kinds import error_xml
from tests.faults.matching import is_uploads_listing, rule_for
from tests.faults.proxy import Forward, Request, Rule

UPLOADS = """<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>
<EncodingType>url</EncodingType>{}
</ListMultipartUploadsResult>"""
UPLOAD = """<Upload><Key>{}</Key><UploadId>u1</UploadId>
<Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload>"""
BUSY = Reply(503, error_xml("SlowDown"))
BROKEN = Reply(500, error_xml("InternalError"))


def answer_uploads(*keys: str) -> Rule:
    def rule(request: Request, forward: Forward) -> Reply:
        under = [key for key in keys if key.startswith(request.query["prefix"])]
        return Reply(200, UPLOADS.format("".join(map(UPLOAD.format, under))).encode())

    return rule_for(is_uploads_listing, rule)
