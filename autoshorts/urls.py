from django.contrib import admin
from django.urls import include, path
from django.utils.translation import gettext_lazy as _
from django.views.generic import RedirectView
from django_q.admin import resubmit_task

from autoshorts import health
from storage_audit.metrics import metrics

# It lets the worker run a function again; django-q2 offers it to everyone who may view tasks.
admin.action(permissions=["change"])(resubmit_task)
admin.site.site_header = admin.site.site_title = _("AutoShorts administration")

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("api/", include("storage_audit.urls")),
    path("metrics", metrics),
    path("health/", health.web_health),
    path("health/worker/", health.worker_health),
    path("healthz", health.process_health),
    path("readyz", health.web_health),
]
