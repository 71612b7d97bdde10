"""The only code that talks to the store: S3, wrangler, Cloudflare's API."""
