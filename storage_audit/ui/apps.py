"""The admin with our menu, for INSTALLED_APPS."""

from django.contrib.admin.apps import AdminConfig


class MenuAdminConfig(AdminConfig):
    default = False
    default_site = "storage_audit.ui.menu.MenuAdminSite"
