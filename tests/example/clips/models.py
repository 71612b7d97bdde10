from typing import Any

from django.db import models, transaction

from storage_audit.storage import key_for


def key_of(clip: "Clip", filename: str) -> str:
    return key_for(str(clip.pk), filename=filename)


class Clip(models.Model):
    title = models.CharField(max_length=200)
    file = models.FileField(upload_to=key_of, max_length=1024, db_index=True)

    def __str__(self) -> str:
        return self.title

    def save(self, *args: Any, **kwargs: Any) -> None:
        if self.pk:
            super().save(*args, **kwargs)
            return
        # The file's key holds the number, which the database gives to the row: the row comes first.
        file, self.file = self.file, ""
        with transaction.atomic():
            super().save(*args, **kwargs)
            self.file = file
            super().save(update_fields=["file"])
