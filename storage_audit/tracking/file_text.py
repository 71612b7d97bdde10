"""What a person reads first about a tracked file: where it is, whose it is, and what to do."""

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from storage_audit import project_model
from storage_audit.display_formats import Answer
from storage_audit.models import R2Object

RowState = R2Object.State
# The style, the answer, what it means, and what a person does where the file stays so.
STATE_TEXTS = {
    RowState.STORED: (
        "good",
        gettext_lazy("In the bucket."),
        gettext_lazy("It was there when we last checked, with this size and ETag."),
    ),
    RowState.UPLOADING: (
        "busy",
        gettext_lazy("Being uploaded."),
        gettext_lazy("If that takes hours, the upload has died: upload the file again."),
    ),
    RowState.UPLOAD_FAILED: (
        "bad",
        gettext_lazy("The upload failed, so the file is probably not in the bucket."),
        gettext_lazy("Upload it again, or delete it here."),
    ),
    RowState.DELETING: (
        "busy",
        gettext_lazy("Being deleted, and uploads to its name are refused."),
        gettext_lazy(
            "This entry disappears when the file is gone. If that takes long, “Why?” shows the"
            " reason."
        ),
    ),
}


def explain_file(row: R2Object) -> Answer:
    style, where, means = STATE_TEXTS[RowState(row.state)]
    words = {"where": where, "owner": owner_text(row.project_id)}
    return Answer(style, _("%(where)s %(owner)s") % words, [str(means)])


def owner_text(project_id: str | None) -> str:
    if project_id is None:
        return _("It belongs to no known project.")
    if project_model.is_alive(project_id):
        return _("It belongs to project %s.") % project_id
    return _("Its project %s does not exist.") % project_id
