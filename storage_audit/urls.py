"""The addresses under /api/."""

from django.urls import path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe

from storage_audit.api.auth import BearerToken, StaffSession
from storage_audit.api.docs_page import show_docs
from storage_audit.api.openapi import Api
from storage_audit.api.problems import refuse_unknown_address, report_problems
from storage_audit.api.rate_limit import RateLimit
from storage_audit.cleanup.api import router as cleanup_router
from storage_audit.debug.api import router as debug_router
from storage_audit.doctor.api import router as doctor_router
from storage_audit.findings.api import router as findings_router
from storage_audit.projects.api import router as projects_router
from storage_audit.scan.api import router as scan_router

api = Api(
    title="Storage audit",
    version="1.0.0",
    description=(
        "Delete projects with their files, follow each deletion to its proof, and see why"
        " files stay. Scan the bucket and settle what was found. Errors are problem"
        " details (RFC 9457)."
    ),
    urls_namespace="storage_audit_api",
    auth=[BearerToken(), StaffSession()],
    throttle=RateLimit(),
    docs_url=None,
    docs_decorator=require_safe,
)
api.add_router("projects", projects_router)
api.add_router("deletions", cleanup_router)
api.add_router("findings", findings_router)
api.add_router("scans", scan_router)
api.add_router("debug", debug_router)
api.add_router("doctor", doctor_router)

urlpatterns = [
    path("docs", show_docs, name="storage_audit_docs"),
    path("v1/", api.urls),
    re_path(
        "", csrf_exempt(report_problems(refuse_unknown_address)), name="storage_audit_api_unknown"
    ),
]
