"""Keys that tests of several features use."""

from unicodedata import normalize

HOSTILE = "<script>alert(1)</script>=cmd()\x01\u202egpj.exe"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;=cmd()\\x01\\u202egpj.exe"
FOLDER = "projects/proj_9/scenes/s1/media/"
KEY = FOLDER + "old.mp4"
OTHER_KEY = FOLDER + "other.mp4"
AMBIGUOUS = "proj_a_b_s1_media.mp4"
KEY_OF_PROJ_10 = "projects/proj_10/scenes/s1/media/other.mp4"
NFD = "projects/proj_1/scenes/s/media/e\u0301.mp4"
NFC = normalize("NFC", NFD)
