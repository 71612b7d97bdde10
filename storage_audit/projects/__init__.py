"""The pages and the endpoint of projects."""
