"""Key formats, who owns a key, and whether bucket and database belong together."""
