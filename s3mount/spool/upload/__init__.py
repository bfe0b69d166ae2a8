"""Sending pending changes to S3, one worker a change."""
