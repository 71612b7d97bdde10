"""Fills a database as it may be after years: millions of rows, made by the database itself.

A tenth of the objects belong to one project, the others to the rest; of each kind of row there are
common ones, rare ones, and some of another bucket.
"""

from typing import Any, NamedTuple, Protocol

BIG_PROJECT = "proj_000000"
# The deletion that has items: md5('o6').
DELETION_ID = "39d987fd-8304-752b-bbec-0bd1afd4b7f3"


class Cursor(Protocol):
    """Of psycopg2, or of Django."""

    def execute(self, query: str, vars: dict[str, Any] | None = None, /) -> object: ...


class Size(NamedTuple):
    objects: int
    many: int
    """Objects of the big project, cleanups, findings, and items."""
    projects: int
    known: int
    scans: int

    @classmethod
    def of(cls, objects: int) -> "Size":
        return cls(objects, objects // 10, objects // 50, objects // 33, objects // 1000)


PROJECT_SQL = """
INSERT INTO storage_audit_project (id, title, created_at)
SELECT 'proj_' || lpad(n::text, 6, '0'),
  (ARRAY['Summer', 'Teaser', 'Interview', 'Trailer', 'Recap'])[1 + n %% 5] || ' ' || md5(n::text),
  timestamptz '2026-01-01' - n * interval '5 minutes'
FROM generate_series(0, %(projects)s - 1) AS n
"""

KNOWN_SQL = """
INSERT INTO storage_audit_knownproject (id, first_seen_at, evidence, deleted_at, kept_for)
SELECT 'proj_' || lpad(n::text, 6, '0'), timestamptz '2026-01-01' - n * interval '5 minutes',
  CASE WHEN n < %(projects)s THEN 'saved' WHEN n %% 10000 = 9999 THEN 'declared' ELSE 'deleted' END,
  CASE WHEN n < %(projects)s THEN NULL ELSE timestamptz '2026-01-01' END, ''
FROM generate_series(0, %(known)s - 1) AS n
"""

# In the order of the keys of each key format, as a backfill writes them.
OBJECT_SQL = """
INSERT INTO storage_audit_r2object (bucket, key, project_id, scene_id, file_type, key_format, size,
  etag, last_modified, source, state, created_at, updated_at)
SELECT CASE WHEN n %% 1000 = 999 THEN 'old-media' ELSE 'autoshorts-media' END,
  CASE n %% 10
    WHEN 8 THEN 'audio/' || project || '/s' || scene || '/' || md5(n::text) || '.mp3'
    WHEN 9 THEN project || '_s' || n || '_media.mp4'
    ELSE 'projects/' || project || '/scenes/s' || scene || '/media/' || md5(n::text) || '.mp4' END,
  project, 's' || scene, 'mp4', 'hierarchical', 1000000 + n * 7919 %% 8999993, md5(n::text),
  timestamptz '2026-01-01' - n * interval '1 second', 'backfill',
  CASE n %% 20000 WHEN 7 THEN 'uploading' WHEN 11 THEN 'upload_failed' WHEN 13 THEN 'deleting'
    ELSE 'stored' END,
  now(), now()
FROM (
  SELECT n, n %% 10 AS scene, 'proj_' || lpad((CASE WHEN n < %(many)s THEN 0
    WHEN n < 2 * %(many)s THEN 1 + (n - %(many)s) * 50 / %(many)s
    ELSE 51 + n / 45 %% (%(projects)s - 51) END)::text, 6, '0') AS project
  FROM generate_series(0::bigint, %(objects)s - 1) AS n
) AS made
"""

SCAN_SQL = """
INSERT INTO storage_audit_bucketscan (id, bucket, purpose, prefix, dry_run, accept_fewer,
  requested_by, status, message, in_key_order, requests, listed, listed_bytes, added, updated,
  unchanged, orphaned, missing, untracked, changed, ambiguous, unrecognised, misnamed, unstorable,
  unfinished, marker, started_at, finished_at)
SELECT md5(n::text)::uuid, 'autoshorts-media',
  CASE n %% 5000 WHEN 1 THEN 'backfill' ELSE 'reconcile' END, '', n %% 100 = 3, false, '',
  CASE n %% 5000 WHEN 2 THEN 'failed' ELSE 'complete' END, '', true, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0,
  0, 0, 0, 0, 0, '', timestamptz '2026-01-01' - n * interval '1 hour', timestamptz '2026-01-01'
FROM generate_series(0, %(scans)s - 1) AS n
"""

# Of ten cleanups two are dry runs, one a verification, three follow-up checks, four deletions.
CLEANUP_SQL = """
INSERT INTO storage_audit_cleanup (id, kind, project_id, bucket, trigger, requested_by,
  origin, discovery, strategy, step, position, vanished_ids, batch_state, found, found_bytes,
  deleted, deleted_bytes, already_gone, already_gone_bytes, kept, kept_bytes, failed, failed_bytes,
  plan_digest, listed_prefixes, status, decided_by, decision_reason, limits_waived_by, dry_run,
  message, attempts, takeovers,
  created_at, archive, archive_digest, plan_summary, progress, parent_id)
SELECT md5('o' || n)::uuid,
  CASE WHEN kind = 'project' AND n %% 5000 = 17 THEN 'objects' ELSE kind END,
  'proj_' || lpad((n %% %(known)s)::text, 6, '0'), 'autoshorts-media', trigger, 'anna',
  'web, 127.0.0.1', 'both', 'batch', 'verify', '{}', '[]', '{}',
  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '', '[]',
  CASE WHEN trigger = 'dry_run' THEN 'planned' WHEN n %% 10000 = 16 THEN 'failed'
    WHEN n %% 10000 = 26 THEN 'blocked' ELSE 'clean' END,
  '', '', '', trigger = 'dry_run', '', 1, 0,
  timestamptz '2026-01-01' - n * interval '1 minute', '', '',
  '{}', '{}', NULL
FROM (SELECT n, CASE WHEN n %% 10 IN (2, 3, 4, 5) THEN 'verify' ELSE 'project' END AS kind,
  CASE n %% 10 WHEN 0 THEN 'dry_run' WHEN 1 THEN 'dry_run' WHEN 2 THEN 'verify' WHEN 3 THEN
  'follow_up' WHEN 4 THEN 'follow_up' WHEN 5 THEN 'follow_up' ELSE
  CASE WHEN n %% 10000 = 36 THEN 'forced' ELSE 'deleted' END END AS trigger
  FROM generate_series(0, %(many)s - 1) AS n) AS made
"""

FINDING_SQL = """
INSERT INTO storage_audit_finding (bucket, key, escaped, kind, upload_id, project_id, size, etag,
  last_modified, evidence, state, note, decided_by, first_seen_at, last_seen_at, first_scan_id,
  last_scan_id)
SELECT CASE WHEN n %% 1000 = 999 THEN 'old-media' ELSE 'autoshorts-media' END,
  'projects/proj_' || lpad((n / 10)::text, 6, '0') || '/scenes/s1/media/' || md5(n::text) || '.mp4',
  false,
  CASE WHEN n %% 10000 = 3 THEN 'misnamed' WHEN n %% 10 = 1 THEN 'missing' ELSE 'orphaned' END,
  '', 'proj_' || lpad((n / 10)::text, 6, '0'), 1000000, md5(n::text),
  timestamptz '2025-01-01', 'no project of this id is known',
  CASE WHEN n %% 10000 = 5 THEN 'ignored' WHEN n %% 10 < 3 THEN 'open' ELSE 'resolved' END,
  '', '', timestamptz '2025-06-01', timestamptz '2025-07-01', md5('0')::uuid, md5('0')::uuid
FROM generate_series(0, %(many)s - 1) AS n
"""

# All of one deletion.
ITEM_SQL = """
INSERT INTO storage_audit_cleanupitem (cleanup_id, key, identity, escaped, range_index, project_id,
  size, etag, last_modified, found_in, owner_evidence, outcome, reason, store_answer, attempts,
  calls, last_seen_at, changed_at)
SELECT %(deletion)s::uuid, key, key, false, n / 1000, 'proj_000006', 1000000, md5(n::text),
  timestamptz '2025-01-01', 'both', 'hierarchical: proj_000006',
  CASE WHEN n %% 100 = 7 THEN 'kept' ELSE 'deleted' END,
  CASE WHEN n %% 100 = 7 THEN 'The name also fits an existing project: proj_000007.' ELSE '' END,
  CASE WHEN n %% 100 = 7 THEN '' ELSE 'Deleted' END, 1, 1, timestamptz '2025-01-02',
  timestamptz '2025-01-02'
FROM (SELECT n, 'projects/proj_000006/scenes/s' || lpad((n / 100)::text, 5, '0') || '/media/'
  || md5(n::text) || '.mp4' AS key FROM generate_series(0, %(many)s - 1) AS n) AS made
"""

TOTALS_SQL = """
UPDATE storage_audit_cleanup SET found = %(many)s,
  found_bytes = %(many)s::bigint * 1000000,
  kept = %(many)s / 100, kept_bytes = %(many)s::bigint / 100 * 1000000,
  deleted = %(many)s - %(many)s / 100,
  deleted_bytes = (%(many)s - %(many)s / 100)::bigint * 1000000,
  status = 'clean_with_kept', finished_at = timestamptz '2025-01-02'
WHERE id = %(deletion)s::uuid
"""

TABLES = ("project", "knownproject", "r2object", "bucketscan", "cleanup", "finding")


def fill_tables(cursor: Cursor, size: Size) -> None:
    """Replaces what is in these tables. The connection must autocommit."""
    tables = ", ".join(f"storage_audit_{table}" for table in TABLES)
    cursor.execute(f"TRUNCATE {tables} CASCADE")
    for sql in (
        PROJECT_SQL,
        KNOWN_SQL,
        OBJECT_SQL,
        SCAN_SQL,
        CLEANUP_SQL,
        FINDING_SQL,
        ITEM_SQL,
        TOTALS_SQL,
    ):
        cursor.execute(sql, size._asdict() | {"deletion": DELETION_ID})
    cursor.execute("VACUUM ANALYZE")
