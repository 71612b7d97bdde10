from django.contrib import admin
from django.urls import path
from django.utils.translation import gettext_lazy as _
from django.views.generic import RedirectView

from autoshorts import health

admin.site.site_header = admin.site.site_title = _("AutoShorts administration")

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("health/", health.web),
    path("health/worker/", health.worker),
]
