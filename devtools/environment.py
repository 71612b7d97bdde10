import secrets

# What python-dotenv looks for: tests, checks and the demo must not read a developer's `.env`.
WITHOUT_ENV_FILE = {"PYTHON_DOTENV_DISABLED": "1"}


def made_up_environment() -> dict[str, str]:
    """Every variable that a production start needs, with values that reach nothing."""
    return {
        **WITHOUT_ENV_FILE,
        "SECRET_KEY": secrets.token_hex(30),
        "ALLOWED_HOSTS": "example.com",
        "R2_ENDPOINT_URL": "https://r2.example.com",
        "R2_ACCESS_KEY_ID": secrets.token_hex(16),
        "R2_SECRET_ACCESS_KEY": secrets.token_hex(32),
        "R2_BUCKET_NAME": "autoshorts-media",
    }
