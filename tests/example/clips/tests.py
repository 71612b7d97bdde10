from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.test import TestCase
from django.urls import reverse

from clips.models import Clip
from storage_audit.cleanup.models import Cleanup
from storage_audit.models import R2Object

BUCKET = str(settings.STORAGE_AUDIT["BUCKET"])


class AdminTests(TestCase):
    def setUp(self) -> None:
        self.clip = Clip.objects.create(pk=1234, title="Interview")
        Clip.objects.create(pk=12345, title="Weather")
        for key, size in (("clips/1234/a.mp4", 1000), ("uploads/1234_b.mov", 500)):
            R2Object.objects.create(
                bucket=BUCKET,
                key=key,
                project_id="1234",
                size=size,
                source="backfill",
                state="stored",
            )
        people = get_user_model()._default_manager
        self.editor = people.create(username="anna", is_staff=True, is_superuser=True)
        self.client.force_login(self.editor)

    def read(self, answer: Any) -> str:
        self.assertEqual(answer.status_code, 200)
        return " ".join(answer.content.decode().split())

    def page(self, name: str, *args: object) -> str:
        return reverse(f"admin:clips_clip_{name}", args=args)

    def act(self, name: str, **data: Any) -> str:
        form = {"action": name, "_selected_action": [self.clip.pk], **data}
        return self.read(self.client.post(self.page("changelist"), form, follow=True))

    def test_the_list_shows_what_is_tracked(self) -> None:
        text = self.read(self.client.get(self.page("changelist")))
        self.assertIn('<td class="field-tracked_objects">2</td>', text)
        self.assertIn('<td class="field-tracked_objects">0</td>', text)

    def test_a_clip_shows_its_storage(self) -> None:
        text = self.read(self.client.get(self.page("change", 1234)))
        self.assertIn("2 files", text)
        self.assertIn("?project_id=1234", text)
        self.read(self.client.get(self.page("add")))

    def test_the_actions_on_a_clips_page_name_the_clip(self) -> None:
        text = self.read(self.client.get(self.page("change", 1234)))
        self.assertIn('name="_selected_action" value="1234"', text)

    def test_a_deletion_says_first_what_goes(self) -> None:
        one = self.read(self.client.get(self.page("delete", 1234)))
        several = self.act("delete_selected")
        for text in (one, several):
            self.assertIn("This also deletes the project&#x27;s files from R2", text)
            self.assertIn("2 files", text)
        self.assertTrue(Clip.objects.filter(pk=1234).exists())

    def test_a_deletion_leads_to_its_cleanup(self) -> None:
        text = self.read(self.client.post(self.page("delete", 1234), {"post": "yes"}, follow=True))
        cleanup = Cleanup.objects.get()
        self.assertEqual((cleanup.project_id, cleanup.requested_by), ("1234", "anna"))
        self.assertIn(str(cleanup.pk), text)

    def test_a_dry_run_leads_to_its_plan(self) -> None:
        text = self.act("dry_run_cleanup")
        self.assertIn("A dry run is queued. It deletes nothing", text)
        plan = Cleanup.objects.get()
        self.assertEqual((plan.project_id, plan.dry_run), ("1234", True))
        self.assertIn(str(plan.pk), text)
        self.assertTrue(Clip.objects.filter(pk=1234).exists())

    def test_a_forced_deletion_asks_and_then_deletes(self) -> None:
        self.assertIn("Interview", self.act("force_delete"))
        self.assertIn("Deleting the files of", self.act("force_delete", post="yes"))
        self.assertEqual(Cleanup.objects.get().limits_waived_by, "anna")
        self.assertEqual([clip.title for clip in Clip.objects.all()], ["Weather"])

    def test_a_token_of_the_api_is_made_for_an_editor(self) -> None:
        form = {"name": "nightly", "user": self.editor.pk, "expires_at_0": "", "expires_at_1": ""}
        address = reverse("admin:storage_audit_apitoken_add")
        self.assertIn("anna", self.read(self.client.get(address)))
        self.assertIn("sa_", self.read(self.client.post(address, form)))
        text = self.read(self.client.get(reverse("admin:storage_audit_apitoken_changelist")))
        self.assertIn('<td class="field-state">valid</td>', text)
