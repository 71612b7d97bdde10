from django.contrib import admin
from django.urls import include, path
from django.utils.translation import gettext_lazy as _
from django.views.generic import RedirectView
from django_q.admin import resubmit_task

from autoshorts import health
from storage_audit.metrics import metrics

# It has the worker run a function again; django-q2 offers it to whoever may look.
admin.action(permissions=["change"])(resubmit_task)
admin.site.site_header = admin.site.site_title = _("AutoShorts administration")

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("api/", include("storage_audit.urls")),
    path("metrics", metrics),
    path("health/", health.web),
    path("health/worker/", health.worker),
    path("healthz", health.process),
    path("readyz", health.web),
]
