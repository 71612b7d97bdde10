"""Why is this file still there?"""
