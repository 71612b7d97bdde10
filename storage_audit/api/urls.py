"""The addresses under /api/."""

from django.urls import path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe

from storage_audit.api import debug, deletions, diagnostics, findings, projects, scans
from storage_audit.api.auth import BearerToken, StaffSession
from storage_audit.api.docs import page
from storage_audit.api.openapi import Api
from storage_audit.api.problems import speaking, unknown_address
from storage_audit.api.rates import Rate

api = Api(
    title="Storage audit",
    version="1.0.0",
    description=(
        "Deletes projects with their files, follows each deletion to the proof, and says why files"
        " stay; scans the bucket, and decides about what was found. Every error is a problem detail"
        " (RFC 9457)."
    ),
    urls_namespace="storage_audit_api",
    auth=[BearerToken(), StaffSession()],
    throttle=Rate(),
    docs_url=None,
    docs_decorator=require_safe,
)
api.add_router("projects", projects.router)
api.add_router("deletions", deletions.router)
api.add_router("findings", findings.router)
api.add_router("scans", scans.router)
api.add_router("debug", debug.router)
api.add_router("diagnostics", diagnostics.router)

urlpatterns = [
    path("docs", page, name="storage_audit_docs"),
    path("v1/", api.urls),
    re_path("", csrf_exempt(speaking(unknown_address)), name="storage_audit_api_unknown"),
]
