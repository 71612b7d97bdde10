"""An app with every kind of relation to its projects. Only `test_snapshot.py` installs it."""

from decimal import Decimal
from typing import Any

from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import models


class StudioRow(models.Model):
    class Meta:
        abstract = True
        app_label = "studio"

    def __str__(self) -> str:
        return str(self.pk)


class Customer(StudioRow):
    name = models.TextField(unique=True)


class Editor(StudioRow):
    name = models.TextField()


class Room(StudioRow):
    name = models.TextField()


class Tag(StudioRow):
    name = models.TextField(unique=True)


class Comment(StudioRow):
    content_type = models.ForeignKey(ContentType, models.CASCADE, related_name="+")
    object_id = models.TextField()
    about = GenericForeignKey()
    text = models.TextField()


class Show(StudioRow):
    """The model of the projects."""

    id = models.TextField(primary_key=True)
    slug = models.SlugField(unique=True)
    customer = models.ForeignKey(Customer, models.CASCADE, null=True, related_name="shows")
    tags = models.ManyToManyField(Tag, related_name="shows")
    # A circle of tables.
    best_clip = models.ForeignKey("Clip", models.SET_NULL, null=True, related_name="+")
    comments = GenericRelation(Comment)
    created_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField(auto_now=True)
    day = models.DateField(null=True)
    hour = models.TimeField(null=True)
    length = models.DurationField(null=True)
    budget = models.DecimalField(max_digits=30, decimal_places=12, default=Decimal(0))
    ratio = models.FloatField(default=0.1)
    token = models.UUIDField(null=True)
    secret = models.BinaryField(null=True)
    data = models.JSONField(null=True)
    # JSON's null, which is not NULL.
    settings = models.JSONField(default=dict)
    title = models.TextField(null=True)  # noqa: DJ001
    is_public = models.BooleanField(default=True)


class Film(Show):
    director = models.TextField()

    class Meta(StudioRow.Meta):
        abstract = False


class PublicShow(Show):
    class Meta:
        proxy = True
        app_label = "studio"


class Playlist(StudioRow):
    """It outlives its shows; the relation is declared on this side."""

    shows = models.ManyToManyField(Show, related_name="playlists")


class Clip(StudioRow):
    """It has a file, and other clips that were cut from it."""

    show = models.ForeignKey(Show, models.CASCADE, related_name="clips")
    cut_from = models.ForeignKey("self", models.CASCADE, null=True, related_name="cuts")
    editor = models.ForeignKey(Editor, models.SET_NULL, null=True, related_name="+")
    room = models.ForeignKey(Room, models.PROTECT, null=True, related_name="+")
    file = models.FileField(upload_to="clips/", max_length=1024, null=True, db_index=True)
    comments = GenericRelation(Comment)


class Trailer(StudioRow):
    show = models.OneToOneField(Show, models.CASCADE, primary_key=True, related_name="trailer")
    text = models.TextField()


class Poster(StudioRow):
    """It outlives its show."""

    show = models.ForeignKey(Show, models.SET_NULL, null=True, related_name="posters")
    number = models.IntegerField(default=0)

    class Meta(StudioRow.Meta):
        abstract = False
        unique_together = [("show", "number")]


def catch_all() -> Any:
    return Show._default_manager.get_or_create(pk="proj_other", slug="other")[0]


class Banner(StudioRow):
    """It outlives its show, and goes to another one."""

    show = models.ForeignKey(Show, models.SET(catch_all), related_name="banners")


class Duet(StudioRow):
    """A child of two shows, with a child of its own."""

    first = models.ForeignKey(Show, models.CASCADE, related_name="+")
    second = models.ForeignKey(Show, models.CASCADE, related_name="+")


class Take(StudioRow):
    duet = models.ForeignKey(Duet, models.CASCADE, related_name="takes")


class Invoice(StudioRow):
    show = models.ForeignKey(Show, models.DO_NOTHING, related_name="+")
